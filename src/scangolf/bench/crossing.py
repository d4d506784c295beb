"""From which length on is a scan faster than attention, at a constant number of tokens?"""

from __future__ import annotations

import dataclasses
import math

from scangolf.bench.floor import Shape
from scangolf.bench.operators import heads
from scangolf.bench.record import Crossing, Report
from scangolf.errors import UserError

TOKENS = {"cuda": 65536, "cpu": 2048}
SHORTEST = {"cuda": 512, "cpu": 128}
LONGEST = {"cuda": 32768, "cpu": 2048}


def shapes(like: Shape, device: str) -> list[Shape]:
    """Lengths from the shortest to the longest, each twice the one before."""
    lengths, length = [], SHORTEST[device]
    while length <= LONGEST[device]:
        lengths.append(length)
        length *= 2
    return [dataclasses.replace(like, batch=TOKENS[device] // n, length=n) for n in lengths]


def check_shapes(shapes: list[Shape]) -> None:
    """Raises UserError unless attention has heads and lengths grow at one number of tokens."""
    heads(shapes[0])
    lengths = [shape.length for shape in shapes]
    if lengths != sorted(set(lengths)):
        raise UserError(f"--crossing: lengths {lengths} do not grow")
    if len({shape.batch * shape.length for shape in shapes}) > 1:
        raise UserError("--crossing: every --shape needs the same number of tokens")


def times(report: Report) -> tuple[list[int], list[float], list[float]]:
    """Lengths, and milliseconds of the scan and of attention there, forward and backward."""
    lengths, scan, attention = [], [], []
    for part in report.shapes:
        both = {row.name: row.both.median_ms for row in part.rows if row.both is not None}
        lengths.append(part.shape.length)
        scan.append(both["auto"])
        attention.append(both["attention"])
    return lengths, scan, attention


def find(report: Report) -> Crossing:
    """Of a report whose scans passed their checks."""
    lengths, scan, attention = times(report)
    where = crossing_length(lengths, scan, attention)
    if where is not None:
        return Crossing(where, f"{report.operator} passes attention at length {where:,.0f}")
    reach = f"within these lengths, {lengths[0]:,} to {lengths[-1]:,}"
    why = "faster at every one" if scan[-1] < attention[-1] else "not faster at the longest"
    return Crossing(None, f"{report.operator} does not pass attention {reach}: it is {why}")


def crossing_length(lengths: list[int], scan: list[float], attention: list[float]) -> float | None:
    """Where the scan begins to stay faster; between two lengths a line in logarithms.

    None if it is not faster at the longest, or was faster from the shortest on.
    """
    lead = [math.log(a / s) for s, a in zip(scan, attention, strict=True)]
    behind = max((i for i, value in enumerate(lead) if value <= 0), default=-1)
    if behind in (-1, len(lead) - 1):
        return None
    share = lead[behind] / (lead[behind] - lead[behind + 1])
    return lengths[behind] * (lengths[behind + 1] / lengths[behind]) ** share
