"""The script: the package's bits without the package, and every source where tools look for it."""

import inspect
import json
import re
import shutil
import sys
from pathlib import Path
from types import FunctionType
from typing import Any, get_args

import pytest

import scangolf
from scangolf.config import LayerKind, RunConfig
from scangolf.recipes import PRESETS
from scangolf.run import score_artifact
from scangolf.submission import checkpoint as stand_in
from scangolf.submission.bundle import bundle
from scangolf.submission.forms import code_bytes, code_bytes_at_most, train_gpt
from scangolf.train import checkpoint

PACKAGE = Path(scangolf.__file__).parent
LIBRARIES = {"torch", "triton", "numpy", "sentencepiece", "brotli"}

SOURCES = """
import importlib, inspect, json
from types import FunctionType
import train_gpt

kernels, functions = [], []
for path in train_gpt.FILES:
    if path.endswith(".py"):
        name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        module = importlib.import_module(name)
        for value in vars(module).values():
            is_kernel = hasattr(value, "fn") and hasattr(value, "run")
            function = inspect.unwrap(value.fn if is_kernel else value)
            if isinstance(function, FunctionType) and function.__module__ == name:
                source = inspect.getsource(function)
                assert f"def {function.__name__}(" in source
                assert source in train_gpt.FILES[path]
                assert function.__code__.co_filename == train_gpt.__file__ + "/" + path
                if hasattr(value, "parse"):
                    value.parse()  # as the compiler does
                (kernels if is_kernel else functions).append(function.__name__)
"""
"""Imports every module of the script beside it, and asks for the source of every function."""

KERNEL = """
import torch
from scangolf.ops.s6_step import _plain_step
from scangolf.ops.s6_triton_step import step

torch.manual_seed(0)
state, u, delta, A = torch.randn(2, 6, 4), torch.randn(2, 6), torch.randn(2, 6), -torch.rand(6, 4)
B, C, D, z = torch.randn(2, 1, 4), torch.randn(2, 1, 4), torch.randn(6), torch.randn(2, 6)
inputs = state, u, delta, A, B, C, D, z, torch.randn(6), True
for found, wanted in zip(step(*inputs), _plain_step(*inputs), strict=True):
    torch.testing.assert_close(found, wanted)
"""


@pytest.mark.parametrize("packed", [False, True], ids=["readable", "packed"])
def test_the_script_makes_the_packages_run_to_the_bit(
    packed: bool, config: RunConfig, finished: Path, python: Any, tmp_path: Path
) -> None:
    script = tmp_path / "empty" / "train_gpt.py"
    script.write_bytes(train_gpt(config, packed=packed))
    printed = python("train_gpt.py", "--out", "run")
    folder = tmp_path / "empty" / "run"
    assert records(folder) == records(finished)
    assert len(records(folder)) == config.steps + 2  # type: ignore[operator]
    assert (folder / "artifact.sg").read_bytes() == (finished / "artifact.sg").read_bytes()
    assert (folder / "config.json").read_text() == (finished / "config.json").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert json.loads(printed.splitlines()[-1]) == summary
    of_package = json.loads((finished / "summary.json").read_text())
    assert summary["code_bytes"] == script.stat().st_size
    assert (summary["code_bytes"] == of_package["code_bytes"]) == packed
    for name in ("val_bpb", "artifact_val_bpb", "val_bytes", "val_tokens", "sample", "parameters"):
        assert summary[name] == of_package[name]


def test_processes_of_torchrun_make_one_run(
    config: RunConfig, finished: Path, python: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "train_gpt.py").write_bytes(train_gpt(config, packed=True))
    launch = "-m torch.distributed.run --standalone --nproc-per-node 2 train_gpt.py --out run"
    printed = python(*launch.split())
    assert printed.count('{"preset"') == 1
    found, wanted = (records(folder) for folder in (tmp_path / "empty" / "run", finished))
    assert [line.keys() for line in found] == [line.keys() for line in wanted]
    for of_two, of_one in zip(found, wanted, strict=True):
        assert of_two == pytest.approx(of_one, rel=1e-4)


