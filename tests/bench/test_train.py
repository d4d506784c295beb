"""The benchmark of training steps, on a CPU."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scangolf.bench import train
from scangolf.bench.model_flop import training_flop
from scangolf.bench.timing import Stopwatch
from scangolf.cli import main
from scangolf.config import SSDConfig
from scangolf.data.shards import Dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.model import HybridLM
from scangolf.recipes import tiny


@pytest.fixture(autouse=True)
def _made_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens, and a machine whose rate is no part of what is tested."""
    tokenizer = train_tokenizer([f"{a}{b}" for a in "abcdefghij" for b in "klmnopqrst"] * 9, 300)
    tokens: Any = np.random.default_rng(0).integers(0, 300, 9_000).astype(np.uint16)
    dataset = Dataset(Path(), tokenizer, (tokens,), (tokens,))
    monkeypatch.setattr(train, "open_dataset", lambda folder: dataset)
    monkeypatch.setattr(Stopwatch, "product_rate", lambda self, dtype: 1e12)


def test_cells_are_what_the_steps_took(capsys: pytest.CaptureFixture[str]) -> None:
    args = ["--tokens", "256", "--micro-tokens", "128", "--seconds", "0.3", "--device", "cpu"]
    main(["bench", "train", "tiny", "--lengths", "32", "64", *args, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert [cell["length"] for cell in report["cells"]] == [32, 64]
    for cell in report["cells"]:
        assert (cell["preset"], cell["batch_tokens"], cell["micro_tokens"]) == ("tiny", 256, 128)
        assert cell["steps"] >= 1
        assert cell["step_ms"] == pytest.approx(1e3 * 256 / cell["tokens_per_second"])
        flop = cell["tokens_per_second"] * training_flop(HybridLM(tiny().model), cell["length"])
        assert cell["utilisation"] == pytest.approx(flop / 1e12)
        assert (cell["peak_gib"], cell["kernels"]) == (None, [])


def test_settings_hold_for_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    changes = ["--set", "model.pattern=3 ssd : 1 attention", "model.ssd.d-state=16"]
    args = ["--tokens", "256", "--seconds", "0.1", "--device", "cpu", *changes]
    main(["bench", "train", "tiny", "--lengths", "64", *args, "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["settings"] == {
        "model.pattern": "3 ssd : 1 attention",
        "model.ssd.d_state": 16,
    }
    model = dataclasses.replace(
        tiny().model, pattern="3 ssd : 1 attention", ssd=SSDConfig(d_state=16)
    )
    (cell,) = report["cells"]
    assert cell["parameters"] == HybridLM(model).n_parameters
    main(["bench", "train", "tiny", *args])
    assert "model.ssd.d_state = 16" in capsys.readouterr().out


def test_the_table_names_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    main(["bench", "train", "--tokens", "256", "--seconds", "0.1", "--device", "cpu"])
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "tiny" in shown


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for args, message in (
        (["--seconds", "0"], "--seconds 0.0: needs more than 0"),
        (["--set", "model.n-layers"], "model.n-layers: needs a setting and its value"),
        (["--set", "model.n-layer=2"], "no such setting; did you mean model.n_layers?"),
        (["--set", "model.n-layers=two"], "model.n-layers = 'two': needs a whole number"),
        (["--profile"], "--profile: lists the kernels of a GPU, and --device is cpu"),
    ):
        with pytest.raises(SystemExit) as end:
            main(["bench", "train", "tiny", "--device", "cpu", *args])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
