"""Stands for train/checkpoint.py in a submitted script: its run is never resumed."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from scangolf.errors import UserError
from scangolf.train.schedule import Progress

HOW_TO_GO_ON = "start the run anew: this script keeps no checkpoints"


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    text: Mapping[str, str] | None = None,
) -> Path:
    """Writes nothing."""
    return folder


def has_checkpoint(folder: Path) -> bool:
    return False


def load_checkpoint(
    folder: Path, text: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], Progress]:
    raise UserError(f"{folder}: {HOW_TO_GO_ON}")
