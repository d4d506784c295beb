"""Checkpoints: everything a run needs to go on, written whole or not at all.

A checkpoint is one safetensors file: the parameters, the optimiser's state, and as its metadata the
counters of the run and the fingerprints of its text. `latest.json` names the newest one with its
SHA-256. Both are written beside their target and moved into place, and the older checkpoint is
removed only after that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from scangolf.data.shards import file_sha256
from scangolf.errors import UserError
from scangolf.train.schedule import Progress

HOW_TO_GO_ON = "continue with --resume from the last checkpoint"
"""What a person can do with a run that ended early."""


def save_checkpoint(
    folder: Path,
    tensors: Mapping[str, Tensor],
    progress: Progress,
    text: Mapping[str, str] | None = None,
) -> Path:
    """Writes `folder/step-N.safetensors` and points `folder/latest.json` at it.

    `text` are the fingerprints of the dataset's splits.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"step-{progress.step:08d}.safetensors"
    part = path.with_suffix(".part")
    metadata = {"progress": json.dumps(asdict(progress)), "text": json.dumps(dict(text or {}))}
    pointer = folder / "latest.part"
    try:
        save_file({k: v.detach().contiguous() for k, v in tensors.items()}, part, metadata)
        pointer.write_text(json.dumps({"file": path.name, "sha256": file_sha256(part)}))
        os.replace(part, path)
        os.replace(pointer, folder / "latest.json")
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        pointer.unlink(missing_ok=True)
        raise UserError(
            f"{path}: could not write the checkpoint ({error}); the one before it is untouched: "
            "free some space and continue with --resume"
        ) from error
    for old in folder.glob("step-*"):  # and what a process that was killed left
        if old != path:
            old.unlink()
    return path


def has_checkpoint(folder: Path) -> bool:
    """Whether a checkpoint was ever written there; it may be damaged."""
    return (folder / "latest.json").exists()


def load_checkpoint(
    folder: Path, text: Mapping[str, str] | None = None
) -> tuple[dict[str, Tensor], Progress]:
    """Reads the newest checkpoint, on the CPU, after checking its SHA-256.

    Raises UserError where it is damaged, or of a run on other text than `text` tells.
    """
    pointer = folder / "latest.json"
    if not pointer.exists():
        raise UserError(f"{folder}: no checkpoint to resume from; start without --resume")
    try:
        latest = json.loads(pointer.read_text())
        path = folder / latest["file"]
        if file_sha256(path) != latest["sha256"]:
            raise ValueError("its SHA-256 is not the one it was written with")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            progress = Progress(**json.loads(metadata["progress"]))
            before = json.loads(metadata.get("text", "{}"))  # older checkpoints do not know theirs
            if other := [split for split in before if text and before[split] != text[split]]:
                raise UserError(
                    f"{folder}: is of a run with other {' and '.join(other)} text than --data has; "
                    "put that text back, or train anew into another --out"
                )
            return {name: file.get_tensor(name) for name in file.keys()}, progress  # noqa: SIM118
    except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(
            f"{folder}: the checkpoint is damaged ({error}); restore it from a copy, "
            "or start the run anew in another folder"
        ) from error
