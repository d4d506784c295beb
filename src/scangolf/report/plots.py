"""The curves of a run, drawn in the style of report/style.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from scangolf.report.curves import smooth, thin, y_limits
from scangolf.report.folder import RunFolder, read_run
from scangolf.report.style import RAW, SCORE, TRAIN, Size, canvas, style, svg, write_png
from scangolf.report.words import short

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
        write_png(_bits_per_byte(folder, WIDE, legend_columns=4), path)


def run_plots(folder: RunFolder) -> dict[str, str]:
    """The curves of a run by name, each an <svg> element that takes its colours from the page."""
    bits, loss = ("train_bpb", "val_bpb"), ("loss", "val_loss")
    words = _describe(folder, "Bits per byte", *bits, "seconds")
    with style():
        return {
            "bits-wide": svg(_bits_per_byte(folder, WIDE, 4), "bits-wide", words),
            "bits-narrow": svg(_bits_per_byte(folder, NARROW, 2), "bits-narrow", words),
            "bits-steps": svg(
                _curve(folder, "bits per byte", *bits, "step"),
                "bits-steps",
                _describe(folder, "Bits per byte", *bits, "step"),
            ),
            "bits-tokens": svg(
                _curve(folder, "bits per byte", *bits, "tokens"),
                "bits-tokens",
                _describe(folder, "Bits per byte", *bits, "tokens"),
            ),
            "loss": svg(
                _curve(folder, "loss (nats a token)", *loss, "seconds"),
                "loss",
                _describe(folder, "Loss in nats a token", *loss, "seconds"),
            ),
            "speed": svg(_speed(folder), "speed", _describe_speed(folder)),
            "rate": svg(_rate(folder), "rate", _describe_rate(folder)),
        }


# --- what a curve is drawn against --------------------------------------------------------------


@dataclass(frozen=True)
class Progress:
    """A field of the training lines as an axis that runs share."""

    field: Literal["seconds", "step", "tokens"]
    scale: float
    label: str
    end: float

    @classmethod
    def of(cls, runs: Sequence[RunFolder], field: Literal["seconds", "step", "tokens"]) -> Progress:
        """To the end of the longest run; time is in the unit that suits it."""
        end = max(folder.training[-1][field] for folder in runs)
        if field != "seconds":
            return cls(field, 1, {"step": "steps", "tokens": "tokens"}[field], end)
        scale, unit = (1, "s") if end <= 900 else (60, "min") if end <= 3 * 3600 else (3600, "h")
        return cls(field, scale, f"training time ({unit})", end / scale)

    def __call__(self, folder: RunFolder) -> np.ndarray:
        """Where the training lines of a run stand."""
        return folder.curve(self.field) / self.scale

    def at_steps(self, folder: RunFolder, steps: Sequence[int]) -> np.ndarray:
        return np.interp(steps, folder.curve("step"), self(folder))


def progress_figure(size: Size, progress: Progress) -> tuple[Figure, Axes]:
    """A figure of `size` with one plot, still empty, over training time, steps or tokens."""
    from matplotlib.ticker import EngFormatter, MaxNLocator

    figure, axes = canvas(size)
    axes.set_xlim(0, 1.01 * progress.end)
    axes.set_xlabel(progress.label)
    axes.xaxis.set_major_locator(MaxNLocator(10 if size == WIDE else 5, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(6 if size[1] > SMALL[1] else 4, steps=[1, 2, 5, 10]))
    if progress.field != "seconds":
        axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
    return figure, axes


# --- what is drawn ------------------------------------------------------------------------------


def _bits_per_byte(folder: RunFolder, size: Size, legend_columns: int) -> Figure:
    progress = Progress.of([folder], "seconds")
    figure, axes = progress_figure(size, progress)
    _draw_training(axes, folder, "train_bpb", progress)
    _draw_scores(axes, folder, "val_bpb", progress, 8)
    if folder.summary is not None:
        label = f"artifact {folder.summary['artifact_val_bpb']:.4f}"
        draw_artifact(axes, folder, progress, SCORE, label)
    axes.set_ylim(limits(folder, "train_bpb", "val_bpb"))
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


def _curve(
    folder: RunFolder, title: str, name: str, score: str, x: Literal["seconds", "step", "tokens"]
) -> Figure:
    progress = Progress.of([folder], x)
    figure, axes = progress_figure(SMALL, progress)
    _draw_training(axes, folder, name, progress)
    _draw_scores(axes, folder, score, progress, 5)
    axes.set_ylim(limits(folder, name, score))
    axes.set_title(title)
    return figure


def _speed(folder: RunFolder) -> Figure:
    progress = Progress.of([folder], "seconds")
    figure, axes = progress_figure(SMALL, progress)
    _draw_training(axes, folder, "tokens_per_second", progress)
    scale_speed(axes, [folder])
    return figure


def scale_speed(axes: Axes, runs: Sequence[RunFolder]) -> None:
    """From zero to the fastest of these runs, without its single fastest steps."""
    from matplotlib.ticker import EngFormatter

    speeds = [folder.curve("tokens_per_second") for folder in runs]
    axes.set_ylim(0, 1.08 * max(max(np.quantile(v, 0.995), smooth(v).max()) for v in speeds))
    axes.yaxis.set_major_formatter(EngFormatter(sep=" "))
    axes.set_title("throughput (tokens a second)")


def _rate(folder: RunFolder) -> Figure:
    progress = Progress.of([folder], "seconds")
    figure, axes = progress_figure(SMALL, progress)
    axes.plot(*thin(progress(folder), folder.curve("lr")), color=TRAIN, linewidth=1.5)
    axes.set_ylim(0, 1.08)
    axes.set_yticks([0, 0.5, 1])
    axes.set_title("learning-rate factor (1 = full)")
    return figure


def _draw_training(axes: Axes, folder: RunFolder, name: str, progress: Progress) -> None:
    """The values of every step, and over them a mean of their neighbours."""
    x, values = progress(folder), folder.curve(name)
    smoothed = smooth(values)
    whole = np.array_equal(smoothed, values)
    if not whole:
        axes.plot(*thin(x, values), color=RAW, linewidth=0.8, label="training, each step")
    label = "training" if whole else "training, smoothed"
    axes.plot(*thin(x, smoothed), color=TRAIN, linewidth=1.6, label=label)
    if len(values) == 1:
        axes.plot(x, values, "o", color=TRAIN, markersize=3)


def _draw_scores(axes: Axes, folder: RunFolder, name: str, progress: Progress, size: float) -> None:
    """Marks the evaluations."""
    scores = [line[name] for line in folder.evaluations]
    if scores:
        axes.plot(
            progress.at_steps(folder, [line["step"] for line in folder.evaluations]),
            scores,
            "o-",
            color=SCORE,
            linewidth=0.8,
            markersize=size,
            markerfacecolor="none",
            markeredgewidth=1.4,
            clip_on=False,
            zorder=4,
            label=f"validation {scores[-1]:.4f}",
        )


def draw_artifact(
    axes: Axes, folder: RunFolder, progress: Progress, color: str, label: str | None = None
) -> None:
    """Marks the score of a finished run's artifact, where its training ends."""
    assert folder.summary is not None
    axes.plot(
        progress(folder)[-1],
        folder.summary["artifact_val_bpb"],
        "D",
        color=color,
        markersize=4.5,
        markeredgewidth=0,
        clip_on=False,
        zorder=5,
        label=label,
    )


