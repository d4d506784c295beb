"""The curves of a run, drawn in the style of report/style.py."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scangolf.report.curves import smooth, thin, y_limits
from scangolf.report.folder import RunFolder, read_run
from scangolf.report.style import PALETTE, RAW, SCORE, TRAIN, Size, canvas, style, write_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDE: Size = (800, 330)
NARROW: Size = (360, 300)
SMALL: Size = (310, 200)


def curve_png(run: Path, path: Path) -> None:
    """Draws bits per byte against training time as a PNG picture, whole or not at all.

    Raises UserError where `run` is no run folder.
    """
    folder = read_run(run)
    with style():
        figure = _bits_per_byte(folder, WIDE, legend_columns=4)
        write_png(figure, path)


def svg_plots(folder: RunFolder) -> dict[str, str]:
    """The plots of the page by name, each an <svg> element that takes its colours from the page."""
    with style():
        bits = _describe_bits_per_byte(folder)
        return {
            "bits-wide": _svg(_bits_per_byte(folder, WIDE, 4), "bits-wide", bits),
            "bits-narrow": _svg(_bits_per_byte(folder, NARROW, 2), "bits-narrow", bits),
            "loss": _svg(_loss(folder), "loss", _describe_loss(folder)),
            "speed": _svg(_speed(folder), "speed", _describe_speed(folder)),
            "rate": _svg(_rate(folder), "rate", _describe_rate(folder)),
        }


# --- what is drawn ------------------------------------------------------------------------------


def _bits_per_byte(folder: RunFolder, size: Size, legend_columns: int) -> Figure:
    figure, axes = _figure(size, folder)
    bits = folder.curve("train_bpb")
    _draw_training(axes, folder, bits)
    scores = _draw_scores(axes, folder, "val_bpb")
    if folder.summary is not None:
        score = folder.summary["artifact_val_bpb"]
        scores.append(score)
        axes.plot(
            folder.seconds / _time_unit(folder.seconds)[0],
            score,
            "D",
            color=SCORE,
            markersize=4.5,
            markeredgewidth=0,
            clip_on=False,
            zorder=5,
            label=f"artifact {score:.4f}",
        )
    axes.set_ylim(y_limits(folder.curve("seconds"), bits, scores))
    axes.legend(
        loc="lower left",
        bbox_to_anchor=(0, 1.02),
        ncols=legend_columns,
        borderaxespad=0,
        borderpad=0,
    )
    rows = -(-len(axes.get_legend_handles_labels()[1]) // legend_columns)
    axes.set_title("bits per byte", pad=12 + 17 * rows)
    return figure


def _loss(folder: RunFolder) -> Figure:
    figure, axes = _figure(SMALL, folder)
    _draw_training(axes, folder, folder.curve("loss"))
    scores = _draw_scores(axes, folder, "val_loss")
    axes.set_ylim(y_limits(folder.curve("seconds"), folder.curve("loss"), scores))
    axes.set_title("loss (nats a token)")
    return figure


def _speed(folder: RunFolder) -> Figure:
    from matplotlib.ticker import EngFormatter

    figure, axes = _figure(SMALL, folder)
    speed = folder.curve("tokens_per_second")
    _draw_training(axes, folder, speed)
    axes.set_ylim(0, 1.08 * max(np.quantile(speed, 0.995), smooth(speed).max()))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_title("throughput (tokens a second)")
    return figure


def _rate(folder: RunFolder) -> Figure:
    figure, axes = _figure(SMALL, folder)
    scale = _time_unit(folder.seconds)[0]
    rate = folder.curve("lr")
    axes.plot(*thin(folder.curve("seconds") / scale, rate), color=TRAIN, linewidth=1.5)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.5, 1])
    axes.set_title("learning-rate factor (1 = full)")
    return figure


def _draw_training(axes: Axes, folder: RunFolder, values: np.ndarray) -> None:
    """The values of every step, and over them a mean of their neighbours."""
    seconds = folder.curve("seconds") / _time_unit(folder.seconds)[0]
    smoothed = smooth(values)
    whole = np.array_equal(smoothed, values)
    if not whole:
        raw = thin(seconds, values)
        axes.plot(*raw, color=RAW, linewidth=0.8, label="training, each step")
    label = "training" if whole else "training, smoothed"
    axes.plot(*thin(seconds, smoothed), color=TRAIN, linewidth=1.6, label=label)
    if len(values) == 1:
        axes.plot(seconds, values, "o", color=TRAIN, markersize=3)


def _draw_scores(axes: Axes, folder: RunFolder, name: str) -> list[float]:
    """Marks the evaluations and gives their values."""
    scores = [line[name] for line in folder.evaluations]
    if scores:
        scale = _time_unit(folder.seconds)[0]
        axes.plot(
            [line["seconds"] / scale for line in folder.evaluations],
            scores,
            "o-",
            color=SCORE,
            linewidth=0.8,
            markersize=8,
            markerfacecolor="none",
            markeredgewidth=1.4,
            clip_on=False,
            zorder=4,
            label=f"validation {scores[-1]:.4f}",
        )
    return scores


# --- the same in words --------------------------------------------------------------------------


def _describe_bits_per_byte(folder: RunFolder) -> str:
    """The text alternative of the main plot: what it shows, and its last values."""
    bits = folder.curve("train_bpb")
    words = f"training {bits[-1]:.4f} (smoothed {smooth(bits)[-1]:.4f})"
    if folder.evaluations:
        words += f", validation {folder.evaluations[-1]['val_bpb']:.4f}"
    if folder.summary is not None:
        words += f", artifact {folder.summary['artifact_val_bpb']:.4f}"
    return f"Bits per byte against training time, to {folder.seconds:.4g} s. Last values: {words}."


def _describe_loss(folder: RunFolder) -> str:
    words = f"training {folder.curve('loss')[-1]:.4f}"
    if folder.evaluations:
        words += f", validation {folder.evaluations[-1]['val_loss']:.4f}"
    return f"Loss in nats a token against training time. Last values: {words}."


def _describe_speed(folder: RunFolder) -> str:
    last = folder.curve("tokens_per_second")[-1]
    return f"Throughput against training time. Last value: {last:,.0f} tokens a second."


def _describe_rate(folder: RunFolder) -> str:
    last = folder.curve("lr")[-1]
    return f"Learning-rate factor against training time. Last value: {last:.3f}."


def opening_is_cut(folder: RunFolder) -> bool:
    """Whether bits per byte begin above what is drawn of them."""
    bits = folder.curve("train_bpb")
    scores = [line["val_bpb"] for line in folder.evaluations]
    return bool(bits[0] > y_limits(folder.curve("seconds"), bits, scores)[1])


def _time_unit(seconds: float) -> tuple[float, str]:
    """Seconds of the unit that suits a run of this length, and its sign."""
    if seconds <= 900:
        return 1, "s"
    return (60, "min") if seconds <= 3 * 3600 else (3600, "h")


# --- matplotlib ---------------------------------------------------------------------------------


def _figure(size: Size, folder: RunFolder) -> tuple[Figure, Axes]:
    """A figure of `size` with one plot over training time."""
    from matplotlib.ticker import MaxNLocator

    figure, axes = canvas(size)
    scale, unit = _time_unit(folder.seconds)
    axes.set_xlim(0, 1.01 * folder.seconds / scale)
    axes.set_xlabel(f"training time ({unit})")
    axes.xaxis.set_major_locator(MaxNLocator(10 if size == WIDE else 5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6 if size[1] > SMALL[1] else 4, steps=[1, 2, 5, 10]))
    return figure, axes


def _svg(figure: Figure, name: str, label: str) -> str:
    """The <svg> element alone: no fixed size, its own ids, colours as the page's variables."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    view_box = re.search(r'viewBox="[^"]*"', text)
    assert view_box is not None
    body = re.sub("<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", text, flags=re.S)
    body = body[body.index(">", body.index("<svg")) + 1 :]
    body = re.sub("<g id=[^>]*>", "<g>", body)
    body = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", body.replace("xlink:href", "href"))
    body = re.sub("font-family: [^;]*; ", "", body)
    body = re.sub(r"\s+", " ", body)
    body = re.sub("<[^>]*>", lambda tag: re.sub(r"(\.\d\d)\d+", r"\1", tag[0]), body)
    for role, (light, _dark) in PALETTE.items():
        body = body.replace(light, f"var(--{role})")
    return f'<svg {view_box[0]} role="img" aria-label="{escape(label)}">{body}'
