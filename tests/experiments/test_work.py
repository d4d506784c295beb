"""Runs of a plan: alone, shared, stopped, killed, and without room."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from ablation_cases import PLAN, Ablation

from scangolf.experiments.plan import read_plan, resolve
from scangolf.experiments.turns import Turns
from scangolf.experiments.work import MEMORY_WAS_FULL, Job, record_failure, work
from scangolf.train.loop import Trainer


def test_an_interrupt_before_or_after_the_training_is_no_failure(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    job = Ablation(tmp_path, dataset, PLAN).job("attention", 1)
    monkeypatch.setattr("scangolf.run.run", interrupt)
    with pytest.raises(SystemExit) as end:
        work(job)
    assert end.value.code == 128 + signal.SIGINT
    assert [*job.folder.iterdir()] == []


def test_two_processes_share_a_plan(tmp_path: Path, dataset: Path) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN)
    processes = [ablation.start() for _ in range(2)]
    for process in processes:
        process.communicate()
        assert process.returncode == 0
    for seed in (1, 2):
        assert ablation.begun("attention", seed) == 1
        assert ablation.summary("attention", seed)["seed"] == seed


def test_a_run_trains_alone_and_does_all_else_beside_others(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN)
    job = ablation.job("attention", 1)
    seen: list[tuple[str, set[str]]] = []

    def look(when: str) -> None:
        names = ("config.json", "checkpoint", "summary.json", "analysis.json")
        seen.append((when, {name for name in names if (job.folder / name).exists()}))

    class Watched(Turns):
        def __enter__(self) -> "Watched":
            look("begins")
            return self

        @contextmanager
        def alone(self, say: Callable[[str], None]) -> Iterator[None]:
            look("trains")
            yield
            look("goes on")

        def __exit__(self, *_: object) -> None:
            look("ends")

    monkeypatch.setattr(Turns, "on", lambda device: Watched(None))
    work(job)
    assert seen == [
        ("begins", set()),
        ("trains", {"config.json"}),
        ("goes on", {"config.json", "checkpoint"}),
        ("ends", {"config.json", "checkpoint", "summary.json", "analysis.json"}),
    ]


def test_a_signal_stops_the_run_and_the_plan(tmp_path: Path, dataset: Path) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN)
    process = ablation.start("--seconds", "100")
    metrics = ablation.out / "attention" / "seed-1" / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > 3):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert process.returncode == 128 + signal.SIGTERM
    assert (metrics.parent / "checkpoint" / "latest.json").exists()
    assert not (metrics.parent / "error.txt").exists()
    assert not (ablation.out / "attention" / "seed-2").exists()
    assert not [*ablation.out.rglob("claim-*")]


def test_a_process_that_is_killed_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scangolf.experiments import ablate

    config = resolve(read_plan(Ablation(tmp_path, tmp_path, PLAN).plan)).configs["attention"]
    job = Job("attention", config, tmp_path / "run")
    job.folder.mkdir()
    monkeypatch.setattr(ablate, "work", kill_itself)
    ablate._do(job, None)
    assert job.state() == "failed"
    assert "its process ended with SIGKILL" in job.error()
    capsys.readouterr()
    lost = dataclasses.replace(job, folder=tmp_path / "run" / "error.txt" / "below")
    ablate._do(lost, None)
    assert f"{lost.folder}: Not a directory; its run has not been done" in capsys.readouterr().out


def kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_found_no_room_is_done_once_more_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from scangolf.experiments import ablate

    config = resolve(read_plan(Ablation(tmp_path, tmp_path, PLAN).plan)).configs["attention"]
    config = dataclasses.replace(config, steps=None, seconds=20.0)
    jobs = [Job(name, config, tmp_path / name) for name in ("small", "large", "too-large", "last")]
    for job in jobs:
        job.folder.mkdir()
    monkeypatch.setattr(ablate, "work", find_no_room)
    ablate._do_all(jobs, None)
    assert [job.state() for job in jobs] == ["finished", "finished", "failed", "finished"]
    shown = [line for line in capsys.readouterr().out.splitlines() if line.startswith("run ")]
    assert [line.split(",")[0].split()[1] for line in shown] == ["1", "2", "3", "4", "2", "3"]
    assert shown[0].endswith("0 finished, 0 failed, 80 s of training left")
    assert "; 1 finished, 0 failed, about " in shown[1]


def find_no_room(job: Job, _: object) -> None:
    """Not at all, the first time, or always, by its name."""
    tried_before = job.error_file.exists()
    if job.variant == "too-large" or (job.variant == "large" and not tried_before):
        record_failure(job, "no room")
        raise SystemExit(MEMORY_WAS_FULL)
    (job.folder / "summary.json").write_text("{}")


def test_a_full_memory_is_told_in_a_line(
    tmp_path: Path, dataset: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fill(_: Trainer) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 128.00 MiB.")

    job = Ablation(tmp_path, dataset, PLAN).job("attention", 1)
    monkeypatch.setattr(Trainer, "train", fill)
    with pytest.raises(SystemExit) as end:
        work(job)
    assert end.value.code == MEMORY_WAS_FULL
    assert job.error_file.read_text() == (
        "--batch.micro-tokens 512: tiny is too large for the memory of cpu; take fewer, of which a "
        "step then has more, or end what else uses that memory\n"
    )


def test_a_run_is_claimed_before_torch_is_there() -> None:
    """Which takes seconds, in which other processes would find the run free."""
    look = "import sys; import scangolf.experiments.work; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", look], check=False).returncode == 0
