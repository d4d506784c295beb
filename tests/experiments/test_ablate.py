"""Ablations: checked before anything starts, resumed, shared, and not stopped by one failure."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from test_claims import write_claim

from scangolf.cli import main
from scangolf.config import to_dict
from scangolf.data.shards import read_shard, write_shard
from scangolf.errors import UserError
from scangolf.experiments.plan import read_plan, resolve
from scangolf.experiments.turns import Turns
from scangolf.experiments.work import MEMORY_WAS_FULL, Job, record_failure, work
from scangolf.records import write_json
from scangolf.run import run
from scangolf.submission.forms import code_bytes_at_most
from scangolf.train.loop import Trainer

PLAN = """
preset = "tiny"
seeds = [1, 2]
steps = 3
[settings]
device = "cpu"
evals = 0
model.vocab_size = 300
model.d_model = 32
model.n_layers = 2
model.mlp_width = 32
batch.tokens = 512
batch.seq_len = 64
batch.micro_tokens = 512
[variants.attention]
model.pattern = "attention"
"""
SCAN = '[variants.scan]\nmodel.pattern = "s6"\n'
WILD = '[variants.wild]\nmodel.pattern = "attention"\noptim.matrix_lr = 1e38\n'


@pytest.fixture(autouse=True)
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the processes that do the runs."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class Ablation:
    """A plan in a folder, and the command that does it."""

    def __init__(self, folder: Path, dataset: Path, text: str) -> None:
        self.plan, self.out = folder / "mine.toml", folder / "runs"
        self.plan.write_text(text)
        self.args = ["ablate", str(self.plan), "--out", str(self.out), "--data", str(dataset)]
        self.data = str(dataset)

    def __call__(self, *more: str) -> int:
        """Runs it to its exit code."""
        try:
            main([*self.args, *more])
        except SystemExit as end:
            return int(end.code or 0)
        return 0

    def start(self, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "scangolf", *self.args, *more]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def job(self, variant: str, seed: int) -> Job:
        config = resolve(read_plan(self.plan), data=self.data).configs[variant]
        folder = self.out / variant / f"seed-{seed}"
        return Job(variant, dataclasses.replace(config, seed=seed), folder)

    def summary(self, variant: str, seed: int) -> dict[str, Any]:
        return json.loads((self.out / variant / f"seed-{seed}" / "summary.json").read_text())

    def begun(self, variant: str, seed: int) -> int:
        """How often a run was begun or continued."""
        log = (self.out / variant / f"seed-{seed}" / "train.log").read_text()
        return log.count("preparing the first step")


def steps(folder: Path) -> list[int]:
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [record["step"] for record in records if "loss" in record]


def test_every_bad_variant_is_named_and_nothing_starts(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = (
        "[variants.typo]\nmodel.d_modle = 64\n"
        "[variants.too-long]\nmodel.pattern = 's6'\nbatch.seq_len = 8192\nbatch.tokens = 8192\n"
        "batch.micro_tokens = 8192\n"
    )
    assert Ablation(tmp_path, dataset, PLAN + SCAN + bad)() == 2
    complaint = capsys.readouterr().err
    assert "mine: 2 of 4 variants cannot be run, so none was started" in complaint
    assert "\n  typo: model.d_modle: no such setting; did you mean model.d_model?\n" in complaint
    assert "\n  too-long: the validation split has" in complaint
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]


def test_a_dry_run_shows_all_and_trains_nothing(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert Ablation(tmp_path, dataset, PLAN + SCAN)("--dry-run") == 0
    shown = capsys.readouterr().out
    assert "mine: 2 variants of tiny, 2 seeds each, 3 steps a run: 4 runs" in shown
    assert "model.pattern = s6" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["mine.toml"]
    other_tokens = Ablation(tmp_path, dataset, PLAN.replace("300", "301"))
    assert other_tokens("--dry-run") == 2
    assert "model.vocab_size is 301, the tokenizer of" in capsys.readouterr().err
    no_data = Ablation(tmp_path, tmp_path / "nowhere", PLAN + SCAN)
    assert no_data("--dry-run") == 2
    printed = capsys.readouterr()
    assert "\n  attention, scan: " + str(tmp_path / "nowhere") in printed.err
    assert printed.out == ""


@pytest.mark.parametrize(
    ("scheme", "left", "told"),
    [
        ("int8-brotli", 10_000, "2 of these are above the limit"),
        ("mixed-rans", 10_000, ""),
        ("mixed-rans", 5_000, "2 of these have fewer than 3.25 bits for every weight"),
        ("mixed-rans", 1_000, "variants cannot be run"),
        ("mixed-rans", -90_000, "variants cannot be run"),
    ],
)
def test_a_dry_run_tells_what_may_not_fit(
    tmp_path: Path,
    dataset: Path,
    capsys: pytest.CaptureFixture[str],
    scheme: str,
    left: int,
    told: str,
) -> None:
    """By the bytes that are left beside the code."""
    config = Ablation(tmp_path, dataset, PLAN).job("attention", 1).config
    code = code_bytes_at_most(config)
    artifact = f"artifact.limit_bytes = {code + left}\nartifact.scheme = '{scheme}'\n"
    plan = PLAN.replace("[variants", artifact + "[variants") + WILD
    assert Ablation(tmp_path, dataset, plan)("--dry-run") == (2 if "cannot" in told else 0)
    captured = capsys.readouterr()
    assert told in captured.out + captured.err
    assert told or "of these" not in captured.out


def test_done_once_continued_after_an_interruption_and_not_stopped_by_a_failure(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN.replace("[1, 2]", "[1]") + WILD + SCAN)
    interrupted = ablation.job("scan", 1)
    run(dataclasses.replace(interrupted.config, steps=2), interrupted.folder, code_bytes=0)
    (interrupted.folder / "summary.json").unlink()
    write_json(interrupted.folder / "config.json", to_dict(interrupted.config))
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    write_claim(interrupted.folder, pid=gone.pid)
    assert interrupted.state() == "interrupted"
    capsys.readouterr()

    assert ablation() == 1
    shown = capsys.readouterr().out
    assert "failed: the loss is nan at step" in shown
    assert "wild" in shown
    assert ablation.job("wild", 1).state() == "failed"
    assert "the loss is nan" in (tmp_path / "runs/wild/seed-1/error.txt").read_text()
    for variant in ("attention", "scan"):
        assert ablation.summary(variant, 1)["steps"] == 3
        assert steps(tmp_path / "runs" / variant / "seed-1") == [1, 2, 3]
    assert "resumed after step 2" in (interrupted.folder / "train.log").read_text()
    assert not [*ablation.out.rglob("claim-*")]

    # Again: what is finished is left alone; what failed is tried once more, and may succeed now.
    ablation.plan.write_text(ablation.plan.read_text().replace("1e38", "0.03"))
    assert ablation("--dry-run") == 2
    assert "holds a run with optim.matrix_lr = 1e+38, the plan says 0.03" in capsys.readouterr().err
    (tmp_path / "runs/wild/seed-1/config.json").unlink()
    assert ablation() == 0
    assert ablation.summary("wild", 1)["steps"] == 3
    assert [ablation.begun(v, 1) for v in ("attention", "wild", "scan")] == [1, 2, 2]


def test_what_comes_after_the_training_is_made_up_for(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a run that was stopped after its summary; once its artifact is gone there is no need."""
    ablation = Ablation(tmp_path, dataset, PLAN.replace("[1, 2]", "[1]"))
    assert ablation() == 0
    job = ablation.job("attention", 1)
    for name in ("report.html", "analysis.json"):
        made = (job.folder / name).read_bytes()
        (job.folder / name).unlink()
        assert job.state() == "interrupted"
        assert ablation() == 0
        assert job.state() == "finished"
        assert (job.folder / name).read_bytes() == made
    assert ablation.begun("attention", 1) == 1

    (job.folder / "report.html").unlink()
    (job.folder / "report.html").mkdir()  # in the way
    (job.folder / "analysis.json").unlink()
    assert ablation() == 1
    assert job.state() == "failed"
    (job.folder / "report.html").rmdir()
    assert job.state() == "failed"
    (job.folder / "artifact.sg").unlink()
    assert job.state() == "finished"


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


