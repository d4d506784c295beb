"""Where the scan passes attention: by hand, and through the command."""

import dataclasses
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from scangolf.bench import crossing
from scangolf.bench.crossing import crossing_length, shapes
from scangolf.bench.floor import Shape
from scangolf.bench.record import Crossing
from scangolf.bench.timing import Stopwatch
from scangolf.cli import main

LENGTHS = [512, 1024, 2048, 4096]
ARGS = ["bench", "scan", "--op", "ssd", "--device", "cpu", "--crossing", "--shape", "4x16", "2x32",
        "1x64", "--channels", "64", "--state", "4", "--seconds", "0.01"]  # fmt: skip


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopwatch, "copy_rate", lambda self: 1e10)
    monkeypatch.setattr(Stopwatch, "product_rate", lambda self, dtype: 1e11)


def test_powers_cross_where_they_are_equal() -> None:
    """3 ms against length / 500 ms: at 1500. 0.3 sqrt(length) ms: at 22,500, beyond."""
    attention = [length / 500 for length in LENGTHS]
    assert crossing_length(LENGTHS, [3.0] * 4, attention) == pytest.approx(1500)
    assert crossing_length(LENGTHS, [0.3 * n**0.5 for n in LENGTHS], attention) is None
    assert crossing_length(LENGTHS, [0.1] * 4, attention) is None  # faster from the first


def test_it_counts_where_the_scan_stays_faster() -> None:
    found = crossing_length(LENGTHS, [1.0, 4.0, 1.0, 1.0], [2.0, 2.0, 2.0, 2.0])
    assert found == pytest.approx(1024 * 2**0.5)


@pytest.mark.parametrize(
    ("scan_ms", "words"),
    [
        (3.0, "passes attention at length 1,500"),
        (0.1, "does not pass attention within these lengths, 512 to 4,096: it is faster at every"),
        (9.0, "does not pass attention within these lengths, 512 to 4,096: it is not faster"),
    ],
)
def test_words(monkeypatch: pytest.MonkeyPatch, scan_ms: float, words: str) -> None:
    found = LENGTHS, [scan_ms] * 4, [length / 500 for length in LENGTHS]
    monkeypatch.setattr(crossing, "times", lambda report: found)
    report: Any = SimpleNamespace(operator="ssd")
    assert crossing.find(report).words.startswith(f"ssd {words}")


def test_lengths_at_one_number_of_tokens() -> None:
    found = shapes(Shape(1, 1, 1024, 64), "cuda")
    assert [shape.length for shape in found] == [512 << i for i in range(7)]
    assert {shape.batch * shape.length for shape in found} == {65536}


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*ARGS, "--png", str(tmp_path / "x.png"), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert (tmp_path / "x.png").read_bytes().startswith(b"\x89PNG")
    assert list(report["crossing"]) == [field.name for field in dataclasses.fields(Crossing)]
    assert report["command"].endswith("--crossing")
    for part in report["shapes"]:
        assert [row["name"] for row in part["rows"]] == ["auto", "attention"]
        assert [row["passed"] for row in part["rows"]] == [True, None]
        assert all(row["both"]["median_ms"] > 0 for row in part["rows"])

    main(ARGS)
    shown = capsys.readouterr().out
    assert "attention / scan" in shown
    assert re.search("ssd (passes|does not pass) attention", shown)
