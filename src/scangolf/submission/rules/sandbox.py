"""Runs a submitted script where there is no network and no training data, and times it.

On Linux the process gets a network namespace of its own where the kernel permits it, in which only
the loopback is up. Everywhere a hook in Python notes and refuses connections and training shards
(guard.py). This keeps an honest script honest and finds a careless one; it is no jail for a hostile
one, which runs with the rights of whoever audits it. What it leaves behind may be anything: what is
not as it should be is read as nothing.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from scangolf.submission.rules.untrusted import parsed, text_of

LOOPBACK = Path(__file__).with_name("loopback.py")
NAMESPACE = ("unshare", "-rn", sys.executable, "-I", "-S", str(LOOPBACK))
GUARD = Path(__file__).with_name("guard.py")
TRAINING_SHARD = re.compile(r"[^\s'\"]*_train_[^\s'\"]*\.bin")
SOURCE_SECONDS = 60.0
"""Given to a script for writing its sources."""


@dataclass(frozen=True)
class ScriptRun:
    exit_code: int | None
    """None where it was ended at the time limit."""
    seconds: float
    """Wall clock, from the start of Python to its end."""
    result: dict[str, Any] | None
    """The last line of its output that is a JSON object with val_bpb."""
    network: tuple[str, ...]
    """Attempts to reach it."""
    training_data: tuple[str, ...]
    """Training shards it tried to open, or missed."""
    packages: tuple[str, ...]
    """Top-level names of the installed packages that it imported."""
    last_words: str
    """The last line of its standard error."""
    isolation: str

    @property
    def was_refused(self) -> bool:
        return bool(self.network or self.training_data)


def evaluate_script(
    script: bytes, artifact: Path, lay_out: Callable[[Path], None], limit: float
) -> ScriptRun:
    """`train_gpt.py --eval artifact.sg --data data`, with nothing beside it but these.

    `lay_out` fills the data folder. What still runs after `limit` seconds is killed.
    """
    with tempfile.TemporaryDirectory(prefix="scangolf-audit-") as name:
        place = Path(name)
        (place / "data").mkdir()
        lay_out(place / "data")
        shutil.copyfile(artifact, place / "artifact.sg")
        arguments = ("--eval", "artifact.sg", "--data", "data")
        return _run(place, script, arguments, limit)


def read_sources(script: bytes) -> dict[str, str]:
    """The Python sources that a script writes with `--source DIR`, by relative path."""
    with tempfile.TemporaryDirectory(prefix="scangolf-audit-") as name:
        place, folder = Path(name), Path(name, "source")
        folder.mkdir()
        _run(place, script, ("--source", "source"), SOURCE_SECONDS)
        files = [] if folder.is_symlink() else sorted(folder.rglob("*.py"))
        texts = {str(path.relative_to(folder)): text_of(path) for path in files}
        return {_printable(path): text for path, text in texts.items() if text is not None}


@cache
def has_namespaces() -> bool:
    """Whether this machine lets an ordinary process have a network of its own."""
    if sys.platform != "linux" or shutil.which(NAMESPACE[0]) is None:
        return False
    return subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode == 0


def _run(place: Path, script: bytes, arguments: tuple[str, ...], limit: float) -> ScriptRun:
    (place / "train_gpt.py").write_bytes(script)
    watch = place / "watch"
    watch.mkdir()
    shutil.copyfile(GUARD, watch / "sitecustomize.py")
    before = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    path = os.pathsep.join([str(watch), *(os.path.abspath(part) for part in before if part)])
    prefix = NAMESPACE if has_namespaces() else ()
    start = time.perf_counter()
    with (place / "stdout").open("wb") as stdout, (place / "stderr").open("wb") as stderr:
        process = subprocess.Popen(
            [*prefix, sys.executable, "train_gpt.py", *arguments],
            cwd=place,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
        )
        try:
            exit_code = process.wait(limit)
        except subprocess.TimeoutExpired:
            exit_code = None
        finally:
            seconds = time.perf_counter() - start
            _end(process)
    events = _events(watch / "events.jsonl")
    last_words = _last_line(text_of(place / "stderr") or "")
    # A script may ask for a file's size and give up without opening it: its last words tell.
    missed = tuple(TRAINING_SHARD.findall(last_words)[:1]) if exit_code else ()
    return ScriptRun(
        exit_code=exit_code,
        seconds=seconds,
        result=_result(text_of(place / "stdout") or ""),
        network=_of(events, "network"),
        training_data=_of(events, "training data") or missed,
        packages=_of(events, "package"),
        last_words=last_words,
        isolation="network namespace and Python hook" if prefix else "Python hook",
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kills what is left of the script and of the processes it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _events(log: Path) -> list[tuple[str, str]]:
    """What the hook noted; a line that was cut off, or is none of its own, is left out."""
    found = map(parsed, (text_of(log) or "").splitlines())
    pairs = [event for event in found if isinstance(event, list) and len(event) == 2]
    return [(str(kind), _printable(str(what))) for kind, what in pairs]


def _of(events: list[tuple[str, str]], kind: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(what for found, what in events if found == kind))


def _printable(name: str) -> str:
    """A file's name without the bytes that are no text."""
    return name.encode(errors="replace").decode()


def _result(output: str) -> dict[str, Any] | None:
    for line in reversed(output.splitlines()):
        values = parsed(line)
        if isinstance(values, dict) and isinstance(values.get("val_bpb"), int | float):
            return values
    return None


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1].strip()[:200] if lines else ""
