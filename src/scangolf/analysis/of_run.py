"""analysis.json of a finished run, from the files of its folder."""

from __future__ import annotations

import json
from pathlib import Path

from scangolf.analysis.analyse import analyse
from scangolf.artifact.codec import read_artifact
from scangolf.artifact.load import build
from scangolf.config import run_config_from_dict
from scangolf.data.shards import open_dataset
from scangolf.device import pick_device
from scangolf.model import HybridLM
from scangolf.records import write_json
from scangolf.train.checkpoint import load_checkpoint


def write_analysis(folder: Path) -> None:
    """Compares the weights of the last checkpoint with the artifact, on the run's device."""
    path = folder / "config.json"
    config = run_config_from_dict(json.loads(path.read_text()), str(path))
    summary = json.loads((folder / "summary.json").read_text())
    tensors, progress = load_checkpoint(folder / "checkpoint")
    trained = HybridLM(config.model, seed=None)
    trained.load_state_dict({name: tensors[f"model.{name}"] for name in trained.parameter_groups()})
    file = folder / "artifact.sg"
    artifact = read_artifact(file)
    analysis = analyse(
        artifact,
        trained,
        build(artifact, file, pick_device(config.device)),
        open_dataset(Path(config.data), ["val"]),
        seq_len=config.batch.seq_len,
        steps=progress.step,
        sample="".join(summary["sample"].values()),
    )
    write_json(folder / "analysis.json", analysis)
