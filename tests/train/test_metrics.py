"""metrics.jsonl after a run was cut off."""

import os
from pathlib import Path

import pytest

from scangolf.train.metrics import drop_later, write_score

LINES = '{"step": 1}\n{"step": 2}\n{"step": 2, "val_bpb": 1.0}\n{"step": 3}\n'


def test_later_steps_and_a_torn_line_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES + '{"step": 4, "lo')
    drop_later(path, 2)
    assert path.read_text() == "".join(LINES.splitlines(keepends=True)[:3])


def test_the_last_score_of_a_run_is_there_once(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    before = '{"step": 3, "share": 0.9, "val_bpb": 1.1}\n{"step": 4, "share": 1.0, "loss": 1}\n'
    path.write_text(before)
    for bits in (1.0, 0.9):
        write_score(path, {"step": 4, "share": 1.0, "val_bpb": bits})
    assert path.read_text() == before + '{"step": 4, "share": 1.0, "val_bpb": 0.9}\n'


def test_nothing_is_lost_where_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(LINES)

    def full(*args: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="no space"):
        drop_later(path, 2)
    assert path.read_text() == LINES
