"""Claims: which process does a run, settled by files alone, so that many can share a plan.

A claim is a file `claim-N.json` in the run's folder, made with O_EXCL, so that of several processes
one succeeds; it holds host, process and time. The claim of a process that is gone is not replaced,
which two processes could do at once: it is outbid by claim N + 1, which again only one can make.

A process is known to be gone on its own host only: a claim of another host is always respected, and
has to be deleted by hand where that host died. The folder must be on a file system that honours
O_EXCL; NFS does from version 3 on.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

WRITING_SECONDS = 60.0
"""A claim that is no JSON for longer never will be: its process ended before it had written it."""


@dataclass(frozen=True)
class Claim:
    host: str
    pid: int
    born: str | None
    """When the process was born, as Linux tells it: a process number is given away again."""
    time: str

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} since {self.time}"

    @property
    def holds(self) -> bool:
        """Whether its process may still be alive."""
        return self.host != socket.gethostname() or _lives(self.pid, self.born)


@contextmanager
def claimed(folder: Path) -> Iterator[bool]:
    """Whether the run of this folder is ours, until the end of the block.

    The folder is made if need be. False where another process has the run.
    """
    folder.mkdir(parents=True, exist_ok=True)
    mine = None
    if holder(folder) is None:
        mine = _make(folder / f"claim-{1 + max(map(_number, _files(folder)), default=0)}.json")
    if mine is not None and holder(folder, besides=mine) is not None:
        # Two that began while a third gave back its claim: each sees the other, or one of them.
        mine.unlink()
        mine = None
    try:
        yield mine is not None
    finally:
        if mine is not None:
            for path in sorted(_files(folder), key=_number):  # ours, the highest, is the last to go
                path.unlink(missing_ok=True)


def holder(folder: Path, besides: Path | None = None) -> Claim | None:
    """Who does the run of this folder at this moment."""
    claims = (_read(path) for path in _files(folder) if path != besides)
    return next((claim for claim in claims if claim is not None and claim.holds), None)


def _make(path: Path) -> Path | None:
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    claim = Claim(socket.gethostname(), os.getpid(), _born(os.getpid()), now)
    try:
        file = path.open("x")
    except FileExistsError:
        return None
    try:
        with file:
            file.write(json.dumps(asdict(claim)))
    except BaseException:  # a full disk shows when the file is closed
        path.unlink(missing_ok=True)
        raise
    return path


def _read(path: Path) -> Claim | None:
    unknown = Claim("an unknown host", 0, None, "now")
    try:
        return Claim(**json.loads(path.read_text()))
    except FileNotFoundError:  # given back since we looked
        return None
    except TypeError:  # whole, by another version
        return unknown
    except ValueError:  # made, but not written yet
        return unknown if time.time() - _made(path) < WRITING_SECONDS else None


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("claim-*.json"))


def _made(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0


def _number(path: Path) -> int:
    return int(path.stem.partition("-")[2])


def _lives(pid: int, born: str | None) -> bool:
    if born is not None:
        return _born(pid) == born
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _born(pid: int) -> str | None:
    """Clock ticks from boot to the birth of a process; None for the dead, and without a /proc."""
    try:
        state, *rest = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else rest[18]
