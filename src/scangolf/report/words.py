"""Words and numbers as a page shows them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def visible(text: str) -> str:
    """Text as a page can hold it: control characters as their pictures, or as U+FFFD.

    Those of C1, halves of surrogate pairs and what turns the direction of writing have no picture.
    """
    pictures = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"}
    ranges = (0x80, 0xA0), (0x202A, 0x202F), (0x2066, 0x206A), (0xD800, 0xE000)
    unseen = {code: 0xFFFD for start, end in ranges for code in range(start, end)}
    return text.replace("\r\n", "\n").translate(pictures | {0x7F: 0x2421} | unseen)


def duration(seconds: float) -> str:
    """Seconds to about three figures, from two minutes on as clocks say it."""
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {rest:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def short(count: float) -> str:
    """A count to three figures: 775,684 is 776 k."""
    for unit, sign in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * unit:
            return f"{count / unit:.3g}\N{NO-BREAK SPACE}{sign}"
    return f"{count:,}"


def three_figures(value: float) -> str:
    """A number that is not negative, to three figures: 0.00123, 12.3, 1.23 k; 0 below 1e-6."""
    if value >= 999.5:
        return short(float(f"{value:.3g}"))
    if value >= 1e-3:
        return f"{value:.3g}"
    return f"{value:.6f}".rstrip("0").rstrip(".")


def megabytes(n_bytes: int) -> str:
    """Decimal kilobytes or megabytes, as the limit is decimal."""
    space = "\N{NO-BREAK SPACE}"
    if n_bytes < 999_950:
        return f"{n_bytes / 1e3:,.1f}{space}kB"
    return f"{n_bytes / 1e6:,.2f}{space}MB"


def leaves(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every setting of a nested configuration by its dotted name."""
    for name, value in values.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
