"""A small run of the package, a submission, and what runs a script far from the package."""

import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from bundles import Bundle, make_bundle

from scangolf.config import ArtifactConfig, BatchConfig, RunConfig, SSDConfig
from scangolf.data.build import build_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.recipes import tiny
from scangolf.run import run
from scangolf.submission.forms import code_bytes

TEXTS = [
    f"The {a} {b} went to the {c} and met a {b} from the {c}."
    for a in ("old", "young", "small", "quiet")
    for b in ("fox", "owl", "bear", "cat", "hare")
    for c in ("river", "hill", "town", "wood", "lake")
]
ABSENT = (
    "scangolf", "cattrs", "tyro", "rich", "safetensors", "zstandard", "matplotlib", "jinja2",
    "huggingface_hub", "scipy",
)  # fmt: skip
BLOCKER = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {ABSENT}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path.insert(0, Absent())
"""


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("submission") / "data"
    documents = [(text, "val" if i % 5 == 2 else "train") for i, text in enumerate(TEXTS)]
    build_dataset(documents, train_tokenizer(TEXTS, 290), folder, "story", workers=1)  # type: ignore[arg-type]
    return folder


@pytest.fixture(scope="session")
def config(data: Path) -> RunConfig:
    base = tiny()
    return dataclasses.replace(
        base,
        steps=4,
        evals=1,
        device="cpu",
        data=str(data),
        model=dataclasses.replace(
            base.model,
            vocab_size=json.loads((data / "manifest.json").read_text())["vocab_size"],
            d_model=32,
            n_layers=3,
            mlp_width=64,
            pattern="s6, ssd, attention",
            ssd=SSDConfig(d_state=8, head_dim=16),
        ),
        batch=BatchConfig(tokens=128, seq_len=32, micro_tokens=64),
        artifact=ArtifactConfig(limit_bytes=1_000_000),
    )


@pytest.fixture(scope="session")
def finished(config: RunConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the run that the package made."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    run(config, folder, code_bytes=code_bytes(config))
    return folder


Python = Callable[..., str]


@pytest.fixture
def python(tmp_path: Path) -> Python:
    """Runs Python in an empty folder, where nothing is installed but what a script may use.

    Returns what it printed.
    """
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKER)
    (tmp_path / "empty").mkdir()

    def python(*args: str, **variables: str) -> str:
        done = subprocess.run(
            [sys.executable, *args],
            cwd=tmp_path / "empty",
            env=os.environ
            | {"PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
            | {"TRITON_INTERPRET": "0"}
            | variables,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    return python


@pytest.fixture(scope="session")
def good(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture
def bundle(good: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break."""
    return good.copy(tmp_path)
