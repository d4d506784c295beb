"""Runs that a SLURM cluster does."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ablation_cases import PLAN, Ablation


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
