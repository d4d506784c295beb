"""Is a difference more than chance? Intervals, tests and corrections over runs with several seeds.

Scores are means over the whole validation split, one a run, lower is better. What varies between
runs of one configuration is the seed: initialisation and order of the data.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from scipy import stats

CONFIDENCE = 0.95
ROUNDING = 1e-12
"""A spread of so small a part of the numbers themselves is what arithmetic adds to equal ones."""
Interval = tuple[float, float]


@dataclass(frozen=True)
class Test:
    """Two configurations compared: the mean of one less that of the other."""

    difference: float
    interval: Interval | None
    p: float | None
    """Two-sided. Neither this nor the interval is known where a side has one run only, nor where
    nothing varies: without a spread there is nothing to measure a difference by."""
    pairs: int
    """Seeds of both: from two on the test is Student's on their differences, else Welch's."""
    p_ahead: float | None
    """One-sided: the chance of such a lead where the true one is no larger than the margin."""


def mean_interval(scores: Sequence[float]) -> Interval | None:
    """The mean's confidence interval by Student's t; None for a single score."""
    if len(scores) < 2:
        return None
    width = stats.t.ppf((1 + CONFIDENCE) / 2, len(scores) - 1) * deviation(scores)
    half = float(width) / math.sqrt(len(scores))
    mean = float(np.mean(scores))
    return mean - half, mean + half


def deviation(scores: Sequence[float]) -> float:
    """The standard deviation, estimated with n - 1."""
    return float(np.std(scores, ddof=1))


def compare_scores(a: Mapping[int, float], b: Mapping[int, float], margin: float = 0.0) -> Test:
    """Tests whether scores, given by seed, differ, and whether `a` is ahead of `b` by `margin`.

    Where both have two seeds or more in common, only those count.
    """
    common = sorted(a.keys() & b.keys())
    paired = len(common) >= 2
    x = np.array([a[seed] for seed in (common if paired else a)])
    y = np.array([b[seed] for seed in (common if paired else b)])
    difference = float(np.mean(x) - np.mean(y))
    varying = [x - y] if paired else [x, y]
    rounding = ROUNDING * max(np.abs(x).max(), np.abs(y).max())
    if min(len(x), len(y)) < 2 or max(map(np.ptp, varying)) <= rounding:
        return Test(difference, None, None, len(common), None)
    test: Any = stats.ttest_rel if paired else partial(stats.ttest_ind, equal_var=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Precision loss", RuntimeWarning)  # one side may be equal
        either = test(x, y)
        ahead = test(x + margin, y, alternative="less")
    low, high = map(float, either.confidence_interval(CONFIDENCE))
    return Test(difference, (low, high), float(either.pvalue), len(common), float(ahead.pvalue))


def holm(p: Sequence[float]) -> list[float]:
    """Holm's correction (1979): each p as it counts when all of them were looked at."""
    order = np.argsort(p)
    worst, corrected = 0.0, [0.0] * len(p)
    for rank, i in enumerate(order):
        worst = max(worst, min(1.0, (len(p) - rank) * p[i]))
        corrected[i] = worst
    return corrected
