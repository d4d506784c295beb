"""How plots look: colours, and matplotlib without a display and without its global state."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
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
    "green": ("#2f7a4a", "#74c993"),
    "violet": ("#85489c", "#cf9fe2"),
    "ochre": ("#856a00", "#d8bd52"),
    "teal": ("#16788a", "#62c6d4"),
}
"""Colours by their role, on light and on dark. Plots are drawn in the light ones.

The last ones stand for runs beside each other, after `train` and `score`.
"""
INK, MUTED, RULE, RAW, TRAIN, SCORE = (
    PALETTE[role][0] for role in ("ink", "muted", "rule", "raw", "train", "score")
)

RUN_ROLES = ("train", "score", "green", "violet", "ochre", "teal")
RUN_DASHES = ((), (5.0, 2.0), (1.5, 1.8), (7.0, 2.0, 1.5, 2.0))
"""Lines drawn and left out, in pixels. With the colours, 24 runs look different from each other."""

SURPRISAL_BITS = (1, 2, 4, 6, 9)
"""Where the tint of a surprising piece of text gets a step stronger."""
STRONGEST = 0.5
"""Share of `score` in the strongest tint: text stays readable on it."""


def tints() -> list[tuple[str, str]]:
    """Backgrounds from not surprising to most surprising, on light and on dark."""
    steps = len(SURPRISAL_BITS)
    themes = zip(PALETTE["paper"], PALETTE["score"], strict=True)
    columns = [[_mix(*theme, STRONGEST * i / steps) for i in range(steps + 1)] for theme in themes]
    return list(zip(*columns, strict=True))


def _mix(first: str, second: str, share: float) -> str:
    channels = ((int(first[i : i + 2], 16), int(second[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(a + share * (b - a)):02x}" for a, b in channels)


Size = tuple[float, float]
"""Width and height in points, which are pixels where a plot is shown at its own size."""


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's own defaults, whatever this machine prefers, and our few changes."""
    import matplotlib.style

    changes = {
        "svg.fonttype": "none",
        "svg.hashsalt": "scangolf",
        "text.parse_math": False,
        "lines.scale_dashes": False,
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


def svg(figure: Figure, name: str, label: str) -> str:
    """A drawn figure as an <svg> element for a page, named `label` for those who cannot see it.

    It has no fixed size, ids that begin with `name`, and the page's variables as colours.
    """
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    body = re.sub("<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub("<g id=[^>]*/>", "", body)  # groups of nothing
    body = re.sub("<g id=[^>]*>", "<g>", body)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body.replace("xlink:href", "href"))
    body = re.sub("font-family: [^;]*; ", "", body)
    body = re.sub(r"\s+", " ", body)
    body = re.sub("<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
    for role, (light, _dark) in PALETTE.items():
        body = body.replace(light, f"var(--{role})")
    return f'<svg {view_box[0]} role="img" aria-label="{escape(label)}">{body}'
