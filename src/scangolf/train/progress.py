"""What a person sees of a run: plain lines, or what a terminal can show (live.py)."""

from __future__ import annotations

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


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    return f"{minutes}:{rest:02d}"


class Silent:
    """For all processes of a run but the first."""

    def update(self, record: dict[str, Any], seconds_left: float) -> None: ...

    def say(self, line: str) -> None: ...

    def close(self) -> None: ...


class Plain:
    """Prints a line every few seconds, and keeps all lines in a file.

    The speed of a line is that since the line before it: a host reads the steps of a GPU unevenly.
    """

    def __init__(self, log: Path) -> None:
        self.log = log.open("a", encoding="utf-8")
        self._last = float("-inf")
        self._last_record: dict[str, Any] | None = None
        self._speed = 0.0

    def update(self, record: dict[str, Any], seconds_left: float) -> None:
        if self.is_due(record):
            self.say(self.line(record, seconds_left))

    def line(self, record: dict[str, Any], seconds_left: float) -> str:
        return (
            f"{100 * record['share']:5.1f} %  step {record['step']:,}  loss {record['loss']:.4f}  "
            f"{record['train_bpb']:.4f} bits/byte  {self._speed:,.0f} tokens/s  "
            f"{_clock(seconds_left)} left"
        )

    def say(self, line: str) -> None:
        print(line, flush=True)
        self.write(line)

    def close(self) -> None:
        self.log.close()

    def is_due(self, record: dict[str, Any]) -> bool:
        """Whether it is time for a line again, and its speed; after the last step it always is."""
        now = time.monotonic()
        due = now - self._last >= PLAIN_EVERY or record["share"] >= 1
        if due:
            self._last = now
            self._speed = record["tokens_per_second"]
            if self._last_record is not None:
                tokens, seconds = (record[k] - self._last_record[k] for k in ("tokens", "seconds"))
                self._speed = tokens / seconds
            self._last_record = record
        return due

    def write(self, line: str) -> None:
        """Keeps a line without showing it."""
        self.log.write(line + "\n")
        self.log.flush()
