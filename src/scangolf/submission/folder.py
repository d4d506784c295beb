"""The folder of a submission: README.md, submission.json, train.log, artifact.sg, train_gpt.py."""

from __future__ import annotations

import json
import math
import os
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from scangolf.artifact.budget import Budget, measure
from scangolf.artifact.codec import read_artifact
from scangolf.config import RunConfig, run_config_from_dict
from scangolf.data.build import require_new
from scangolf.data.shards import file_sha256
from scangolf.errors import UserError
from scangolf.report.folder import read_run
from scangolf.submission.bundle import bundle
from scangolf.submission.forms import code_bytes, train_gpt
from scangolf.submission.readme import readme


def write_submission(run: Path, folder: Path, *, packed: bool, author: str) -> dict[str, Any]:
    """Writes the folder, whole or not at all, and returns what its submission.json says.

    Raises UserError, and writes nothing, where the run is not finished, its files are not those of
    its summary, script and artifact together exceed the limit, or the folder holds something.
    """
    require_new(folder)
    found = read_run(run)
    config = run_config_from_dict(found.config, str(run / "config.json"))
    if found.summary is None:
        raise UserError(f"{run}: its run is not finished; go on with train --resume until it is")
    _check_artifact(run / "artifact.sg", config, found.summary)
    script = train_gpt(config, packed=packed)
    budget = measure(run / "artifact.sg", len(script), config.artifact.limit_bytes)
    _check_size(run, config, budget, packed)
    folder = folder.absolute()  # "." has no name
    values = _values(folder.name, author, config, found.summary, budget)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        (part / "train_gpt.py").write_bytes(script)
        for name in ("artifact.sg", "train.log"):
            shutil.copyfile(run / name, part / name)
        (part / "submission.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        text = readme(config, values, bundle(config.model.layers).libraries)
        (part / "README.md").write_text(text, encoding="utf-8")
        os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return values


def _check_size(run: Path, config: RunConfig, budget: Budget, packed: bool) -> None:
    if not budget.fits:
        smaller = budget.artifact_bytes + code_bytes(config) <= budget.limit_bytes
        advice = "pass --packed" if smaller and not packed else "train a smaller model"
        raise UserError(f"{run}: {budget.describe()}; {advice}")


def _check_artifact(path: Path, config: RunConfig, summary: dict[str, Any]) -> None:
    """That it is whole, and the one whose score the summary tells."""
    artifact = read_artifact(path)
    scored = summary.get("artifact_sha256")
    if scored is None:  # an older summary: its size is all that it tells of the file
        same = path.stat().st_size == summary["artifact_bytes"]
    else:
        same = file_sha256(path) == scored
    if not same or artifact.model_config != config.model:
        raise UserError(
            f"{path}: is not the artifact that this run wrote and scored; "
            "put that one back or train again"
        )


def _values(
    name: str, author: str, config: RunConfig, summary: dict[str, Any], budget: Budget
) -> dict[str, Any]:
    """submission.json: the fields that the challenge's entries have, and what tells of the run."""
    world = summary.get("world", 1)
    bpb, n_bytes, n_tokens = (summary[k] for k in ("artifact_val_bpb", "val_bytes", "val_tokens"))
    return {
        "author": author,
        "name": name,
        "blurb": f"{len(summary['layers'])} blocks: {', '.join(summary['layers'])}",
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        "val_loss": bpb * math.log(2) * n_bytes / n_tokens,
        "val_bpb": bpb,
        "bytes_total": budget.total_bytes,
        "bytes_code": budget.code_bytes,
        "bytes_artifact": budget.artifact_bytes,
        "seed": summary["seed"],
        "hardware": f"{world} x {summary['device']}" if world > 1 else summary["device"],
        "train_seconds": summary["train_seconds"],
        "steps": summary["steps"],
        "tokens": summary["tokens"],
        "parameters": summary["parameters"],
        "val_bpb_before_artifact": summary["val_bpb"],
        "mode": "plain",
        "seq_len": config.batch.seq_len,
        "val_tokens": n_tokens,
        "val_bytes": n_bytes,
        "tokenizer_sha256": summary["tokenizer_sha256"],
    }
