"""A run from text to sample, resumed, and told to be too large."""

import json
import math
import re
import shutil
from pathlib import Path

import pytest
from cli_cases import TRAIN, refusal

from scangolf.cli import main
from scangolf.data.shards import open_dataset
from scangolf.recipes import PRESETS
from scangolf.train import pace


def test_from_text_to_a_scored_artifact(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(dataset), tmp_path / "run"
    main([*TRAIN, "--data", data, "--out", str(run)])
    assert "artifact_val_bpb" in capsys.readouterr().out
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint", "artifact.sg", "summary.json",
        "analysis.json", "report.html", "train.log",
    }  # fmt: skip

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["tokens"] == 12 * 512
    assert summary["epochs"] == 12 * 512 / sum(map(len, open_dataset(dataset).train))
    assert summary["artifact_bytes"] == (run / "artifact.sg").stat().st_size
    assert summary["total_bytes"] == summary["artifact_bytes"] + summary["code_bytes"]
    assert summary["fits"] is True
    assert summary["artifact_val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.01)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_bpb" in record] == [6, 12]
    assert records[-1]["val_bpb"] == summary["val_bpb"]

    analysis = json.loads((run / "analysis.json").read_text())
    assert analysis["steps"] == 12
    assert [scan["kind"] for scan in analysis["scans"]] == ["s6", "s6", "s6"]
    nats, n_bytes = (sum(analysis["positions"][name]) for name in ("nats", "bytes"))
    bits = nats / math.log(2) / n_bytes
    assert bits == pytest.approx(summary["artifact_val_bpb"], rel=1e-6)
    assert "What the scans remember" in (run / "report.html").read_text()

    main(["eval", str(run), "--device", "cpu", "--json"])
    score = json.loads(capsys.readouterr().out)
    assert score["val_bpb"] == pytest.approx(summary["artifact_val_bpb"], rel=1e-6)
    assert score["val_tokens"] == summary["val_tokens"]
    assert score["val_bytes"] == summary["val_bytes"]
    main(["eval", str(run / "artifact.sg"), "--data", data, "--seq-len", "64", "--json"])
    assert json.loads(capsys.readouterr().out)["val_bpb"] == pytest.approx(score["val_bpb"])

    main(["quantize", str(run), "--bytes", "19000", "--device", "cpu", "--json"])
    smaller = json.loads(capsys.readouterr().out)
    assert smaller["artifact"] == str(run / "quantized.sg")
    # Codes of so small a file are coarse.
    assert 0.98 * 19_000 < smaller["artifact_bytes"] <= 19_000 < summary["artifact_bytes"]
    assert smaller["val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.06)
    assert smaller["val_tokens"] == summary["val_tokens"]
    main(["eval", str(run / "quantized.sg"), "--data", data, "--seq-len", "64", "--json"])
    assert json.loads(capsys.readouterr().out)["val_bpb"] == pytest.approx(smaller["val_bpb"])
    assert "do not fit into 99 bytes" in refusal(capsys, "quantize", str(run), "--bytes", "99")

    for out in ("config.json", "artifact.sg"):
        before = (run / out).read_bytes()
        quantize = ("quantize", str(run), "--bytes", "19000", "--out", str(run / out))
        assert "is the run's own artifact, or none at all" in refusal(capsys, *quantize)
        assert (run / out).read_bytes() == before

    for options, message in (
        (["--temperature", "nan"], "--temperature nan: needs"),
        (["--seed", str(2**63)], "needs a whole number of 64 bits"),
        (["--prompt", "bad \udcff"], r"--prompt 'bad \udcff': is not UTF-8"),
    ):
        assert message in refusal(capsys, "generate", str(run), *options)
    coldest = ["generate", str(run), "--tokens", "8", "--temperature"]
    main([*coldest, "0"])
    likeliest = capsys.readouterr().out
    main([*coldest, "1e-45"])
    assert capsys.readouterr().out == likeliest

    main(["generate", str(run), "--prompt", "The old", "--tokens", "8", "--seed", "3"])
    first = capsys.readouterr().out
    main(["generate", str(run), "--prompt", "The old", "--tokens", "8", "--seed", "3"])
    assert capsys.readouterr().out == first
    assert first.startswith("The old")


def test_a_run_that_does_not_fit_says_so_while_it_trains(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pace, "FIRST_SIZE", 0.01)
    run = tmp_path / "over"
    args = [*TRAIN, "--data", str(dataset), "--out", str(run)]
    main([*args, "--artifact.limit-bytes", "90000"])
    said = capsys.readouterr().out
    sizes = re.findall(r"by now about ([\d,]+) of 90,000 bytes: TOO LARGE", said)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fits"] is False
    assert sizes
    assert int(sizes[-1].replace(",", "")) == pytest.approx(summary["total_bytes"], rel=0.05)
    assert f"by now about {sizes[0]}" in (run / "train.log").read_text()


def test_a_run_is_never_overwritten_and_resumes_only_as_itself(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(dataset), str(tmp_path / "resumed")
    args = [*TRAIN, "--data", data, "--out", run]
    main(args)
    before = (tmp_path / "resumed" / "summary.json").read_text()
    assert "holds a run already" in refusal(capsys, *args)
    assert "cannot change model.d_model from 32 to 48" in refusal(
        capsys, "train", "tiny", "--out", run, "--resume", "--model.d-model", "48"
    )
    assert "is a run of preset tiny, not ssm" in refusal(
        capsys, "train", "ssm", "--out", run, "--resume"
    )
    config = (tmp_path / "resumed" / "config.json").read_text()
    assert "has done 12 already" in refusal(
        capsys, "train", "tiny", "--out", run, "--resume", "--steps", "5"
    )
    assert (tmp_path / "resumed" / "config.json").read_text() == config
    assert (tmp_path / "resumed" / "summary.json").read_text() == before
    capsys.readouterr()
    wide = ["--model.d-model", str(PRESETS["tiny"]().model.d_model)]  # as if it were not typed
    main(["train", "tiny", "--out", run, "--resume", "--steps", "15", *wide])
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith("settings of this run: steps = 15, ")
    assert ", model.d_model = 32, " in told
    assert json.loads((tmp_path / "resumed" / "summary.json").read_text())["steps"] == 15
    assert json.loads((tmp_path / "resumed" / "analysis.json").read_text())["steps"] == 15
    page, picture = tmp_path / "page.html", tmp_path / "curve.png"
    twin = shutil.copytree(run, tmp_path / "twin")
    main(["report", run, str(twin), run, "--out", str(page), "--png", str(picture)])
    assert "<h1>2 runs</h1>" in page.read_text()
    assert picture.stat().st_size > 0


def test_a_run_without_a_checkpoint_resumes_from_its_start(dataset: Path, tmp_path: Path) -> None:
    """As one killed before its first checkpoint is."""
    data, run = str(dataset), tmp_path / "early"
    main([*TRAIN, "--data", data, "--out", str(run)])
    before = json.loads((run / "summary.json").read_text())
    shutil.rmtree(run / "checkpoint")
    main(["train", "tiny", "--out", str(run), "--resume"])
    after = json.loads((run / "summary.json").read_text())
    assert (after["steps"], after["val_bpb"]) == (before["steps"], before["val_bpb"])
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 12 + 2