def limits(folder: RunFolder, name: str, score: str) -> tuple[float, float]:
    """Of what is drawn; the artifact's score is among bits per byte."""
    scores = [line[score] for line in folder.evaluations]
    if folder.summary is not None and name == "train_bpb":
        scores.append(folder.summary["artifact_val_bpb"])
    return y_limits(folder.curve("seconds"), folder.curve(name), scores)


def opening_is_cut(folder: RunFolder) -> bool:
    """Whether bits per byte begin above what is drawn of them."""
    return bool(folder.curve("train_bpb")[0] > limits(folder, "train_bpb", "val_bpb")[1])


# --- the same in words --------------------------------------------------------------------------


def _describe(folder: RunFolder, what: str, name: str, score: str, x: str) -> str:
    """The text alternative of a falling curve: what it shows, and its last values."""
    values, end = folder.curve(name), folder.training[-1][x]
    against = {
        "seconds": f"training time, to {end:.4g} s",
        "step": f"steps, to {end:,}",
        "tokens": f"tokens, to {short(end)}",
    }[x]
    words = f"training {values[-1]:.4f} (smoothed {smooth(values)[-1]:.4f})"
    if folder.evaluations:
        words += f", validation {folder.evaluations[-1][score]:.4f}"
    if folder.summary is not None and name == "train_bpb":
        words += f", artifact {folder.summary['artifact_val_bpb']:.4f}"
    return f"{what} against {against}. Last values: {words}."


def _describe_speed(folder: RunFolder) -> str:
    last = folder.curve("tokens_per_second")[-1]
    return f"Throughput against training time. Last value: {last:,.0f} tokens a second."


def _describe_rate(folder: RunFolder) -> str:
    last = folder.curve("lr")[-1]
    return f"Learning-rate factor against training time. Last value: {last:.3f}."