def test_other_text_at_the_same_path(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither a plan nor a run goes on with it."""
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    ablation = Ablation(tmp_path, data, PLAN.replace("[1, 2]", "[1]"))
    assert ablation() == 0
    (shard,) = data.glob("*_train_*.bin")
    tokens = np.array(read_shard(shard))
    tokens[len(tokens) // 2] += 1
    write_shard(shard, tokens)
    capsys.readouterr()
    assert ablation("--dry-run") == 2
    assert f"holds a run on other text than is in {data} now" in capsys.readouterr().err
    folder = ablation.job("attention", 1).folder
    (folder / "summary.json").unlink()
    assert ablation() == 1
    assert "is of a run with other train text than --data has" in capsys.readouterr().out


def test_one_folder_that_cannot_be_made(
    tmp_path: Path, dataset: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN + SCAN)
    ablation.out.mkdir()
    (ablation.out / "attention").touch()
    assert ablation("--dry-run") == 2
    assert "runs/attention: is no folder; choose another --out" in capsys.readouterr().err


def test_a_run_from_before_a_setting_existed_is_the_plans(tmp_path: Path, dataset: Path) -> None:
    """It did what the setting's default does, and no other value of it."""
    job = Ablation(tmp_path, dataset, PLAN).job("attention", 1)
    job.folder.mkdir(parents=True)
    older = to_dict(job.config)
    del older["model"]["loops"]
    write_json(job.folder / "config.json", older)
    job.check_folder()
    model = dataclasses.replace(job.config.model, loops=2)
    looped = dataclasses.replace(job, config=dataclasses.replace(job.config, model=model))
    with pytest.raises(UserError, match=r"with model\.loops = 1, the plan says 2"):
        looped.check_folder()
    write_json(job.folder / "config.json", older | {"novelty": 1})
    with pytest.raises(UserError, match="of this version: novelty is not known"):
        job.check_folder()


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


def kill_itself(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


# --- SLURM --------------------------------------------------------------------------------------


class FakeExecutor:
    made: list["FakeExecutor"] = []

    def __init__(self, folder: Path, cluster: str) -> None:
        if folder.parents[1].name == "no-cluster":
            raise RuntimeError('Could not detect "srun"')
        self.folder, self.cluster, self.submitted = folder, cluster, []
        self.made.append(self)

    def update_parameters(self, **parameters: object) -> None:
        self.parameters = parameters

    def map_array(self, function: Any, *columns: list[Any]) -> list[SimpleNamespace]:
        self.submitted = [(function.__name__, *row) for row in zip(*columns, strict=True)]
        return [SimpleNamespace(job_id=f"7_{i}") for i in range(len(self.submitted))]


def test_slurm_gets_the_runs_that_are_not_finished(
    tmp_path: Path,
    dataset: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ablation = Ablation(tmp_path, dataset, PLAN)
    assert ablation("--slurm", "gpu") == 2
    assert "pip install 'scangolf[slurm]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "submitit", SimpleNamespace(AutoExecutor=FakeExecutor))
    assert ablation("--slurm", "gpu") == 2
    assert "the plan's budget is in steps; give --seconds" in capsys.readouterr().err
    elsewhere = str(tmp_path / "no-cluster")
    assert ablation("--slurm", "gpu", "--seconds", "90", "--out", elsewhere) == 2
    assert '--slurm: Could not detect "srun"; submit from' in capsys.readouterr().err
    finished = ablation.out / "attention" / "seed-1"
    finished.mkdir(parents=True)
    (finished / "summary.json").write_text("{}")
    assert ablation("--slurm", "gpu", "--seconds", "90") == 0
    assert "job 7_0: attention, seed 2" in capsys.readouterr().out
    (executor,) = FakeExecutor.made
    assert (executor.folder, executor.cluster) == (ablation.out / "slurm" / "%j", "slurm")
    assert executor.parameters == {
        "name": "mine", "slurm_partition": "gpu", "gpus_per_node": 1, "timeout_min": 62,
    }  # fmt: skip
    ((function, job, track),) = executor.submitted
    assert (function, job.config.seed, job.config.seconds, track) == ("work", 2, 90.0, None)
