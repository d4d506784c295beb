"""How plots look: colours, and matplotlib without a display and without its global state."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PALETTE = {
    "paper": ("#fdfcfa", "#171614"),
    "ink": ("#22201d", "#ebe7e0"),
    "muted": ("#68635c", "#a8a299"),
    "rule": ("#e2ded7", "#37342f"),
    "raw": ("#a8c0da", "#466a92"),
    "train": ("#2a5d91", "#86b8ea"),
    "score": ("#c04d18", "#f2935b"),
}
"""Colours by their role, on light and on dark. Plots are drawn in the light ones."""
INK, MUTED, RULE, RAW, TRAIN, SCORE = (
    PALETTE[role][0] for role in ("ink", "muted", "rule", "raw", "train", "score")
)

Size = tuple[float, float]
"""Width and height in points, which are pixels where a plot is shown at its own size."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults, whatever this machine prefers, and our few changes."""
    import matplotlib.style

    changes = {
        "svg.fonttype": "none",
        "svg.hashsalt": "scangolf",
        "font.size": 11.5,
        "text.color": INK,
        "axes.labelcolor": MUTED,
        "axes.labelsize": 11,
        "axes.titlecolor": INK,
        "axes.titlelocation": "left",
        "axes.titlesize": 11.5,
        "axes.edgecolor": MUTED,
        "axes.linewidth": 0.8,
        "axes.spines.left": False,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.grid": True,
        "axes.grid.axis": "y",
        "axes.axisbelow": True,
        "grid.color": RULE,
        "grid.linewidth": 0.8,
        "xtick.color": MUTED,
        "xtick.labelcolor": MUTED,
        "ytick.color": MUTED,
        "ytick.labelcolor": MUTED,
        "xtick.labelsize": 11,
        "ytick.labelsize": 11,
        "ytick.major.size": 0,
        "legend.frameon": False,
        "legend.fontsize": 11,
        "legend.handlelength": 1.4,
        "legend.handletextpad": 0.5,
        "legend.columnspacing": 1.6,
        "legend.labelcolor": MUTED,
        "lines.solid_capstyle": "round",
    }
    with matplotlib.style.context(changes, after_reset=True):
        yield


def canvas(size: Size) -> tuple[Figure, Axes]:
    """A figure of `size` with one plot, still empty; drawn and written within `style`."""
    from matplotlib.figure import Figure

    width, height = size
    figure = Figure(figsize=(width / 72, height / 72), dpi=72, layout="constrained")
    return figure, figure.add_subplot()


def write_png(figure: Figure, path: Path) -> None:
    """Writes a PNG picture, whole or not at all."""
    part = path.with_name(path.name + ".part")
    figure.savefig(
        part,
        format="png",
        dpi=144,
        facecolor="white",
        bbox_inches="tight",
        pad_inches=0.2,
        metadata={"Software": None},
    )
    os.replace(part, path)
