"""From an artifact on disk to a model that runs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from scangolf.artifact.codec import Artifact, read_artifact
from scangolf.config import ModelConfig
from scangolf.data.tokenizer import Tokenizer
from scangolf.device import compute_dtype
from scangolf.errors import UserError
from scangolf.model import HybridLM


def load(path: Path | str, device: torch.device | str = "cpu") -> tuple[HybridLM, Tokenizer]:
    """The model and tokenizer of an artifact file, or of a run folder that holds one.

    The model is in evaluation mode on `device` and computes in bf16 on a GPU that has it, in
    float32 elsewhere. Raises UserError for a file that is missing, damaged or not an artifact;
    nothing in the file is ever run.
    """
    file = artifact_file(Path(path))
    artifact = read_artifact(file)
    return build(artifact, file, device), artifact.tokenizer


def artifact_file(path: Path) -> Path:
    """The artifact that is `path`, or that lies in this run folder; a UserError where none is."""
    if not path.exists():
        raise UserError(f"{path}: no such file or folder; name a run folder or an artifact.sg")
    if not path.is_dir():
        return path
    file = path / "artifact.sg"
    if file.exists():
        return file
    if (path / "config.json").exists():
        raise UserError(f"{path}: holds no artifact.sg; train --resume finishes its run")
    raise UserError(f"{path}: not a run folder; name the --out folder of a training")


def build(artifact: Artifact, path: Path, device: torch.device | str) -> HybridLM:
    """The model of an artifact that was read from `path`, as `load` returns it."""
    _check_tensors(path, artifact.model_config, artifact.state)
    model = HybridLM(artifact.model_config, seed=None)
    model.load_state_dict(artifact.state)
    model = model.to(device).eval()
    model.compute_dtype = compute_dtype(torch.device(device))
    return model


def _check_tensors(path: Path, config: ModelConfig, state: Mapping[str, Tensor]) -> None:
    """Compares names and shapes with the configuration's, before any memory is taken for it."""
    expected = {}
    if config.n_layers <= len(state):
        try:
            with torch.device("meta"):
                model = HybridLM(config, seed=None)
        except (RuntimeError, TypeError, OverflowError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(
                f"{path}: no model of its configuration can be built ({reason}); the file was not "
                "written by this version of scangolf"
            ) from error
        expected = {name: p.shape for name, p in model.named_parameters()}
    found = {name: tensor.shape for name, tensor in state.items()}
    wrong = sorted(n for n in expected | found if expected.get(n) != found.get(n))
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} tensors are not those of its configuration, {wrong[0]} among "
            "them; the file was not written by this version of scangolf"
        )
