"""docs/mixers.md: its mixer against loops and in a model; its commands on a package that has it."""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Literal

import pytest
import torch
from pages import DOCS, blocks, commands

from scangolf import config as config_module
from scangolf.config import AttentionConfig, ModelConfig, OptimConfig
from scangolf.data.build import build_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.layers import MIXERS
from scangolf.model import HybridLM
from scangolf.train.optim import Optimiser

PAGE = "mixers.md"
ROOT = DOCS.parent
MIXER, LOOP = blocks(PAGE, "python")
NAME, SETTINGS = blocks(PAGE, "diff")
CHECKS, TRAINING, WITH_SETTINGS = map(commands, blocks(PAGE, "sh"))


@pytest.fixture
def ema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The page's file as a module, and its name where the page writes it."""
    name, path = "scangolf.layers.ema", tmp_path / "ema.py"
    path.write_text(MIXER)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setitem(MIXERS, "ema", module.EMA)  # pyright: ignore[reportArgumentType]
    monkeypatch.setattr(config_module, "LayerKind", Literal["attention", "ema"])
    return module


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("length", [1, 2, 3, 33])
def test_the_mixer_is_its_formulas(ema: ModuleType, length: int) -> None:
    """One channel and one position at a time, in Python's floats, from a state that is not zero."""
    D = 3
    torch.manual_seed(0)
    mixer = ema.EMA(ModelConfig(d_model=D)).double()
    for parameter in mixer.parameters():
        torch.nn.init.normal_(parameter)
    x_LD = torch.randn(length, D, dtype=torch.float64)
    h_D = torch.randn(1, D, dtype=torch.float64)
    found_BLD, after_BD = mixer(x_LD[None], h_D)

    projected = (x_LD @ mixer.in_proj.weight.T).tolist()
    h = h_D[0].tolist()
    for t, row in enumerate(projected):
        gated = []
        for i in range(D):
            a, v, z = row[i], row[D + i], row[2 * D + i]
            f = sigmoid(a + mixer.bias[i].item())
            h[i] = f * h[i] + (1 - f) * v
            gated.append(h[i] * z * sigmoid(z))
        y_D = mixer.out_proj.weight @ torch.tensor(gated, dtype=torch.float64)
        torch.testing.assert_close(found_BLD[0, t], mixer.out_gain * y_D)
    torch.testing.assert_close(after_BD[0], torch.tensor(h, dtype=torch.float64))


def test_the_page_compares_it_with_a_loop(ema: ModuleType) -> None:
    exec(LOOP, {})
    wrong = LOOP.replace("(1 - f_D)", "f_D")
    assert wrong != LOOP
    with pytest.raises(AssertionError, match="not close"):
        exec(wrong, {})


def test_channels_remember_2_to_1000_tokens_at_first(ema: ModuleType) -> None:
    """Evenly over the orders of magnitude: the median is their geometric mean."""
    mixer = ema.EMA(ModelConfig(d_model=4000))
    mixer.init_weights(torch.Generator().manual_seed(0))
    memory = 1 / torch.sigmoid(-mixer.bias.double())
    assert 2 - 1e-3 < memory.min() < 2.1
    assert 950 < memory.max() < 1000.1
    assert memory.median().item() == pytest.approx(math.sqrt(2000), rel=0.1)


@pytest.fixture
def model(ema: ModuleType) -> HybridLM:
    config = ModelConfig(
        vocab_size=50,
        d_model=16,
        n_layers=4,
        pattern="ema : attention",
        mlp_width=32,
        attention=AttentionConfig(n_heads=2, n_kv_heads=1),
    )
    model = HybridLM(config, seed=0)
    assert isinstance(model.blocks[2].mixer, ema.EMA)
    return model


def tokens(*shape: int) -> torch.Tensor:
    return torch.randint(50, shape, generator=torch.Generator().manual_seed(1))


def test_a_model_of_it_is_causal_and_decodes(model: HybridLM) -> None:
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3, generator=torch.Generator().manual_seed(2))
    tokens_BL = tokens(2, 20)
    logits_BLV = model(tokens_BL)
    state = model.init_state(2)
    for t in range(20):
        logits_BV, state = model.step(tokens_BL[:, t], state)
        torch.testing.assert_close(logits_BV, logits_BLV[:, t], atol=1e-5, rtol=1e-5)
    changed = tokens_BL.clone()
    changed[:, 7] = (changed[:, 7] + 1) % 50
    moved_BL = (model(changed) - logits_BLV).abs().sum(-1)
    assert (moved_BL[:, :7] == 0).all()
    assert (moved_BL[:, 7:] > 0).all()


def test_a_step_of_training_lowers_the_loss(model: HybridLM) -> None:
    """Three do so in turn, and move every parameter of the blocks."""
    inputs_BL, targets_BL = tokens(8, 32), tokens(8, 32).roll(1, 1)
    optimiser = Optimiser(model, OptimConfig())
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    losses = []
    for _ in range(3):
        loss = model(inputs_BL, targets_BL).mean()
        losses.append(loss.item())
        loss.backward()
        optimiser.step(0.1)
    assert losses[1] < losses[0]
    assert losses[2] < losses[1]
    for name, parameter in model.blocks.named_parameters(prefix="blocks"):
        assert not torch.equal(parameter, before[name]), name


# --- the page's commands ------------------------------------------------------------------------


def apply(diff: str, root: Path) -> None:
    """Each hunk, in its file, where its lines stand once."""
    for section in re.split(r"^--- ", diff, flags=re.MULTILINE)[1:]:
        name, body = section.split("\n", 1)
        for hunk in re.split(r"^@@.*\n", body, flags=re.MULTILINE):
            lines = [(line[:1], line[1:]) for line in hunk.splitlines()]
            assert {sign for sign, _ in lines} <= set("+- ")
            old, new = (
                "".join(f"{text}\n" for sign, text in lines if sign != left) for left in "+-"
            )
            text = (root / name).read_text()
            assert text.count(old) == 1, hunk
            (root / name).write_text(text.replace(old, new))


def run(words: list[str], cwd: Path, package: Path) -> str:
    program, *arguments = words
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(package), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_its_commands_on_a_package_that_has_it(tmp_path: Path) -> None:
    """Two steps of training, on the paragraphs of these pages."""
    package = tmp_path / "src"
    shutil.copytree(ROOT / "src", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "scangolf" / "layers" / "ema.py").write_text(MIXER)
    apply(NAME, tmp_path)
    (words,) = CHECKS
    assert words[0] == "pytest"
    shown = run([*words, "-p", "no:cacheprovider"], ROOT, package)
    passed = re.search(r"(\d+) passed", shown)
    assert passed is not None
    assert int(passed[1]) > 10
    assert "failed" not in shown

    texts = [text for page in sorted(DOCS.glob("*.md")) for text in page.read_text().split("\n\n")]
    documents = [(text, "train" if i % 20 else "val") for i, text in enumerate(texts)]
    data = tmp_path / "data" / "local"
    build_dataset(documents, train_tokenizer(texts, 1024), data, "local", workers=1)  # type: ignore[arg-type]
    assert TRAINING[0] == ["scangolf", "data", "local"]
    short = [*("--evals", "0"), *("--batch.tokens", "256", "--steps", "2")]
    shown = run([*TRAINING[1], *short], tmp_path, package)
    assert "ema, ema, ema, attention" in shown
    apply(SETTINGS, tmp_path)
    (words,) = WITH_SETTINGS
    shown = run([*words, *short], tmp_path, package)
    assert "ema, ema, ema, ema" in shown
    assert '"longest": 100.0' in (tmp_path / "runs" / "short" / "config.json").read_text()
