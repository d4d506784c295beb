"""Checkpoints: whole or not at all, and damage is told in one line."""

import json
import os
from pathlib import Path

import pytest
import torch

from scangolf.errors import UserError
from scangolf.train import checkpoint
from scangolf.train.checkpoint import Progress, load_checkpoint, save_checkpoint

TENSORS = {"model.a": torch.arange(6.0).view(2, 3), "optim.step": torch.tensor(7)}


def test_round_trip_to_the_bit_and_only_the_newest_is_kept(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, TENSORS, Progress(1, 10, 0.1, 3))
    (tmp_path / "step-00000002.part").write_bytes(b"of a process that was killed")
    later = {"model.a": torch.randn(2, 3), "optim.step": torch.tensor(8)}
    progress = Progress(step=2, tokens=20, seconds=0.1 + 0.2, position=6)
    save_checkpoint(tmp_path, later, progress)
    tensors, found = load_checkpoint(tmp_path)
    assert found == progress
    assert tensors.keys() == later.keys()
    for name, tensor in later.items():
        assert torch.equal(tensors[name], tensor)
        assert tensors[name].dtype == tensor.dtype
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "latest.json",
        "step-00000002.safetensors",
    ]


def test_only_on_the_text_it_was_trained_on(tmp_path: Path) -> None:
    text = {"train": "ab", "val": "cd"}
    save_checkpoint(tmp_path, TENSORS, Progress(step=1), text)
    assert load_checkpoint(tmp_path, text)[1].step == 1
    assert load_checkpoint(tmp_path)[1].step == 1
    with pytest.raises(UserError, match="a run with other val text than --data has; put that"):
        load_checkpoint(tmp_path, text | {"val": "ce"})
    save_checkpoint(tmp_path, TENSORS, Progress(step=2))  # as older versions did
    assert load_checkpoint(tmp_path, text)[1].step == 2


def test_nothing_to_resume(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no checkpoint to resume from"):
        load_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "pointer", "pointer-json"])
def test_damage_is_one_clear_line(tmp_path: Path, damage: str) -> None:
    path = save_checkpoint(tmp_path, TENSORS, Progress(step=5))
    content = bytearray(path.read_bytes())
    if damage == "flip":
        content[-3] ^= 4
        path.write_bytes(content)
    elif damage == "truncate":
        path.write_bytes(content[:-1])
    elif damage == "remove":
        path.unlink()
    elif damage == "pointer":
        (tmp_path / "latest.json").write_text("{}")
    else:
        (tmp_path / "latest.json").write_text('{"file":')
    with pytest.raises(UserError, match="the checkpoint is damaged") as error:
        load_checkpoint(tmp_path)
    assert "\n" not in str(error.value)


def test_a_full_disk_leaves_the_one_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, TENSORS, Progress(step=1))

    def full(tensors: object, path: Path, metadata: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full)
    with pytest.raises(UserError, match="No space left on device"):
        save_checkpoint(tmp_path, TENSORS, Progress(step=2))
    assert load_checkpoint(tmp_path)[1].step == 1
    assert sorted(os.listdir(tmp_path)) == ["latest.json", "step-00000001.safetensors"]


def test_the_pointer_moves_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed between the two moves, a run still finds the checkpoint before."""
    save_checkpoint(tmp_path, TENSORS, Progress(step=1))
    replace = os.replace

    def killed(source: Path, target: Path) -> None:
        if target.name == "latest.json":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path, TENSORS, Progress(step=2))
    assert json.loads((tmp_path / "latest.json").read_text())["file"] == "step-00000001.safetensors"
    assert load_checkpoint(tmp_path)[1].step == 1
