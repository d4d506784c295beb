"""TensorBoard, Weights & Biases and trackio, which follow a run by its metrics.jsonl.

The file is the truth and training knows nothing of who reads it: a tracker that is slow, or whose
server is away, costs a run nothing and can lose nothing.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, TextIO

from scangolf.errors import UserError

TrackerName = Literal["tensorboard", "wandb", "trackio"]
EVERY = 1.0
"""Seconds between two looks at the file."""
PROJECT = "scangolf"


class Tracker(Protocol):
    def log(self, values: dict[str, float], step: int) -> None:
        """Takes the values of one line, by name."""

    def close(self) -> None: ...


@contextmanager
def following(folder: Path, name: TrackerName | None) -> Iterator[None]:
    """While the block trains into `folder`, shows its lines in the tracker of that name, if any.

    Raises UserError, before the block, where the tracker is not installed. Whatever it raises later
    ends the tracking, is said in a line, and does not reach the block.
    """
    if name is None:
        yield
        return
    check_installed(name)
    over = threading.Event()
    before = _written(folder / "config.json")
    thread = threading.Thread(target=_follow, args=(folder, name, before, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def check_installed(name: TrackerName | None) -> None:
    """Raises UserError where the tracker of that name, if any, is missing."""
    if name is None:
        return
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:  # a mere folder of that name, as wandb leaves behind
        raise UserError(f"--track {name}: is not installed; pip install 'scangolf[{name}]'")


def _follow(folder: Path, name: TrackerName, before: int | None, over: threading.Event) -> None:
    while not _begun(folder, before):
        if over.wait(EVERY):
            return
    try:
        tracker = TRACKERS[name](folder, json.loads((folder / "config.json").read_text()))
        with (folder / "metrics.jsonl").open(encoding="utf-8") as metrics:
            ended = False
            while not ended:
                ended = over.wait(EVERY)
                for values in _new_lines(metrics):
                    step = int(values.pop("step"))
                    tracker.log(values, step)
        tracker.close()
    except Exception as error:
        print(f"{name}: stopped following ({error}); {folder / 'metrics.jsonl'} has everything")


def _new_lines(metrics: TextIO) -> Iterator[dict[str, float]]:
    """The whole lines that were added; a last one that is still being written waits."""
    while True:
        place = metrics.tell()
        line = metrics.readline()
        if not line.endswith("\n"):
            metrics.seek(place)
            return
        yield json.loads(line)


def _begun(folder: Path, before: int | None) -> bool:
    """A run writes its config.json once it has put in order what an interrupted one left."""
    return _written(folder / "config.json") != before and (folder / "metrics.jsonl").exists()


def _written(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.exists() else None


# --- the trackers -------------------------------------------------------------------------------


class _TensorBoard:
    """Event files in the run folder, made anew from all lines."""

    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        from torch.utils.tensorboard import SummaryWriter

        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        self.writer = SummaryWriter(folder / "tensorboard")
        self.writer.add_text("config", json.dumps(config))

    def log(self, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        self.writer.close()


class _WeightsAndBiases:
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import wandb  # type: ignore[import-not-found]

        self.run = wandb.init(project=PROJECT, name=str(folder), config=config, dir=folder)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


class _Trackio:
    def __init__(self, folder: Path, config: dict[str, Any]) -> None:
        import trackio  # type: ignore[import-not-found]

        self.run = trackio.init(project=PROJECT, name=str(folder), config=config)

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log(values, step=step)

    def close(self) -> None:
        self.run.finish()


TRACKERS: dict[TrackerName, Callable[[Path, dict[str, Any]], Tracker]] = {
    "tensorboard": _TensorBoard,
    "wandb": _WeightsAndBiases,
    "trackio": _Trackio,
}
