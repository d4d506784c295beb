"""Artifacts of a given size."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_cases import TRAIN, refusal

from scangolf.artifact import save
from scangolf.artifact.calibrate import calibrate
from scangolf.cli import main
from scangolf.recipes import tiny
from scangolf.submission.forms import code_bytes


def test_an_artifact_in_calibrated_steps(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(dataset), tmp_path / "mixed"
    limit = code_bytes(tiny()) + 19_000
    options = ["--artifact.scheme", "mixed-rans", "--artifact.limit-bytes", str(limit)]
    main([*TRAIN, "--data", data, "--out", str(run), *options])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fits"] is True
    room = limit - summary["code_bytes"]  # the script of this very configuration
    assert room == pytest.approx(19_000, abs=1000)
    assert 0.98 * room < summary["artifact_bytes"] <= room
    assert summary["artifact_val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.05)


def test_the_curve_of_bits_per_byte_against_bytes(
    dataset: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of its artifacts is that of the size alone, from one calibration for all."""
    run, picture = tmp_path / "curve", tmp_path / "curve.png"
    main([*TRAIN, "--data", str(dataset), "--out", str(run)])
    summary = json.loads((run / "summary.json").read_text())
    quantize = ["quantize", str(run), "--device", "cpu"]
    assert "needs several sizes" in refusal(capsys, *quantize, "--png", str(picture))
    assert "do not fit into 99 bytes" in refusal(capsys, *quantize, "--bytes", "19000", "99")
    assert not list(run.glob("quantized*"))

    calibrations = []

    def calibrate_counted(*args: Any) -> Any:
        calibrations.append(args)
        return calibrate(*args)

    monkeypatch.setattr(save, "calibrate", calibrate_counted)
    main([*quantize, "--bytes", "24000", "18000", "21000", "--json", "--png", str(picture)])
    curve = json.loads(capsys.readouterr().out)
    assert len(calibrations) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert curve["val_bpb"] == pytest.approx(summary["val_bpb"], rel=1e-6)
    assert curve["parameters"] == summary["parameters"]
    for point, size in zip(curve["points"], (18_000, 21_000, 24_000), strict=True):
        file = run / f"quantized-{size}.sg"
        assert point["artifact"] == str(file)
        assert point["artifact_bytes"] == file.stat().st_size <= size
        bits = 8 * file.stat().st_size / summary["parameters"]
        assert point["bits_per_weight"] == pytest.approx(bits)
        assert point["lost_bpb"] == pytest.approx(point["val_bpb"] - curve["val_bpb"])
        main(["eval", str(file), "--data", str(dataset), "--seq-len", "64", "--json"])
        score = json.loads(capsys.readouterr().out)
        assert score["val_bpb"] == pytest.approx(point["val_bpb"])
    small, middle, large = curve["points"]
    assert small["artifact_bytes"] < middle["artifact_bytes"] < large["artifact_bytes"]
    assert small["predicted_loss"] > 2 * large["predicted_loss"]
    assert small["lost_bpb"] > large["lost_bpb"]

    main([*quantize, "--bytes", "21000"])
    capsys.readouterr()
    assert (run / "quantized.sg").read_bytes() == (run / "quantized-21000.sg").read_bytes()
    main([*quantize, "--bytes", "18000", "21000"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in lines if line.strip().endswith("quantized-18000.sg"))
    assert row[0] == f"{small['artifact_bytes']:,}"
    assert row[2:4] == [f"{small['val_bpb']:.4f}", f"{small['lost_bpb']:+.4f}"]
