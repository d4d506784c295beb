"""The curve of bits per byte against bytes, as a table and as a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from scangolf.console import wide_console
from scangolf.report.style import MUTED, SCORE, TRAIN, canvas, style, write_png
from scangolf.requantize.curve import Curve

SIZE = (640, 360)


def print_curve(curve: Curve) -> None:
    table = Table(box=box.SIMPLE_HEAD)
    for column in ("bytes", "bits a weight", "bits a byte", "lost"):
        table.add_column(column, justify="right")
    table.add_column("artifact")
    for point in curve.points:
        table.add_row(
            f"{point.artifact_bytes:,}",
            f"{point.bits_per_weight:.2f}",
            f"{point.val_bpb:.4f}",
            f"{point.lost_bpb:+.4f}",
            Path(point.artifact).name,
        )
    out = wide_console()
    out.print(table)
    out.print(
        f"lost: against {curve.val_bpb:.4f} bits a byte of the {curve.parameters:,} weights before "
        f"rounding; artifacts in {Path(curve.points[0].artifact).parent}",
        soft_wrap=True,
    )


def curve_png(curve: Curve, path: Path) -> None:
    """Draws bits per byte against bytes, and above them the bits a weight that these are."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    def bits(n_bytes: Any) -> Any:
        return 8 * n_bytes / curve.parameters

    def n_bytes(bits: Any) -> Any:
        return bits * curve.parameters / 8

    with style():
        figure, axes = canvas(SIZE)
        sizes = [point.artifact_bytes for point in curve.points]
        scores = [point.val_bpb for point in curve.points]
        line = {"marker": "o", "markersize": 5, "markeredgewidth": 0, "linewidth": 1.6}
        axes.plot(sizes, scores, color=SCORE, **line)
        axes.axhline(curve.val_bpb, color=TRAIN, linewidth=1.2, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"before rounding {curve.val_bpb:.4f}", (0, curve.val_bpb), (4, 4), color=TRAIN,
            xycoords=("axes fraction", "data"), textcoords="offset points",
        )  # fmt: skip
        axes.yaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        axes.yaxis.set_major_formatter("{x:.4f}")
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
        axes.set_xlabel("bytes")
        above = axes.secondary_xaxis("top", functions=(bits, n_bytes))
        above.spines["top"].set_visible(False)
        above.set_xlabel("bits a weight", color=MUTED)
        axes.set_title("bits per byte of the artifact", pad=12)
        write_png(figure, path)