def records(folder: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without what a clock decides."""
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [
        {k: v for k, v in line.items() if k not in ("seconds", "tokens_per_second")}
        for line in lines
    ]


def test_the_script_scores_an_artifact_as_the_package_does(
    config: RunConfig, data: Path, finished: Path, python: Any, tmp_path: Path
) -> None:
    """And opens no training data, which need not be there."""
    (tmp_path / "empty" / "train_gpt.py").write_bytes(train_gpt(config, packed=True))
    artifact = str(finished / "artifact.sg")
    no_training = shutil.copytree(
        data, tmp_path / "val", ignore=lambda *_: ["story_train_000000.bin"]
    )
    printed = python("train_gpt.py", "--data", str(no_training), "--eval", artifact)
    wanted = score_artifact(
        Path(artifact), data=data, mode="plain", stride=None, seq_len=32, device="cpu"
    )
    assert printed.count("\n") == 1
    assert json.loads(printed) == wanted
    python("train_gpt.py", "--source", "source")
    written = (tmp_path / "empty" / "source").rglob("*.*")
    assert len(list(written)) == 1 + len(bundle(config.model.layers).files)


@pytest.mark.parametrize(
    ("packed", "interpreted"), [(False, False), (True, True)], ids=["readable", "packed"]
)
def test_every_source_is_found_and_a_kernel_runs(
    packed: bool, interpreted: bool, config: RunConfig, python: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "train_gpt.py").write_bytes(train_gpt(config, packed=packed))
    code = SOURCES + KERNEL * interpreted + "print(json.dumps([kernels, functions]))"
    (tmp_path / "empty" / "sources.py").write_text(code)
    kernels, functions = json.loads(python("sources.py", TRITON_INTERPRET=str(int(interpreted))))
    files = bundle(config.model.layers).files
    jitted = sum(text.count("\n@triton.jit") for text in files.values())
    assert len(kernels) == jitted > 20
    assert len(functions) > 200


def test_packed_cuda_sources_are_the_packages_but_for_comments(config: RunConfig) -> None:
    found = contents(train_gpt(config, packed=True))
    sources = {path: text for path, text in found.items() if path.endswith(".cu")}
    assert sources.keys() == {
        f"scangolf/ops/{path.name}" for path in (PACKAGE / "ops").glob("*.cu")
    }
    for path, text in sources.items():
        lines = (PACKAGE.parent / path).read_text().splitlines()
        assert "//" not in text
        assert text.split() == " ".join(line.split("//")[0] for line in lines).split()


def contents(script: bytes) -> dict[str, str]:
    """The files in a script, which is run but not as the main program."""
    path, before = Path("train_gpt.py"), list(sys.meta_path)
    try:
        namespace = {"__file__": str(path), "__name__": "script"}
        exec(script, namespace)
        files: Any = namespace["FILES"]
        return files
    finally:
        sys.meta_path[:] = before


def test_a_readable_script_holds_the_files_word_for_word(config: RunConfig) -> None:
    other = {"config.json", "scangolf/layers/__init__.py", "scangolf/train/checkpoint.py"}
    for path, text in contents(train_gpt(config, packed=False)).items():
        if text and path not in other:
            assert text == (PACKAGE.parent / path).read_text()


@pytest.mark.parametrize("kind", get_args(LayerKind))
def test_only_what_the_layers_need_and_a_competition_has(kind: LayerKind) -> None:
    found = bundle((kind,))
    assert found.libraries <= LIBRARIES
    rooms = {path.split("/")[1] for path in found.files}
    assert not rooms & {"report", "cli", "bench", "console.py", "__main__.py"}
    assert not {"scangolf/data/hub.py", "scangolf/data/text.py"} & found.files.keys()
    named = set(re.findall(r'^    "(\w+)":', found.files["scangolf/layers/__init__.py"], re.M))
    assert named == {kind}
    assert ("scangolf/ops/s6_cuda.cu" in found.files) == (kind in ("s6", "s6_seed", "lti"))
    assert ("scangolf/ops/ssd_triton.py" in found.files) == (kind in ("ssd", "parallel"))
    assert ("scangolf/ops/gdn_triton.py" in found.files) == (kind == "gdn")


def test_files_come_after_what_they_import(config: RunConfig) -> None:
    files = list(bundle(config.model.layers).files)
    order = {path: files.index(f"scangolf/{path}") for path in ("errors.py", "model.py", "run.py")}
    assert list(order) == sorted(order, key=order.__getitem__)
    assert files[-1] == "scangolf/submission/script.py"


def test_the_stand_in_offers_what_checkpoints_do() -> None:
    functions = {
        name: value
        for name, value in vars(stand_in).items()
        if isinstance(value, FunctionType) and value.__module__ == stand_in.__name__
    }
    assert len(functions) == 3
    for name, function in functions.items():
        assert inspect.signature(function) == inspect.signature(getattr(checkpoint, name))
    assert stand_in.Progress is checkpoint.Progress
    assert "--resume" in checkpoint.HOW_TO_GO_ON


STOPPED = """
import os, runpy, signal, sys, threading, time
from pathlib import Path

def stop():
    while not Path("run/metrics.jsonl").exists() or not Path("run/metrics.jsonl").stat().st_size:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGTERM)

threading.Thread(target=stop, daemon=True).start()
sys.argv = ["train_gpt.py", "--out", "run", "--steps", "1000000"]
try:
    runpy.run_path("train_gpt.py", run_name="__main__")
except SystemExit as end:
    print("exit code", end.code)
"""
"""Runs the script beside it and sends itself a signal once it trains."""


def test_a_stopped_script_offers_no_option_that_it_has_not(
    config: RunConfig, python: Any, tmp_path: Path
) -> None:
    (tmp_path / "empty" / "train_gpt.py").write_bytes(train_gpt(config, packed=True))
    (tmp_path / "empty" / "stopped.py").write_text(STOPPED)
    *_, line, code = python("stopped.py").splitlines()
    assert re.fullmatch(r"stopped after step [\d,]+; start the run anew: .*no checkpoints", line)
    assert code == "exit code 143"


@pytest.mark.parametrize("preset", ["tiny", "baseline", "hybrid"])
def test_the_quick_bound_of_the_code_is_one_and_near(preset: str) -> None:
    run = PRESETS[preset]()
    assert code_bytes(run) <= code_bytes_at_most(run) <= 1.1 * code_bytes(run)
