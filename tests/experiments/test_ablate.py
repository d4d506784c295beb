"""Ablations: checked before anything starts, continued, and not mixed with other runs."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ablation_cases import PLAN, SCAN, WILD, Ablation, steps
from test_claims import write_claim

from scangolf.config import to_dict
from scangolf.data.shards import read_shard, write_shard
from scangolf.errors import UserError
from scangolf.records import write_json
from scangolf.run import run
from scangolf.submission.forms import code_bytes_at_most


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
