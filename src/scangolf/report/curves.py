"""Curves made fit to be drawn: smoothed, thinned, and the span of their picture."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

MAX_POINTS = 1200
"""Points a drawn curve has at most: about one for every pixel of its width."""
OPENING = 0.03
"""Share of the time whose values may lie above the picture, where they would flatten the rest."""


def smooth(values: np.ndarray) -> np.ndarray:
    """Means over a twentieth of the curve at most, centred on each point; float64 [points].

    The curve falls like a power of time, so the window begins small and grows with its place. At
    the end, where the curve is flat and the noise is not, it shrinks on one side only.
    """
    index = np.arange(len(values))
    left = np.minimum(index // 4, len(values) // 40)
    right = np.minimum(left, len(values) - 1 - index)
    if not left.any():
        return values
    sums = np.concatenate([[0.0], np.cumsum(values)])
    return (sums[index + right + 1] - sums[index - left]) / (left + right + 1)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points of a curve: its ends, and the extremes of equal stretches."""
    if len(x) <= MAX_POINTS:
        return x, y
    edges = np.linspace(0, len(x), MAX_POINTS // 2).astype(int)
    keep = {0, len(x) - 1}
    for start, end in pairwise(edges):
        keep |= {start + int(y[start:end].argmin()), start + int(y[start:end].argmax())}
    chosen = sorted(keep)
    return x[chosen], y[chosen]


def y_limits(seconds: np.ndarray, values: np.ndarray, scores: list[float]) -> tuple[float, float]:
    """What the picture of a falling curve spans: all of it, or all after a steep opening."""
    late = seconds >= OPENING * seconds[-1]
    shown = np.concatenate(
        [smooth(values)[late], np.quantile(values[late], [0.005, 0.995]), scores]
    )
    low, high = shown.min(), shown.max()
    if values.max() - low <= 1.6 * (high - low):
        high = max(high, values.max())
    margin = 0.05 * (high - low) or 0.05 * abs(high) or 1.0
    return low - margin, high + margin
