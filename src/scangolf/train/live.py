"""A run on a terminal: a live line below the lines that stay."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from scangolf.train.progress import Display, Plain


def make_display(log: Path) -> Display:
    """A display for this terminal that also keeps its plain lines in `log`."""
    return Live(log) if sys.stdout.isatty() else Plain(log)


class Live(Plain):
    """A bar with the numbers of the last step, and the plain lines in the file.

    The speed is that of the last line there.
    """

    def __init__(self, log: Path) -> None:
        super().__init__(log)
        self._progress = Progress(
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f} %"),
            TextColumn("{task.description}"),
        )
        self._task = self._progress.add_task("first step ...", total=1.0)
        self._progress.start()

    def update(self, record: dict[str, Any], seconds_left: float) -> None:
        due = self.is_due(record)
        line = self.line(record, seconds_left)
        description = line.split("  ", 1)[1].lstrip()
        self._progress.update(self._task, completed=record["share"], description=description)
        if due:
            self.write(line)

    def say(self, line: str) -> None:
        self._progress.console.print(line, highlight=False, markup=False)
        self.write(line)

    def close(self) -> None:
        self._progress.stop()
        super().close()
