"""What a report knows of a run: the files of its folder, read and checked."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from scangolf.errors import UserError

CONFIG_KEYS = {"preset", "seconds", "steps", "seed", "data", "model"}
TRAINING_KEYS = {
    "step", "tokens", "seconds", "share", "loss", "train_bpb", "lr", "tokens_per_second",
}  # fmt: skip
EVALUATION_KEYS = {"step", "seconds", "share", "val_loss", "val_bpb"}
SUMMARY_KEYS = {
    "preset", "seed", "device", "layers", "parameters", "steps", "tokens", "train_seconds",
    "tokens_per_second", "val_loss", "val_bpb", "artifact_val_bpb", "artifact_bytes", "code_bytes",
    "total_bytes", "limit_bytes", "fits", "tokenizer_sha256", "val_tokens", "val_bytes", "sample",
}  # fmt: skip


ANALYSIS_KEYS = {
    "steps", "peak_memory_bytes", "scans", "gates", "positions", "tokenizer_bytes", "tensors",
    "passage", "sample",
}  # fmt: skip


@dataclass(frozen=True)
class RunFolder:
    """A run as its folder tells it. `training` has at least one line, `evaluations` may be empty.

    `summary` is None while a run is under way, and after it was interrupted. `analysis` may be
    missing even from a finished run: older versions wrote none.
    """

    path: Path
    config: dict[str, Any]
    training: list[dict[str, Any]]
    evaluations: list[dict[str, Any]]
    summary: dict[str, Any] | None
    analysis: dict[str, Any] | None

    def curve(self, name: str) -> np.ndarray:
        """One value of every training line, float64 [lines]."""
        return np.array([line[name] for line in self.training], dtype=np.float64)

    @property
    def peak_memory_bytes(self) -> int | None:
        """Of a GPU's memory; None where it was not recorded."""
        return self.analysis["peak_memory_bytes"] if self.analysis else None

    @property
    def seconds(self) -> float:
        """Where the training clock stood at the last line."""
        return self.training[-1]["seconds"]


def read_run(path: Path) -> RunFolder:
    """Reads config.json, metrics.jsonl and, where they are there, summary.json and analysis.json.

    Raises UserError, in one line, where the folder is no run or a file of it is unusable.
    """
    if not (path / "config.json").is_file():
        raise UserError(
            f"{path}: not a run folder, it has no config.json; name the --out folder of a training"
        )
    config = _read_object(path / "config.json", CONFIG_KEYS, "restore it from a copy")
    training, evaluations = _read_metrics(path / "metrics.jsonl")
    summary = analysis = None
    if (path / "summary.json").exists():
        advice = "delete it to report the curves alone"
        summary = _read_object(path / "summary.json", SUMMARY_KEYS, advice)
        if summary["steps"] < training[-1]["step"]:
            summary = None  # of an earlier end: the run was resumed and has not finished since
    if summary and (path / "analysis.json").exists():
        advice = "delete it to report without it"
        analysis = _read_object(path / "analysis.json", ANALYSIS_KEYS, advice)
        if analysis["steps"] != summary["steps"]:
            analysis = None
    return RunFolder(path, config, training, evaluations, summary, analysis)


def without(path: Path, error: UserError) -> str:
    """What is wrong with a run folder, for where its path stands already."""
    return str(error).removeprefix(f"{path}: ").removeprefix(f"{path}{os.sep}")


def _read_object(path: Path, keys: set[str], advice: str) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes(), parse_constant=_no_number)
    except ValueError as error:
        raise UserError(f"{path}: not JSON ({error}); {advice}") from error
    if not isinstance(values, dict):
        raise UserError(f"{path}: not a JSON object; {advice}")
    if missing := keys - values.keys():
        raise UserError(f"{path}: lacks {', '.join(sorted(missing))}; {advice}")
    return values


def _read_metrics(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training lines and evaluation lines; a last line that was cut short is left out."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError as error:
        raise UserError(
            f"{path}: not there, so nothing was trained; train this run first"
        ) from error
    training, evaluations = [], []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
        except ValueError as error:
            if number == len(lines):
                break
            raise UserError(f"{path}: line {number} is not JSON; remove that line") from error
        if _holds(values, TRAINING_KEYS):
            training.append(values)
        elif _holds(values, EVALUATION_KEYS):
            evaluations.append(values)
        else:
            raise UserError(
                f"{path}: line {number} is no record of training or evaluation; remove that line"
            )
    if not training:
        raise UserError(f"{path}: holds no training step; train this run for at least one")
    return training, evaluations


def _no_number(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")


def _holds(values: Any, keys: set[str]) -> bool:
    """Whether a record has all of these, each a finite number."""
    return isinstance(values, dict) and all(
        isinstance(values.get(key), (int, float)) and math.isfinite(values[key]) for key in keys
    )
