"""The challenge's limits."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    total_bytes: int = 16_000_000
    """Code and artifact together, decimal bytes."""
    training_seconds: float = 600.0
    evaluation_seconds: float = 600.0
    record_nats: float = 0.005
    """By how much a record must beat the last one, nats a token."""
    record_p: float = 0.01
    """The significance it must do so at."""
