"""How a trained model remembers, gates and loses, by analysis.json: plots, and their numbers.

Blocks count from 0 in analysis.json, as in the names of tensors, and from 1 on the page.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from scangolf.report.plots import SMALL
from scangolf.report.style import INK, MUTED, SCORE, TRAIN, Size, canvas, style, svg
from scangolf.report.words import three_figures

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HALF: Size = (430, 260)
"""Two stand beside each other."""
GATES = {
    "resid_mix_x": ("stream kept", "resid_mix[0]"),
    "resid_mix_x0": ("embedding mixed in", "resid_mix[1]"),
    "mixer_gain": ("mixer's output", "out_proj.gain"),
    "mlp_gain": ("MLP's output", "mlp.down.gain"),
    "skip_weights": ("skip added", "skip_weights"),
}
"""What each gate scales, and its parameter."""


def anatomy_plots(analysis: dict[str, Any], seq_len: int) -> dict[str, str]:
    """The plots by name: `memory` and `dt` where there are scans, each gate, and `position`."""
    plots = {}
    scans, positions = analysis["scans"], analysis["positions"]
    n_blocks = 1 + max(entry["block"] for entry in analysis["gates"])
    with style():
        if scans:
            label = "Memory of each scan's states in tokens, by quantiles; the table has them."
            plots["memory"] = svg(_spectra(scans, "memory", seq_len), "memory", label)
            label = "Mean dt of each scan's channels or heads, by quantiles; the table has medians."
            plots["dt"] = svg(_spectra(scans, "dt", None), "dt", label)
        for gate, (what, name) in GATES.items():
            entries = [entry for entry in analysis["gates"] if entry["gate"] == gate]
            if entries:
                label = f"{what} ({name}) by block, over channels; the table has the numbers."
                plots[gate] = svg(_gate(entries, n_blocks, what), gate, label)
        plots["position"] = svg(_position(positions), "position", _describe_position(positions))
    return plots


# --- memory -------------------------------------------------------------------------------------


class Spectrum(NamedTuple):
    """A scan's row of the table beside the plots; memory in tokens."""

    block: int
    kind: str
    what: str
    dt: str
    memory: list[str]
    """The least, the quartiles and the largest."""


def spectra(analysis: dict[str, Any]) -> Iterator[Spectrum]:
    for scan in analysis["scans"]:
        states = "heads" if scan["states"] is None else f"x {scan['states']}"
        quartiles = np.quantile(scan["memory"], np.linspace(0, 1, 5))
        yield Spectrum(
            scan["block"] + 1,
            scan["kind"],
            f"{scan['channels']:,} {states}",
            three_figures(float(np.median(scan["dt"]))),
            [three_figures(value) for value in quartiles],
        )


def _spectra(scans: Sequence[dict[str, Any]], name: str, seq_len: int | None) -> Figure:
    """A row a scan: bars from quantile to quantile, dark where most of the values are."""
    figure, axes = canvas((HALF[0], 80 + 22 * len(scans)))
    _log_x(axes)
    for row, scan in enumerate(scans):
        values = np.maximum(scan[name], 1e-9)
        for low, high in zip(values[:10], values[:-11:-1], strict=True):
            axes.plot(
                [low, high], [row, row], color=TRAIN, linewidth=10, alpha=0.16,
                solid_capstyle="butt",
            )  # fmt: skip
        axes.plot(values[10], row, "|", color=INK, markersize=11, markeredgewidth=1.8)
    if seq_len is not None:
        axes.axvline(seq_len, color=SCORE, linewidth=1)
        axes.text(seq_len, -0.9, "sequence ", color=SCORE, fontsize=10, ha="right", va="center")
    axes.set_ylim(len(scans) - 0.4, -1.4 if seq_len is not None else -0.6)
    axes.set_yticks(range(len(scans)), [f"{scan['block'] + 1} {scan['kind']}" for scan in scans])
    axes.set_title("memory (tokens)" if name == "memory" else "dt (mean over tokens)")
    return figure


