"""The commands of docs/experiments.md, in order."""

from pathlib import Path

import pytest
from pages import blocks, commands

from scangolf.cli import main

PAGE = "experiments.md"


def test_the_tutorial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its plan as it is, but with one seed and three steps."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    plan, axes = blocks(PAGE, "toml")
    short = plan.replace("[1, 2, 3]", "[1]").replace("steps = 40", "steps = 3")
    assert short.count("= 3") == 1
    Path("mine.toml").write_text(short)
    for program, *arguments in commands("".join(blocks(PAGE, "sh"))):
        assert program == "scangolf"
        main(arguments)
    shown = capsys.readouterr().out
    assert "mine: 2 variants of tiny, 1 seed each, 3 steps a run: 2 runs" in shown
    assert shown.count("nothing can be said about chance") == 2
    assert Path("mine.png").exists()

    Path("mine.toml").write_text(short + axes)
    main(["ablate", "mine.toml", "--dry-run", "--out", "elsewhere"])
    assert "8 variants of tiny" in capsys.readouterr().out
