"""The scan and attention over the length, as a picture."""

from __future__ import annotations

from pathlib import Path

from scangolf.bench.crossing import times
from scangolf.bench.record import Report
from scangolf.report.style import INK, MUTED, SCORE, TRAIN, canvas, style, write_png

SIZE = (640, 360)


def crossing_png(report: Report, path: Path) -> None:
    """Draws the times of a report with a crossing, both axes in logarithms."""
    from matplotlib.ticker import LogLocator, NullLocator

    lengths, scan, attention = times(report)
    shape = report.shapes[0].shape
    forms = {row.name: row.form for row in report.shapes[0].rows}
    with style():
        figure, axes = canvas(SIZE)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        line = {"marker": "o", "markersize": 5, "markeredgewidth": 0, "linewidth": 1.6}
        name = f"{report.operator} ({forms['auto']})"
        axes.plot(lengths, scan, color=TRAIN, label=name, **line)
        name = f"attention ({forms['attention']})"
        axes.plot(lengths, attention, color=SCORE, label=name, **line)
        axes.set_xticks(lengths, [f"{length:,}" for length in lengths])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_ylim(min(scan + attention) / 1.3, max(scan + attention) * 1.3)
        axes.set_xlabel("length (tokens)")
        where = report.crossing and report.crossing.length
        if where:
            axes.axvline(where, color=MUTED, linewidth=0.8, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"{where:,.0f}", (where, 0), (4, 6), color=INK,
                xycoords=("data", "axes fraction"), textcoords="offset points",
            )  # fmt: skip
        axes.legend(
            loc="lower left", bbox_to_anchor=(0, 1.02), ncols=2, borderaxespad=0, borderpad=0
        )
        axes.set_title(
            f"forward and backward (ms) of {shape.batch * shape.length:,} tokens, "
            f"{shape.channels:,} channels, {report.dtype}\n{report.device}",
            pad=29,
        )
        write_png(figure, path)
