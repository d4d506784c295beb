"""Several runs on one page: their curves together, their numbers, and what sets them apart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np

from scangolf.report.anatomy import draw_stretches, position_figure, stretches
from scangolf.report.command import command, differences
from scangolf.report.curves import smooth, thin
from scangolf.report.folder import RunFolder
from scangolf.report.plots import (
    NARROW,
    SMALL,
    WIDE,
    Progress,
    draw_artifact,
    limits,
    progress_figure,
    scale_speed,
)
from scangolf.report.style import PALETTE, RUN_DASHES, RUN_ROLES, Size, style, svg
from scangolf.report.words import duration, megabytes, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


class Line(NamedTuple):
    """How a run is drawn: 24 of them look different."""

    role: str
    dashes: tuple[float, ...]

    @property
    def style(self) -> dict[str, Any]:
        """matplotlib's."""
        return {
            "color": PALETTE[self.role][0],
            "linestyle": (0, self.dashes) if self.dashes else "-",
        }


def line(index: int) -> Line:
    """That of the run of this number, from 0."""
    round_of_all = index // math.lcm(len(RUN_ROLES), len(RUN_DASHES))
    dashes = RUN_DASHES[(index + round_of_all) % len(RUN_DASHES)]
    return Line(RUN_ROLES[index % len(RUN_ROLES)], dashes)


def comparison(runs: Sequence[RunFolder]) -> dict[str, Any]:
    """What the page of several runs shows."""
    names = _names([run.path for run in runs])
    octaves, positions = _position_table(runs)
    finished = [run.summary for run in runs if run.summary]
    scores = [summary["artifact_val_bpb"] for summary in finished if summary["fits"]]
    return {
        "names": names,
        "lines": [line(i) for i in range(len(runs))],
        "rows": [_row(run) for run in runs],
        "best": f"{min(scores):.4f}" if scores else None,
        "plots": _plots(runs),
        "opening_is_cut": _opening_is_cut(runs),
        "differences": differences([(n, run.config) for n, run in zip(names, runs, strict=True)]),
        "commands": [command(run.config) for run in runs],
        "octaves": octaves,
        "positions": positions,
    }


def _names(paths: Sequence[Path]) -> list[str]:
    """The folders' own names, or as much of each path as tells them apart."""
    parts = [path.resolve().parts for path in paths]

    def ends(length: int) -> list[str]:
        return ["/".join(p[-length:]) for p in parts]

    length = 1
    while len(set(ends(length))) < len(set(parts)):
        length += 1
    return ends(length)


def _row(run: RunFolder) -> list[tuple[str, str]]:
    """Labels and values of a run in the table; a run that has not finished lacks some."""
    summary, last = run.summary, run.training[-1]
    validation = f"{run.evaluations[-1]['val_bpb']:.4f}" if run.evaluations else "-"
    steps, tokens, seconds = last["step"], last["tokens"], run.seconds
    if summary:
        validation = f"{summary['val_bpb']:.4f}"
        steps, tokens, seconds = summary["steps"], summary["tokens"], summary["train_seconds"]
    return [
        ("artifact", f"{summary['artifact_val_bpb']:.4f}" if summary else "-"),
        ("validation", validation),
        ("training", f"{smooth(run.curve('train_bpb'))[-1]:.4f}"),
        ("time", duration(seconds)),
        ("steps", f"{steps:,}"),
        ("tokens", short(tokens)),
        ("tokens/s", f"{tokens / seconds:,.0f}"),
        ("parameters", short(summary["parameters"]) if summary else "-"),
        ("bytes", megabytes(summary["total_bytes"]) if summary else "-"),
        ("fits", ("yes" if summary["fits"] else "no") if summary else "-"),
        ("GPU memory", megabytes(run.peak_memory_bytes) if run.peak_memory_bytes else "-"),
    ]


def _position_table(runs: Sequence[RunFolder]) -> tuple[list[str], list[list[str]]]:
    """Bits per byte by octaves of the position: their labels, and a row of values for each run.

    There are some ten octaves, whatever the number of runs; none where no run was analysed.
    """
    rows = [
        {(s.first, s.last): f"{s.bits_per_byte:.3f}" for s in stretches(run.analysis["positions"])}
        if run.analysis
        else {}
        for run in runs
    ]
    octaves = sorted({octave for row in rows for octave in row})
    labels = [f"{a:,}" if a == b else f"{a:,} to {b:,}" for a, b in octaves]
    return labels, [[row.get(octave, "-") for octave in octaves] for row in rows]


def _opening_is_cut(runs: Sequence[RunFolder]) -> bool:
    highest = max(limits(run, "train_bpb", "val_bpb")[1] for run in runs)
    return any(bool(run.curve("train_bpb")[0] > highest) for run in runs)


# --- curves -------------------------------------------------------------------------------------


def _plots(runs: Sequence[RunFolder]) -> dict[str, str]:
    label = "Bits per byte of each run against {}, smoothed; the table has the last values."
    time = label.format("training time")
    with style():
        plots = {
            "bits-wide": svg(_bits(runs, "seconds", WIDE), "bits-wide", time),
            "bits-narrow": svg(_bits(runs, "seconds", NARROW), "bits-narrow", time),
            "bits-steps": svg(_bits(runs, "step"), "bits-steps", label.format("steps")),
            "bits-tokens": svg(_bits(runs, "tokens"), "bits-tokens", label.format("tokens")),
            "speed": svg(_speed(runs), "speed", "Throughput of each run against training time."),
        }
        if any(run.analysis for run in runs):
            label = "Bits per byte of each run by position in a sequence; the table has all."
            plots["position"] = svg(_positions(runs), "position", label)
    return plots


def _bits(
    runs: Sequence[RunFolder], x: Literal["seconds", "step", "tokens"], size: Size = SMALL
) -> Figure:
    progress = Progress.of(runs, x)
    figure, axes = progress_figure(size, progress)
    for i, run in enumerate(runs):
        _draw(axes, run, line(i), "train_bpb", progress)
        if run.summary:
            draw_artifact(axes, run, progress, PALETTE[line(i).role][0])
    ends = np.array([limits(run, "train_bpb", "val_bpb") for run in runs])
    axes.set_ylim(ends[:, 0].min(), ends[:, 1].max())
    axes.set_title("bits per byte")
    return figure


def _speed(runs: Sequence[RunFolder]) -> Figure:
    progress = Progress.of(runs, "seconds")
    figure, axes = progress_figure(SMALL, progress)
    for i, run in enumerate(runs):
        _draw(axes, run, line(i), "tokens_per_second", progress)
    scale_speed(axes, runs)
    return figure


def _draw(axes: Axes, run: RunFolder, how: Line, name: str, progress: Progress) -> None:
    x, y = thin(progress(run), smooth(run.curve(name)))
    axes.plot(x, y, linewidth=1.6, marker="o" if len(x) == 1 else None, markersize=3, **how.style)


def _positions(runs: Sequence[RunFolder]) -> Figure:
    figure, axes = position_figure()
    for i, run in enumerate(runs):
        if run.analysis:
            draw_stretches(axes, run.analysis["positions"], **line(i).style)
    return figure