def _log_x(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: three_figures(value)))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", size=0)


# --- gates --------------------------------------------------------------------------------------


def gate_table(analysis: dict[str, Any]) -> list[tuple[str, list[str]]]:
    """A row a block: the median of every gate, and where nine tenths of its channels lie."""
    by_block: dict[int, dict[str, str]] = {}
    for entry in analysis["gates"]:
        low, _, median, _, high = entry["quantiles"]
        cell = f"{median:.2f} ({low:.2f} to {high:.2f})"
        by_block.setdefault(entry["block"] + 1, {})[entry["gate"]] = cell
    sources = skips(analysis)
    return [
        (f"{block} + {sources[block]}" if block in sources else str(block),
         [cells.get(gate, "") for gate in GATES])
        for block, cells in by_block.items()
    ]  # fmt: skip


def skips(analysis: dict[str, Any]) -> dict[int, int]:
    """The block whose output is added, by the block before which it is."""
    entries = (entry for entry in analysis["gates"] if "source" in entry)
    return {entry["block"] + 1: entry["source"] + 1 for entry in entries}


def _gate(entries: Sequence[dict[str, Any]], n_blocks: int, title: str) -> Figure:
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(SMALL)
    blocks = [entry["block"] + 1 for entry in entries]
    low, quarter, median, three_quarters, high = np.array([e["quantiles"] for e in entries]).T
    for bottom, top in ((low, high), (quarter, three_quarters)):
        axes.vlines(blocks, bottom, top, color=TRAIN, linewidth=7, alpha=0.3)
    axes.plot(blocks, median, "_", color=INK, markersize=8, markeredgewidth=1.8)
    axes.axhline(0, color=MUTED, linewidth=0.8)
    axes.set_xlim(0.4, n_blocks + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(8, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 5, 10]))
    axes.set_xlabel("block")
    axes.set_title(title)
    return figure


# --- loss by position ---------------------------------------------------------------------------


class Stretch(NamedTuple):
    """Positions of a sequence, counted from 1, and the means over them."""

    first: int
    last: int
    nats: float
    bits_per_byte: float


def stretches(positions: dict[str, Any]) -> list[Stretch]:
    """Loss by position over octaves: 1, 2, 3 to 4, 5 to 8 and so on."""
    nats, n_bytes = np.array(positions["nats"]), np.array(positions["bytes"])
    found, first = [], 0
    while first < len(nats):
        last = min(max(1, 2 * first), len(nats))
        total = nats[first:last].sum()
        bits = total / math.log(2) / max(n_bytes[first:last].sum(), 1e-9)
        found.append(Stretch(first + 1, last, total / (last - first), bits))
        first = last
    return found


def position_figure() -> tuple[Figure, Axes]:
    """A figure, still empty, of bits per byte over positions."""
    figure, axes = canvas(HALF)
    _log_x(axes)
    axes.set_xlabel("position in the sequence")
    axes.set_title("bits per byte")
    return figure, axes


def draw_stretches(axes: Axes, positions: dict[str, Any], color: str, **how: Any) -> None:
    means = stretches(positions)
    centres = [math.sqrt(mean.first * mean.last) for mean in means]
    values = [mean.bits_per_byte for mean in means]
    axes.plot(centres, values, color=color, linewidth=1.6, **how)


def _position(positions: dict[str, Any]) -> Figure:
    figure, axes = position_figure()
    draw_stretches(axes, positions, TRAIN, marker="o", markersize=4)
    return figure


def _describe_position(positions: dict[str, Any]) -> str:
    means = stretches(positions)
    first, last = means[0], means[-1]
    return (
        f"Bits per byte by position in a sequence: {first.bits_per_byte:.3f} at the first, "
        f"{last.bits_per_byte:.3f} at {last.first:,} to {last.last:,}; the table has all."
    )
