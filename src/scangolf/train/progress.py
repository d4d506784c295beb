"""What a person sees of a run: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Protocol

PLAIN_EVERY = 5.0
"""Seconds between two plain lines."""


class Display(Protocol):
    def update(self, record: dict[str, Any], seconds_left: float) -> None:
        """Shows a training record of metrics.jsonl."""

    def say(self, line: str) -> None:
        """Shows a line that stays."""

    def close(self) -> None: ...


def make_display(log: Path | None) -> Display:
    """A display for this terminal that also keeps its plain lines in `log`; silent without one."""
    if log is None:
        return _Silent()
    return _Live(log) if sys.stdout.isatty() else _Plain(log)


def plain_line(record: dict[str, Any], seconds_left: float) -> str:
    return (
        f"{100 * record['share']:5.1f} %  step {record['step']:,}  loss {record['loss']:.4f}  "
        f"{record['train_bpb']:.4f} bits/byte  {record['tokens_per_second']:,.0f} tokens/s  "
        f"{_clock(seconds_left)} left"
    )


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


class _Silent:
    def update(self, record: dict[str, Any], seconds_left: float) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


class _Plain:
    def __init__(self, log: Path) -> None:
        self._log = log.open("a", encoding="utf-8")
        self._last = float("-inf")

    def update(self, record: dict[str, Any], seconds_left: float) -> None:
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY or record["share"] >= 1:
            self._last = now
            line = plain_line(record, seconds_left)
            print(line, flush=True)
            self._write(line)

    def say(self, line: str) -> None:
        print(line, flush=True)
        self._write(line)

    def close(self) -> None:
        self._log.close()

    def _write(self, line: str) -> None:
        self._log.write(line + "\n")
        self._log.flush()


class _Live(_Plain):
    def __init__(self, log: Path) -> None:
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(log)
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.description}"),
        )
        self._task = self._progress.add_task("first step ...", total=1.0)
        self._progress.start()

    def update(self, record: dict[str, Any], seconds_left: float) -> None:
        line = plain_line(record, seconds_left)
        description = line.split("  ", 1)[1].lstrip()
        self._progress.update(self._task, completed=record["share"], description=description)
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY or record["share"] >= 1:
            self._last = now
            self._write(line)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)
        self._write(line)

    def close(self) -> None:
        self._progress.stop()
        super().close()
