"""The budget of a run and the learning rate over it.

A budget is wall-clock seconds, or steps where a run has to be repeatable. The schedule `share`
looks at the share of the budget that is used, never at a number of steps that the hardware
decides: on slow hardware it makes fewer steps along the same curve.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

from scangolf.config import RunConfig, ScheduleConfig


class Clock:
    """Seconds of training: runs from `start`, can be paused, and continues from `elapsed`."""

    def __init__(self, elapsed: float = 0.0) -> None:
        self._before = elapsed
        self._started: float | None = None

    def start(self) -> None:
        self._started = time.perf_counter()

    def pause(self) -> None:
        self._before = self.elapsed
        self._started = None

    @property
    def elapsed(self) -> float:
        running = 0.0 if self._started is None else time.perf_counter() - self._started
        return self._before + running


@dataclass(frozen=True)
class Progress:
    """Where a run stands."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    """Training clock."""
    position: int = 0
    """Sequences taken from the data."""


@dataclass(frozen=True)
class Budget:
    """`seconds` of wall clock, or `steps` if given."""

    seconds: float
    steps: int | None

    @classmethod
    def of(cls, config: RunConfig) -> Budget:
        return cls(config.seconds, config.steps)

    def share(self, step: int, elapsed: float) -> float:
        """The part of the budget used after `step` steps and `elapsed` seconds, 0 to 1."""
        used = elapsed / self.seconds if self.steps is None else step / self.steps
        return min(1.0, used)

    def steps_left(self, step: int, elapsed: float) -> float:
        """Steps that still fit, at the average speed so far (unknown, so infinite, at first)."""
        if step == 0:
            return float("inf")
        if self.steps is not None:
            return self.steps - step
        return max(0.0, self.seconds - elapsed) * step / elapsed


def lr_factor(schedule: ScheduleConfig, budget: Budget, step: int, elapsed: float) -> float:
    """What every learning rate is multiplied with at this moment, 0 to 1.

    share: rises linearly over the first `warmup` of the budget and falls linearly to zero over
    its last `warmdown`. challenge: min(1, seconds left / (warmdown_steps * average step seconds)),
    that is, the steps left over warmdown_steps.
    """
    if schedule.kind == "challenge":
        return min(1.0, budget.steps_left(step, elapsed) / schedule.warmdown_steps)
    share = budget.share(step, elapsed)
    if budget.steps is not None:
        share = min(1.0, share + 0.5 / budget.steps)  # the middle of the step: never 0 at the first
    rise = share / schedule.warmup if schedule.warmup > 0 else 1.0
    fall = (1.0 - share) / schedule.warmdown if schedule.warmdown > 0 else 1.0
    return max(0.0, min(1.0, rise, fall))
