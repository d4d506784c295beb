"""Files whose configuration lies about the model, and folders that hold no artifact."""

import dataclasses
from pathlib import Path

import pytest
import torch
from artifact_cases import TOKENIZER

from scangolf.artifact.codec import save_artifact
from scangolf.artifact.load import load
from scangolf.config import ModelConfig
from scangolf.errors import UserError
from scangolf.model import HybridLM

CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=16, n_layers=1, mlp_width=8)


@pytest.mark.parametrize("d_model", [2**33, 2**70])
def test_a_width_beyond_any_memory(tmp_path: Path, d_model: int) -> None:
    model = HybridLM(CONFIG)
    path = tmp_path / "artifact.sg"
    lying = dataclasses.replace(CONFIG, d_model=d_model)
    state = {name: p.detach() for name, p in model.named_parameters()}
    save_artifact(path, state, model.parameter_groups(), lying, TOKENIZER, "int8-brotli")
    with pytest.raises(UserError, match="no model of its configuration can be built") as error:
        load(path, torch.device("cpu"))
    assert "\n" not in str(error.value)


def test_where_no_artifact_is(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such file or folder; name a run folder or"):
        load(tmp_path / "nowhere")
    with pytest.raises(UserError, match="not a run folder; name the --out folder"):
        load(tmp_path)
    (tmp_path / "config.json").touch()
    with pytest.raises(UserError, match=r"holds no artifact\.sg; train --resume finishes its run"):
        load(str(tmp_path))
