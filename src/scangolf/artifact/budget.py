"""The bytes of a submission: its artifact and its code, counted here and nowhere else."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from scangolf.errors import UserError


@dataclass(frozen=True)
class Budget:
    """Bytes on disk against the limit, which holds for code and artifact together."""

    code_bytes: int
    artifact_bytes: int
    limit_bytes: int

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.limit_bytes

    def describe(self) -> str:
        """The sum and its verdict in one line."""
        excess = self.total_bytes - self.limit_bytes
        verdict = "fits" if self.fits else f"{excess:,} bytes too large"
        return (
            f"artifact {self.artifact_bytes:,} + code {self.code_bytes:,} = "
            f"{self.total_bytes:,} of {self.limit_bytes:,} bytes: {verdict}"
        )


def measure(artifact_path: Path, code_bytes: int, limit_bytes: int) -> Budget:
    """The budget of the artifact as it lies on disk. Raises UserError where there is none."""
    if not artifact_path.is_file():
        raise UserError(f"no artifact at {artifact_path}: name the artifact.sg of a run")
    return Budget(code_bytes, artifact_path.stat().st_size, limit_bytes)
