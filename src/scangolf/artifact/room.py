"""Whether a model will fit the limit, as far as that is known before it is trained."""

from __future__ import annotations

from dataclasses import dataclass

from scangolf.artifact.predict import MIXED_BITS
from scangolf.artifact.quantize import stored_bytes, usual_coding
from scangolf.config import ArtifactConfig
from scangolf.errors import UserError
from scangolf.model import HybridLM

TRAINED_BYTES = 0.9
"""Bytes that eight bits come to, about, compressed and of a fully trained model: 21 MB for the 23 M
weights of preset hybrid. Those of a short training take fewer."""

LEAST_BITS = 1.5
"""Bits a weight below which scheme mixed-rans is refused before the training, not after it."""


@dataclass(frozen=True)
class Room:
    """The bytes there are and the bytes there will be."""

    parameters: int
    code_bytes: int
    limit_bytes: int
    scheme: str
    uncompressed_bytes: int
    """Of the weights in eight bits. An int8 scheme compresses them; mixed-rans takes the bytes that
    it is given instead."""

    @classmethod
    def of(cls, model: HybridLM, artifact: ArtifactConfig, code_bytes: int) -> Room:
        """`model` may be on the meta device: only shapes are looked at."""
        n_bytes = uncompressed_bytes(model, artifact.scheme)
        return cls(model.n_parameters, code_bytes, artifact.limit_bytes, artifact.scheme, n_bytes)

    def check(self) -> None:
        """Raises UserError where mixed-rans would have fewer than LEAST_BITS for every weight."""
        if self.scheme == "mixed-rans" and self.bits_per_weight < LEAST_BITS:
            raise UserError(
                f"--artifact.limit-bytes {self.limit_bytes}: leaves {self.bits_per_weight:.2f} "
                f"bits for each of {self.parameters:,} weights beside the code, below "
                f"{LEAST_BITS:g}; train a smaller model, or allow more bytes"
            )

    @property
    def bits_per_weight(self) -> float:
        """What the limit leaves beside the code, over all weights."""
        return 8 * (self.limit_bytes - self.code_bytes) / self.parameters

    @property
    def trained_bytes(self) -> int:
        """About what eight bits a weight come to, compressed, once the model is fully trained."""
        return round(TRAINED_BYTES * self.parameters)

    @property
    def fits(self) -> bool | None:
        """None where only the trained weights will tell.

        With mixed-rans what passes `check` fits, but for a very small model beside its tokenizer;
        True says that its steps need not be so coarse that they cost bits a byte.
        """
        if self.scheme == "mixed-rans":
            return self.bits_per_weight >= MIXED_BITS
        return True if self.code_bytes + self.uncompressed_bytes <= self.limit_bytes else None

    def say_before(self) -> str | None:
        """A line for before the first step; None where only the trained weights will tell."""
        if self.fits is None:
            return None
        if self.scheme != "mixed-rans":
            n_bytes = self.code_bytes + self.uncompressed_bytes
            return f"{n_bytes:,} of {self.limit_bytes:,} bytes before compression: fits"
        verdict = "fits"
        if not self.fits:
            verdict = f"below {MIXED_BITS:g} the score suffers; a smaller model has more"
        return (
            f"{self.limit_bytes:,} bytes leave {self.bits_per_weight:.2f} bits a weight beside the "
            f"code: {verdict}"
        )

    def say_now(self, artifact_bytes: int) -> str:
        """A line for during the training, when the artifact would have about so many bytes."""
        n_bytes = self.code_bytes + artifact_bytes
        verdict = "fits so far"
        if n_bytes > self.limit_bytes:
            verdict = "TOO LARGE; a smaller model fits, or this one by artifact scheme mixed-rans"
        about = int(float(f"{n_bytes:.4g}"))
        return f"artifact and code by now about {about:,} of {self.limit_bytes:,} bytes: {verdict}"


def uncompressed_bytes(model: HybridLM, scheme: str) -> int:
    """Bytes of a model's tensors as an artifact stores them without calibration, uncompressed."""
    groups = model.parameter_groups()
    return sum(
        stored_bytes(tuple(p.shape), usual_coding(tuple(p.shape), groups[name], scheme))
        for name, p in model.named_parameters()
    )
