"""Learning-rate factors against values worked out by hand."""

import pytest

from scangolf.config import ScheduleConfig
from scangolf.train.schedule import Budget, lr_factor

SHARE = ScheduleConfig(kind="share", warmup=0.1, warmdown=0.5)


@pytest.mark.parametrize(
    ("elapsed", "factor"),
    [(0, 0), (5, 0.5), (10, 1), (49, 1), (50, 1), (75, 0.5), (99, 0.02), (100, 0), (120, 0)],
)
def test_share_of_seconds(elapsed: float, factor: float) -> None:
    budget = Budget(seconds=100.0, steps=None)
    for step in (3, 4000):  # the number of steps the hardware managed decides nothing
        assert lr_factor(SHARE, budget, step, elapsed) == pytest.approx(factor)


@pytest.mark.parametrize(("step", "factor"), [(0, 0.5), (1, 1), (4, 1), (5, 0.9), (9, 0.1)])
def test_share_of_steps_takes_the_middle_of_each(step: int, factor: float) -> None:
    budget = Budget(seconds=1.0, steps=10)
    assert lr_factor(SHARE, budget, step, elapsed=55.0) == pytest.approx(factor)


def test_no_warmup_and_no_warmdown() -> None:
    flat = ScheduleConfig(kind="share", warmup=0.0, warmdown=0.0)
    assert lr_factor(flat, Budget(10.0, None), 0, 0.0) == 1
    assert lr_factor(flat, Budget(10.0, None), 5, 9.9) == 1


def test_challenge_is_seconds_left_over_warmdown_steps_at_the_average_speed() -> None:
    schedule = ScheduleConfig(kind="challenge", warmdown_steps=1200)
    budget = Budget(seconds=60.0, steps=None)
    assert lr_factor(schedule, budget, 0, 0.0) == 1  # no speed is known yet
    # 100 steps in 30 s: 0.3 s a step, 30 s left, 1200 steps would take 360 s.
    assert lr_factor(schedule, budget, 100, 30.0) == pytest.approx(30 / 360)
    assert lr_factor(schedule, Budget(600.0, None), 1000, 60.0) == 1
    # The collapse of a slow run: one step of 10 s, 170 s left, 1200 steps would take 12,000 s.
    assert lr_factor(schedule, Budget(180.0, None), 1, 10.0) == pytest.approx(170 / 12_000)
    assert lr_factor(schedule, Budget(1.0, steps=196), 100, 1e9) == pytest.approx(96 / 1200)
