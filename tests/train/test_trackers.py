"""Trackers follow metrics.jsonl, and nothing of theirs reaches the training."""

import importlib.machinery
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from scangolf.errors import UserError
from scangolf.train import trackers
from scangolf.train.trackers import TrackerName, following

LINES = [
    {"step": 1, "loss": 5.5, "train_bpb": 3.0},
    {"step": 2, "loss": 5.0, "train_bpb": 2.5},
    {"step": 2, "val_loss": 5.1, "val_bpb": 2.6},
]
WANTED = [
    (1, {"loss": 5.5, "train_bpb": 3.0}),
    (2, {"loss": 5.0, "train_bpb": 2.5}),
    (2, {"val_loss": 5.1, "val_bpb": 2.6}),
]


class Service(ModuleType):
    """As much of wandb and trackio as is used, and of torch's SummaryWriter."""

    def __init__(self, name: str, *, broken: bool = False) -> None:
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None, origin="here")
        self.broken, self.logged, self.finished = broken, [], False
        self.scalars: list[tuple[int, dict[str, float]]] = []

    def init(self, **about: Any) -> "Service":
        self.about = about
        return self

    def log(self, values: dict[str, float], step: int) -> None:
        if self.broken:
            raise ConnectionError("no network")
        self.logged.append((step, values))

    def finish(self) -> None:
        self.finished = True

    def SummaryWriter(self, folder: Path) -> "Service":  # noqa: N802
        self.about = {"folder": folder}
        return self

    def add_text(self, name: str, text: str) -> None:
        self.about[name] = json.loads(text)

    def add_scalar(self, name: str, value: float, step: int) -> None:
        self.scalars.append((step, {name: value}))

    close = finish


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "EVERY", 0.01)


def train(folder: Path, lines: list[dict[str, Any]]) -> None:
    """What a run does to its folder, with a line that is not written at once."""
    (folder / "config.json").write_text('{"seed": 1}')
    with (folder / "metrics.jsonl").open("a") as metrics:
        for line in lines:
            text = json.dumps(line) + "\n"
            metrics.write(text[:9])
            metrics.flush()
            time.sleep(0.03)
            metrics.write(text[9:])
            metrics.flush()


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_every_line_reaches_the_service(
    name: TrackerName, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(name)
    monkeypatch.setitem(sys.modules, name, service)
    with following(tmp_path, name):
        train(tmp_path, LINES)
    assert service.logged == WANTED
    assert service.finished
    assert service.about["project"] == "scangolf"
    assert (service.about["name"], service.about["config"]) == (str(tmp_path), {"seed": 1})


def test_tensorboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    service = Service("tensorboard")
    monkeypatch.setitem(sys.modules, "tensorboard", service)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", service)
    (tmp_path / "tensorboard").mkdir()
    (tmp_path / "tensorboard" / "events-of-an-interrupted-run").touch()
    with following(tmp_path, "tensorboard"):
        train(tmp_path, LINES)
    pairs = [(step, {key: value}) for step, line in WANTED for key, value in line.items()]
    assert service.scalars == pairs
    assert service.about == {"folder": tmp_path / "tensorboard", "config": {"seed": 1}}
    assert not (tmp_path / "tensorboard").exists()
    assert service.finished


def test_a_resumed_run_is_followed_from_what_it_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    train(tmp_path, [*LINES, {"step": 3, "loss": 99.0}])
    time.sleep(0.02)
    with following(tmp_path, "wandb"):
        time.sleep(0.05)  # preparing the first step
        kept = (tmp_path / "metrics.jsonl").read_text().splitlines()[:3]
        (tmp_path / "metrics.jsonl").write_text("\n".join(kept) + "\n")
        train(tmp_path, [{"step": 3, "loss": 4.0}])
    assert service.logged == [*WANTED, (3, {"loss": 4.0})]


def test_a_service_that_fails_does_not_stop_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", Service("wandb", broken=True))
    with following(tmp_path, "wandb"):
        train(tmp_path, LINES)
    assert "wandb: stopped following (no network)" in capsys.readouterr().out


def test_a_run_that_never_begins_is_not_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    service = Service("wandb")
    monkeypatch.setitem(sys.modules, "wandb", service)
    with following(tmp_path, "wandb"):
        pass
    with following(tmp_path, None):
        train(tmp_path, LINES)
    assert (service.logged, capsys.readouterr().out) == ([], "")


def test_a_tracker_that_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its name is no tracker."""
    (tmp_path / "trackio").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    with (
        pytest.raises(UserError, match=r"--track trackio: .* pip install 'scangolf\[trackio\]'"),
        following(tmp_path, "trackio"),
    ):
        train(tmp_path, LINES)
    assert [path.name for path in tmp_path.iterdir()] == ["trackio"]
