"""Turns on a GPU: a run trains alone, what comes before and after goes on side by side.

Two runs that train on one GPU at once share its seconds, and what they reach says nothing about
either. But to make a run ready and to finish it takes a minute, mostly of the CPU, in which the GPU
could train others. So whoever wants the GPU holds its lock: together with others, or alone to
train. Those who are ready to train come first, else there would always be somebody in their way.

The locks are flock's, on files of this machine: when a process dies, its locks are gone.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

import torch

if sys.platform != "win32":
    import fcntl

SECONDS = 0.1
"""Between two looks at a lock. Signals come through, which one that waits inside flock defers."""


class Turns:
    """A context in which a GPU is used together with others, and in it another to have it alone.

        with Turns.on(device) as turns:
            make_ready()
            with turns.alone(print):
                train()
            finish()

    Only processes that use it take turns, and only those of one user and machine.
    """

    def __init__(self, path: Path | None) -> None:
        """`path` names the locks; None shares nothing and never waits."""
        self.path = path
        self._files = ExitStack()
        self._gpu = self._next = -1

    @classmethod
    def on(cls, device: torch.device) -> Turns:
        """Those of a GPU by CUDA or ROCm. Nothing else is waited for, nor is it on Windows."""
        if device.type != "cuda" or sys.platform == "win32":
            return cls(None)
        folder = Path(tempfile.gettempdir()) / f"scangolf-{os.getuid()}"
        folder.mkdir(exist_ok=True)
        return cls(folder / str(torch.cuda.get_device_properties(device).uuid))

    def __enter__(self) -> Self:
        if self.path is not None:
            self._gpu, self._next = self._open("gpu"), self._open("next")
            self._share()
        return self

    def __exit__(self, *_: object) -> None:
        self._files.close()  # and with them the locks

    @contextmanager
    def alone(self, say: Callable[[str], None]) -> Iterator[None]:
        """Waits until nobody else uses the GPU, and keeps others from it; tells so when it waits.

        Afterwards it is shared again, once nobody is left who waits to have it alone.
        """
        if self.path is None:
            yield
            return
        _wait(self._next, fcntl.LOCK_SH)
        fcntl.flock(self._gpu, fcntl.LOCK_UN)
        if not _locked(self._gpu, fcntl.LOCK_EX):
            say("ready; waiting for other runs on this GPU")
            _wait(self._gpu, fcntl.LOCK_EX)
        yield
        fcntl.flock(self._gpu, fcntl.LOCK_UN)
        fcntl.flock(self._next, fcntl.LOCK_UN)
        self._share()

    def _open(self, name: str) -> int:
        assert self.path is not None
        file = os.open(self.path.with_suffix(f".{name}"), os.O_RDWR | os.O_CREAT, 0o600)
        self._files.callback(os.close, file)
        return file

    def _share(self) -> None:
        """Joins those who use the GPU. `next` is locked while anybody is next to have it alone."""
        while True:
            if _locked(self._next, fcntl.LOCK_EX):
                joined = _locked(self._gpu, fcntl.LOCK_SH)
                fcntl.flock(self._next, fcntl.LOCK_UN)
                if joined:
                    return
            time.sleep(SECONDS)


def _locked(file: int, how: int) -> bool:
    """Whether the lock could be had at once."""
    try:
        fcntl.flock(file, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _wait(file: int, how: int) -> None:
    while not _locked(file, how):
        time.sleep(SECONDS)
