"""Two processes make the run of one, from the first step to the score, and end as one.

Real processes on the CPU, by gloo: through torchrun as a person starts them, or spawned for what
only shows inside of them. What is compared with one process differs by rounding alone: sums of
float32 over halves of a batch, in another order. That is 1e-7 relative in a sum, and it grows
little in as few steps as are made here.
"""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from loop_cases import config, losses, made_up_dataset, trainer
from torch.multiprocessing.spawn import spawn

from scangolf.cli import main
from scangolf.config import BatchConfig, run_config_from_dict
from scangolf.data.shards import open_dataset
from scangolf.errors import Diverged, Stopped, UserError
from scangolf.run import run as run_whole
from scangolf.train import pace
from scangolf.train.checkpoint import has_checkpoint
from scangolf.train.distributed import joined
from scangolf.train.optim import Muon

ROUNDING = 1e-5
"""Relative; a hundred times one rounding of float32."""

PATIENCE = 120
"""Seconds until a job is taken to hang; on a busy machine one can take a minute."""

TRAIN = [
    "train", "tiny", "--device", "cpu",
    "--model.vocab-size", "300", "--model.d-model", "32", "--model.mlp-width", "64",
    "--batch.tokens", "512", "--batch.seq-len", "64", "--batch.micro-tokens", "128",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(dataset: Path) -> str:
    return str(dataset)


def torchrun(*args: str) -> subprocess.Popen[str]:
    """`torchrun --nproc-per-node 2 -m scangolf ...`"""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    return subprocess.Popen(
        [*launcher, "--nproc-per-node", "2", "-m", "scangolf", *args],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def wait_for(path: Path, lines: int) -> None:
    """Until a file has so many lines; two minutes at most."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        if path.exists() and path.read_text().count("\n") >= lines:
            return
        time.sleep(0.05)
    pytest.fail(f"{path} did not get {lines} lines")


def our_lines(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("scangolf: ")]


def test_two_processes_make_the_run_of_one(data: str, tmp_path: Path) -> None:
    args = [*TRAIN, "--data", data, "--steps", "12", "--evals", "1"]
    main([*args, "--out", str(tmp_path / "one")])
    job = torchrun(*args, "--out", str(tmp_path / "two"))
    said, complaints = job.communicate(timeout=PATIENCE)
    assert job.returncode == 0, complaints
    for line in ("preparing the first step", "scoring the whole", "artifact_val_bpb"):
        assert said.count(line) == 1, said

    one, two = records(tmp_path / "one"), records(tmp_path / "two")
    assert [record["step"] for record in two] == [record["step"] for record in one]
    for expected, found in zip(one, two, strict=True):
        for key in expected.keys() & {"loss", "train_bpb", "lr", "val_loss", "val_bpb", "tokens"}:
            assert found[key] == pytest.approx(expected[key], rel=ROUNDING), (expected, found)
    expected, found = (
        json.loads((tmp_path / w / "summary.json").read_text()) for w in ("one", "two")
    )
    assert (expected["world"], found["world"]) == (1, 2)
    for key in ("tokens", "val_tokens", "val_bytes", "parameters"):
        assert found[key] == expected[key]
    assert found["val_bpb"] == pytest.approx(expected["val_bpb"], rel=ROUNDING)
    # Rounding to int8 can turn one rounding of float32 into a step of 1/127 of a weight.
    assert found["artifact_val_bpb"] == pytest.approx(expected["artifact_val_bpb"], rel=1e-3)
    configs = [(tmp_path / w / "config.json").read_text() for w in ("one", "two")]
    assert configs[0] == configs[1]


def train_alone(run: Path, folder: Path, *, resume: bool = False) -> list[float]:
    """The losses of a run folder's configuration, trained by one process in `folder`."""
    saved = run_config_from_dict(json.loads((run / "config.json").read_text()), "config.json")
    alone = trainer(saved, open_dataset(Path(saved.data)), folder)
    if resume:
        alone.resume()
    alone.train()
    return losses(folder)


def test_sigterm_leaves_a_checkpoint_that_one_process_goes_on_from(
    data: str, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    job = torchrun(*TRAIN, "--data", data, "--steps", "40", "--out", str(run))
    wait_for(run / "metrics.jsonl", 5)
    job.send_signal(signal.SIGTERM)
    said, _ = job.communicate(timeout=PATIENCE)
    assert job.returncode != 0
    assert said.count("; continue with --resume from the last checkpoint") == 1
    done = len(losses(run))
    assert 5 <= done < 40
    assert list((run / "checkpoint").glob("step-*")) == [
        run / "checkpoint" / f"step-{done:08d}.safetensors"
    ]
    found = train_alone(run, run, resume=True)
    assert len(found) == 40
    assert found == pytest.approx(train_alone(run, tmp_path / "whole"), rel=ROUNDING)


@pytest.mark.skipif(sys.platform != "linux", reason="finds the worker in /proc")
def test_a_killed_worker_ends_the_job_with_a_checkpoint(data: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    args = [*TRAIN, "--data", data, "--steps", "40", "--checkpoint-seconds", "0.05"]
    job = torchrun(*args, "--out", str(run))
    wait_for(run / "metrics.jsonl", 5)
    os.kill(worker_of(job.pid, rank=1), signal.SIGKILL)
    _, complaints = job.communicate(timeout=PATIENCE)
    assert job.returncode != 0
    (line,) = our_lines(complaints)
    assert "another process of this run ended before it was done; continue with --resume" in line
    assert "Connection closed" not in complaints

    assert has_checkpoint(run / "checkpoint")
    found = train_alone(run, run, resume=True)
    assert len(found) == 40
    assert found == pytest.approx(train_alone(run, tmp_path / "whole"), rel=ROUNDING)


def worker_of(launcher: int, rank: int) -> int:
    children = Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split()
    for child in map(int, children):
        if f"\0RANK={rank}\0".encode() in Path(f"/proc/{child}/environ").read_bytes():
            return child
    pytest.fail(f"{launcher} has no worker {rank}")


def test_only_the_first_process_complains(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "test")
    for rank, lines in ((0, 1), (1, 0)):
        monkeypatch.setenv("RANK", str(rank))
        with pytest.raises(SystemExit) as end:
            main(["train", "tinny"])
        assert end.value.code == 2
        assert len(our_lines(capsys.readouterr().err)) == lines


# --- inside the processes -----------------------------------------------------------------------


def inside(rank: int, folder: Path, data: str, port: int) -> None:
    """What one of two processes finds; into a file, for the test to judge."""
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ["TORCHELASTIC_RUN_ID"] = "test"
    dataset = made_up_dataset()
    found: dict[str, Any] = {"folder": folder}
    with joined() as world:
        run = config(steps=6)
        pace.FIRST_SIZE = 1e-3
        sizes = []
        shared = trainer(
            run, dataset, folder / "run", world, lambda model: sizes.append(1) or "small"
        )
        with shared.batches as batches:
            found["batches"] = [next(batches)[0] for _ in range(shared.micro_steps)]
        shared.batches.seek(0)
        settle = shared._settle

        def interrupt(launched: Any) -> None:
            settle(launched)
            if launched.step == 3 and rank == 1:
                os.kill(os.getpid(), signal.SIGTERM)

        shared._settle = interrupt  # type: ignore[method-assign]
        try:
            shared.train()
        except Stopped as stopped:
            found["stopped"] = stopped.exit_code, shared.progress.step
        found["sizes"] = len(sizes)
        found["weights"] = [p.detach().clone() for p in shared.model.parameters()]
        found["momenta"] = sum(m.numel() for m in shared.optimiser.muon.momenta)
        resumed = trainer(run, dataset, folder / "run", world)
        resumed.resume()
        resumed.train()
        found["losses"] = losses(folder / "run")

        poisoned = trainer(run, dataset, folder / "poisoned", world)
        with torch.no_grad():
            poisoned.model.embedding.weight.fill_(float("nan"))
        try:
            poisoned.train()
        except Diverged as error:
            found["diverged"] = str(error)

        found["muon"] = muon_steps(lambda parameters: Muon(parameters, config().optim, world))
        try:
            world.together(lambda: complain(rank))
        except UserError as error:
            found["together"] = str(error)
        try:
            world.first(lambda: complain(1))
        except UserError as error:
            found["first"] = str(error)
        found["largest"] = world.largest([rank, -rank, 1 / 3 if rank == 0 else 0])
        uneven = dataclasses.replace(run, data=data, batch=BatchConfig(192, 64, 64))
        try:
            run_whole(uneven, folder / "refused", code_bytes=0, world=world)
        except UserError as error:
            found["refusal"] = str(error)
        found["threads"] = [gloo_threads()]
    found["threads"].append(gloo_threads())
    torch.save(found, folder / f"{rank}.pt")


def gloo_threads() -> int:
    names = (task.read_text() for task in Path("/proc/self/task").glob("*/comm"))
    return sum("gloo" in name for name in names)


def complain(rank: int) -> None:
    if rank == 1:
        raise UserError("the data of 1 is gone")


def muon_steps(make: Any) -> list[torch.Tensor]:
    """Weights after two steps on seeded gradients."""
    generator = torch.Generator().manual_seed(5)
    shapes = [(16, 24), (24, 16), (16, 24), (20, 20), (16, 24)]
    weights = {
        str(i): torch.nn.Parameter(torch.randn(s, generator=generator))
        for i, s in enumerate(shapes)
    }
    muon = make(weights)
    for _ in range(2):
        for weight in weights.values():
            weight.grad = torch.randn(weight.shape, generator=generator)
        muon.step(lr=0.1)
    return [weight.detach() for weight in weights.values()]


@pytest.fixture(scope="module")
def found(data: str, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What `inside` found in either process."""
    folder = tmp_path_factory.mktemp("inside")
    processes = spawn(inside, (folder, data, free_port()), nprocs=2, join=False)
    assert processes is not None
    try:
        deadline = time.monotonic() + PATIENCE
        while not processes.join(timeout=1):
            assert time.monotonic() < deadline, "the processes wait for each other"
    finally:
        for process in filter(None, processes.processes):
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def test_the_data_is_split_without_overlap_or_loss(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    """A step's sequences, by content: no two of this text are alike."""
    alone = trainer(config(), made_up_dataset(), tmp_path / "alone")
    with alone.batches as batches:
        expected = torch.cat([next(batches)[0] for _ in range(alone.micro_steps)])
    rows = [[tuple(row.tolist()) for row in torch.cat(one["batches"])] for one in found]
    assert len(rows[0]) == len(rows[1]) == 4
    assert not set(rows[0]) & set(rows[1])
    assert set(rows[0]) | set(rows[1]) == {tuple(row.tolist()) for row in expected}


def test_a_signal_to_one_process_stops_both_after_the_same_step(
    found: list[dict[str, Any]],
) -> None:
    assert [one["stopped"] for one in found] == [(128 + signal.SIGTERM, 3)] * 2


def test_two_processes_go_on_from_their_checkpoint(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    """The first one told the size before, while the other trained on."""
    trainer(config(steps=6), made_up_dataset(), tmp_path / "alone").train()
    assert found[0]["sizes"] >= 1
    assert found[1]["sizes"] == 0
    assert found[0]["losses"] == pytest.approx(losses(tmp_path / "alone"), rel=ROUNDING)


def test_processes_keep_the_same_weights_and_half_the_momentum(
    found: list[dict[str, Any]], tmp_path: Path
) -> None:
    for one, other in zip(found[0]["weights"], found[1]["weights"], strict=True):
        assert torch.equal(one, other)
    alone = trainer(config(steps=3), made_up_dataset(), tmp_path / "alone")
    matrices = sum(matrix.numel() for matrix in alone.optimiser.muon.matrices)
    shares = [one["momenta"] for one in found]
    assert sum(shares) == matrices
    assert max(shares) < 0.6 * matrices


def test_a_loss_that_is_not_finite_ends_both(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert "the loss is nan at step 1; there is no checkpoint yet" in one["diverged"]


def test_shared_muon_is_muon(found: list[dict[str, Any]]) -> None:
    expected = muon_steps(lambda parameters: Muon(parameters, config().optim))
    for one in found:
        torch.testing.assert_close(one["muon"], expected, rtol=1e-5, atol=1e-6)


def test_an_error_of_one_is_the_error_of_both(found: list[dict[str, Any]]) -> None:
    assert [one["together"] for one in found] == ["the data of 1 is gone"] * 2
    assert [one["first"] for one in found] == ["the data of 1 is gone"] * 2


def test_the_largest_of_each(found: list[dict[str, Any]]) -> None:
    assert [one["largest"] for one in found] == [[1.0, 0.0, 1 / 3]] * 2


def test_a_step_that_cannot_be_shared_leaves_nothing(found: list[dict[str, Any]]) -> None:
    for one in found:
        assert "192: 3 sequences of 64 cannot be shared by 2 processes" in one["refusal"]
    assert not found[0]["folder"].joinpath("refused").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="finds the threads in /proc")
def test_gloo_ends_with_the_group(found: list[dict[str, Any]]) -> None:
    """A thread of gloo's that is still there when Python ends may abort the process."""
    for one in found:
        during, after = one["threads"]
        assert during > 0
        assert after == 0
