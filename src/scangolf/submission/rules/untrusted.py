"""What others wrote, read without trusting that it is what it should be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any


def text_of(path: Path) -> str | None:
    """The text of a plain file; None for anything else, be it a folder or a link to a file."""
    if path.is_symlink() or not path.is_file():
        return None
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None


def parsed(text: str | bytes) -> Any:
    """The value of a JSON text; None where it is none, or nested deeper than Python can follow."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def finite(value: object) -> float | None:
    """A number; None for what is none, and for one that is not finite as a float."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
