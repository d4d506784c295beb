"""What somebody states about a submission, and how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass

from scangolf.score.bpb import bits_per_byte

TOLERANCE = 2e-4
"""Bits a byte between two computations of one score. Rounding to bf16 makes a model a little worse:
a score of a GPU's was 0.00009 above the same artifact's in float32. This is twice as much."""


@dataclass(frozen=True)
class Claim:
    """A score that somebody states, and the bytes it is said to rest on."""

    source: str
    bpb: float
    bytes: int | None

    def nats(self) -> float:
        """The summed cross-entropy behind it, by its own count of bytes."""
        return self.bpb / bits_per_byte(1.0, self.bytes or 1)
