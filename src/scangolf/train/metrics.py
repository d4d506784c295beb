"""metrics.jsonl: one object a line, for every step and every evaluation."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from scangolf.score.evaluate import Score
from scangolf.train.checkpoint import Progress


def evaluation_record(progress: Progress, share: float, score: Score) -> dict[str, Any]:
    """The line of metrics.jsonl that an evaluation leaves."""
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "seconds": progress.seconds,
        "share": share,
        "val_loss": score.loss,
        "val_bpb": score.bpb,
    }


def write_record(metrics: TextIO, record: dict[str, Any]) -> None:
    """Appends one line to metrics.jsonl, at once on disk for whoever watches."""
    metrics.write(json.dumps(record) + "\n")
    metrics.flush()


def write_score(path: Path, record: dict[str, Any]) -> None:
    """Appends the last evaluation, in place of the same of a run that is only scored once more."""
    same = {key: record[key] for key in ("step", "share")}
    lines = path.read_text().splitlines()
    others = [line for line in lines if not _is_score(json.loads(line), same)]
    if others != lines:
        _rewrite(path, others)
    with path.open("a", encoding="utf-8") as metrics:
        write_record(metrics, record)


def _is_score(record: dict[str, Any], same: dict[str, Any]) -> bool:
    return "val_bpb" in record and same.items() <= record.items()


def drop_later(path: Path, step: int) -> None:
    """Leaves only the whole lines of steps up to `step`; there need be no file."""
    lines = path.read_text().splitlines() if path.exists() else []
    whole = [line for line in lines if line.endswith("}")]
    kept = [line for line in whole if json.loads(line)["step"] <= step]
    _rewrite(path, kept)


def _rewrite(path: Path, lines: Sequence[str]) -> None:
    part = path.with_suffix(".part")
    part.write_text("".join(line + "\n" for line in lines))
    os.replace(part, path)
