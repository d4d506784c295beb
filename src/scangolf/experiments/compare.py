"""`scangolf compare`: runs of several configurations and seeds, and what their scores say.

The score of a run is that of its artifact, in bits a byte of the validation text. The challenge
counts a record in nats a token; the text being the same, one is a fixed multiple of the other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import numpy as np

from scangolf.console import nearest
from scangolf.errors import UserError
from scangolf.experiments.groups import Group, differences, read_groups
from scangolf.experiments.statistics import (
    Interval,
    Test,
    compare_scores,
    deviation,
    holm,
    mean_interval,
)
from scangolf.report.curves import smooth
from scangolf.report.folder import RunFolder

RECORD_NATS, RECORD_P = 0.005, 0.01
"""A record of the challenge is better by so many nats a token, at this level."""


@dataclass(frozen=True)
class Row:
    """A configuration: its scores in bits a byte, and what it took. Means over its runs."""

    name: str
    differs: dict[str, Any]
    """Its settings that are not the same in all configurations."""
    scores: dict[int, float]
    mean: float
    std: float | None
    """None for a single run, as is the interval."""
    interval: Interval | None
    nats: float
    steps: float
    train_seconds: float
    total_bytes: float
    fits: bool
    equal_steps: float
    equal_seconds: float


@dataclass(frozen=True)
class Pair:
    """Two configurations: `a` less `b`, so that below zero `a` is better."""

    a: str
    b: str
    test: Test
    nats: float
    """The difference in nats a token."""
    p_holm: float | None
    """p after correction for all comparisons that were made."""
    record_p: float | None
    """Corrected p of the challenge's rule: `a` is ahead by more than RECORD_NATS."""
    record: bool | None
    """Whether the rule is met, the byte limit included; None where it was not asked for, or there
    is no p to tell by."""


@dataclass(frozen=True)
class View:
    """Where the curves of all runs were read: at the end of the shortest one."""

    at: float
    unit: Literal["steps", "seconds"]
    source: Literal["validation", "training"]


@dataclass(frozen=True)
class Comparison:
    rows: list[Row]
    """From the best to the worst."""
    pairs: list[Pair]
    """All pairs of rows, or all with `against`."""
    against: str | None
    views: list[View]
    left_out: dict[str, str]
    """Runs that were not compared, and why."""

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def compare(paths: Sequence[Path], against: str | None = None) -> Comparison:
    """Compares the runs in these folders, reading nothing else.

    `against` is the name of one configuration, which all others are compared with, by the rule for
    records as well. Without it all pairs are compared: the best is known only after looking, and
    its lead must count as the largest of many. Raises UserError as `read_groups` does, and where
    there is no configuration of that name.
    """
    groups, left_out = read_groups(paths)
    groups.sort(key=lambda group: float(np.mean([*group.scores.values()])))
    names = [group.name for group in groups]
    if against is not None and against not in names:
        raise UserError(
            f"--against {against}: no such configuration; did you mean {nearest(against, names)}?"
        )
    steps, seconds = (_view(groups, unit) for unit in ("steps", "seconds"))
    differs = differences(groups)
    rows = [_row(group, differs[group.name], steps, seconds) for group in groups]
    return Comparison(rows, _pairs(groups, against), against, [steps, seconds], left_out)


def nats_per_bit(group: Group) -> float:
    """Nats a token for a bit a byte, on this configuration's tokens."""
    tokens, n_bytes = group.summaries("val_tokens")[0], group.summaries("val_bytes")[0]
    return math.log(2) * n_bytes / tokens


def _row(group: Group, differs: dict[str, Any], steps: View, seconds: View) -> Row:
    scores = [*group.scores.values()]
    mean = float(np.mean(scores))
    return Row(
        name=group.name,
        differs=differs,
        scores=group.scores,
        mean=mean,
        std=deviation(scores) if len(scores) > 1 else None,
        interval=mean_interval(scores),
        nats=mean * nats_per_bit(group),
        steps=float(np.mean(group.summaries("steps"))),
        train_seconds=float(np.mean(group.summaries("train_seconds"))),
        total_bytes=float(np.mean(group.summaries("total_bytes"))),
        fits=all(group.summaries("fits")),
        equal_steps=_read(group, steps),
        equal_seconds=_read(group, seconds),
    )


def _pairs(groups: Sequence[Group], against: str | None) -> list[Pair]:
    if against is None:
        chosen = list(combinations(groups, 2))
    else:
        reference = next(group for group in groups if group.name == against)
        chosen = [(group, reference) for group in groups if group is not reference]
    tests = [compare_scores(a.scores, b.scores, RECORD_NATS / nats_per_bit(b)) for a, b in chosen]
    corrected = _holm_of_known([test.p for test in tests])
    ahead = _holm_of_known([test.p_ahead for test in tests])
    pairs = []
    for (a, b), test, p, p_ahead in zip(chosen, tests, corrected, ahead, strict=True):
        record_p = None if against is None else p_ahead
        met = None if record_p is None else record_p < RECORD_P and all(a.summaries("fits"))
        nats = test.difference * nats_per_bit(b)
        pairs.append(Pair(a.name, b.name, test, nats, p, record_p, met))
    return pairs


def _holm_of_known(p: Sequence[float | None]) -> list[float | None]:
    corrected = iter(holm([value for value in p if value is not None]))
    return [None if value is None else next(corrected) for value in p]


# --- at equal steps, at equal time --------------------------------------------------------------


def _view(groups: Sequence[Group], unit: Literal["steps", "seconds"]) -> View:
    """Read from evaluations where every run has one before and one after, else from training."""
    runs = [run for group in groups for run in group.runs]
    at = min(_axis(run.training, unit)[-1] for run in runs)
    evaluated = [_axis(run.evaluations, unit) for run in runs]
    spanned = all(len(axis) > 0 and axis[0] <= at <= axis[-1] for axis in evaluated)
    return View(float(at), unit, "validation" if spanned else "training")


def _read(group: Group, view: View) -> float:
    """Bits a byte of the group's curves at the view's place, linear between points; their mean."""
    return float(np.mean([_read_curve(run, view) for run in group.runs]))


def _read_curve(run: RunFolder, view: View) -> float:
    if view.source == "validation":
        bits = np.array([line["val_bpb"] for line in run.evaluations])
        return float(np.interp(view.at, _axis(run.evaluations, view.unit), bits))
    return float(np.interp(view.at, _axis(run.training, view.unit), smooth(run.curve("train_bpb"))))


def _axis(lines: Sequence[dict[str, Any]], unit: Literal["steps", "seconds"]) -> np.ndarray:
    return np.array([line["step" if unit == "steps" else "seconds"] for line in lines])
