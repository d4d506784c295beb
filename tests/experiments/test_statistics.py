"""Statistics against numbers worked out by hand: t has closed forms for 1 and 2 degrees."""

import math

import numpy as np
import pytest

from scangolf.experiments.statistics import compare_scores, deviation, holm, mean_interval

A = {1: 1.0, 2: 1.2, 3: 1.1}
B = {1: 1.1, 2: 1.4, 3: 1.15}
"""Differences -0.1, -0.2, -0.05: mean -7/60, variance 0.0175 / 3, so t = -sqrt(7)."""


def p_of_two_degrees(t: float) -> float:
    return 1 - abs(t) / math.sqrt(t * t + 2)


def quantile_of_two_degrees(p: float) -> float:
    return (2 * p - 1) / math.sqrt(2 * p * (1 - p))


def tail(t: float, degrees: float) -> float:
    """Both tails of Student's t, integrated over its density."""
    x = np.linspace(0, abs(t), 200_001)
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    density = scale / math.sqrt(degrees * math.pi) * (1 + x**2 / degrees) ** (-(degrees + 1) / 2)
    return 1 - 2 * float(np.trapezoid(density, x))


def test_the_interval_of_two_scores() -> None:
    interval = mean_interval([1.0, 1.2])
    half = math.tan(math.pi * 0.475) * 0.1  # the quantile of one degree, times the standard error
    assert interval == pytest.approx((1.1 - half, 1.1 + half))
    assert deviation([1.0, 1.2]) == pytest.approx(0.2 / math.sqrt(2))


def test_a_single_score_has_no_interval() -> None:
    assert mean_interval([1.0]) is None


def test_paired_by_hand() -> None:
    test = compare_scores(A, B)
    assert test.difference == pytest.approx(-7 / 60)
    assert test.pairs == 3
    assert test.p == pytest.approx(p_of_two_degrees(math.sqrt(7)))
    half = quantile_of_two_degrees(0.975) * 7 / 60 / math.sqrt(7)
    assert test.interval == pytest.approx((-7 / 60 - half, -7 / 60 + half))


def test_ahead_by_a_margin_by_hand() -> None:
    """With a margin of half the lead t is halved; one tail of it counts."""
    test = compare_scores(A, B, margin=7 / 120)
    assert test.p_ahead == pytest.approx(p_of_two_degrees(math.sqrt(7) / 2) / 2)
    assert test.p == pytest.approx(p_of_two_degrees(math.sqrt(7)))  # the margin is none of its
    behind = compare_scores(B, A, margin=7 / 120)
    assert behind.p_ahead == pytest.approx(1 - p_of_two_degrees(1.5 * math.sqrt(7)) / 2)


def test_only_common_seeds_are_paired() -> None:
    test = compare_scores(A | {9: 50.0}, B | {8: -50.0})
    assert (test.pairs, test.p) == (3, pytest.approx(p_of_two_degrees(math.sqrt(7))))


def test_welch_by_hand() -> None:
    """Equal numbers and spreads: two degrees, t = -3 / sqrt(2)."""
    test = compare_scores({1: 0.0, 2: 2.0}, {2: 3.0, 4: 5.0})
    assert test.pairs == 1
    assert test.difference == pytest.approx(-3)
    assert test.p == pytest.approx(p_of_two_degrees(3 / math.sqrt(2)))


def test_welch_with_unequal_spreads() -> None:
    x, y = [1.0, 1.4], [2.0, 2.1, 2.3, 2.6]
    u, v = np.var(x, ddof=1) / 2, np.var(y, ddof=1) / 4
    degrees = (u + v) ** 2 / (u**2 / 1 + v**2 / 3)
    t = (np.mean(x) - np.mean(y)) / math.sqrt(u + v)
    test = compare_scores(dict(enumerate(x)), dict(enumerate(y, start=10)))
    assert test.p == pytest.approx(tail(float(t), float(degrees)), rel=1e-6)


def test_one_run_says_nothing_about_chance() -> None:
    test = compare_scores({1: 1.0}, B)
    assert test.difference == pytest.approx(1.0 - np.mean([*B.values()]))
    assert (test.p, test.interval, test.p_ahead) == (None, None, None)


@pytest.mark.parametrize(
    ("a", "b", "margin"),
    [
        ({1: 1.5, 2: 2.5}, {1: 1.5, 2: 2.5}, 0.1),
        ({1: 1.5, 2: 2.5}, {1: 2.0, 2: 3.0}, 0.25),
        ({1: 1.5, 2: 2.5}, {1: 1.75, 2: 2.75}, 0.25),  # the lead is the margin, exactly
        ({1: 1.0, 2: 1.1}, {1: 1.25, 2: 1.35}, 0.003),  # equal differences but for their rounding
        ({1: 1.5, 2: 1.5}, {3: 2.0, 4: 2.0}, 0.1),  # not paired
    ],
)
def test_without_any_spread_nothing_is_known_of_chance(
    a: dict[int, float], b: dict[int, float], margin: float
) -> None:
    test = compare_scores(a, b, margin)
    assert test.difference == pytest.approx(np.mean([*a.values()]) - np.mean([*b.values()]))
    assert (test.p, test.p_ahead, test.interval) == (None, None, None)


def test_welch_with_one_side_that_does_not_vary() -> None:
    """One degree, t = -2 / 1: by the arc tangent."""
    test = compare_scores({1: 1.0, 2: 1.0}, {3: 2.0, 4: 4.0})
    assert test.p == pytest.approx(1 - 2 * math.atan(2) / math.pi)


def test_a_spread_as_small_as_scores_can_have_is_tested() -> None:
    """A few 1e-9 are no rounding: double precision keeps sixteen digits."""
    tiny = {seed: 2.0 + (score - 1.1) * 1e-8 for seed, score in A.items()}
    assert compare_scores(tiny, {1: 2.0, 2: 2.0, 3: 2.0}).p == pytest.approx(1.0)


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []
