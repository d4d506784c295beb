"""What a run does next: decided from clock, budget and signals by the first process, for all."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

from scangolf.config import RunConfig
from scangolf.train.checkpoint import Progress
from scangolf.train.schedule import Budget, Clock, lr_factor
from scangolf.train.world import World

SLOW = 1.0
"""Seconds from which on a step is waited for at once: the gap is nothing beside it, and whether
the next one fits the budget is then known better."""

FIRST_SIZE = 5.0
"""Seconds of training until the size of the artifact is told; again whenever they have doubled."""


class Decision(NamedTuple):
    """What comes next, in this order; all numbers, as processes exchange them (1 is yes)."""

    save: float = 0
    """Write a checkpoint."""
    evaluate: float = 0
    """Score the model on the validation split."""
    size: float = 0
    """Tell how large the artifact would be."""
    step: float = 0
    """Launch another step; without it training is over."""
    factor: float = 0
    """The schedule's factor in that step."""
    wait: float = 0
    """Wait for that step at once."""
    signal: float = 0
    """The signal that asks to stop, in whichever process it arrived."""

    @property
    def interrupts(self) -> bool:
        """Whether the last step has to be done before what comes first."""
        return bool(self.save or self.evaluate or self.size)


class Pace:
    """The clock of a run, how long its steps take, and what follows from that.

    Every process has one and tells it the same; only the clock of the first decides.
    """

    def __init__(self, config: RunConfig, world: World, *, tells_size: bool) -> None:
        self.config, self.world, self.tells_size = config, world, tells_size
        self.budget = Budget.of(config)
        self.resume(Progress())

    def resume(self, progress: Progress) -> None:
        self.clock = Clock(progress.seconds)
        self.settled = progress.step
        """Steps that are known to be done."""
        self.step_seconds = 0.0
        """How long the last one of them took."""

    def start(self) -> None:
        """Starts the clock, once all processes are here."""
        self._saved_at = self.clock.elapsed
        self._size_told_at = max(self.clock.elapsed, FIRST_SIZE / 2)
        self._evals_done = int(self._share(self.settled) * (self.config.evals + 1))
        self.world.largest([0])
        self._settled_at = time.perf_counter()
        self.clock.start()

    def settle(self, step: int) -> None:
        """Step number `step` is done."""
        now = time.perf_counter()
        self.step_seconds, self._settled_at = now - self._settled_at, now
        self.settled = step

    def saved(self) -> None:
        """A checkpoint was written."""
        self._saved_at = self.clock.elapsed
        self._settled_at = time.perf_counter()  # the next step did not take the time of writing

    def evaluated(self) -> None:
        """The model was scored."""
        self._evals_done += 1

    def size_told(self) -> None:
        """The size of the artifact was told."""
        self._size_told_at = self.clock.elapsed

    @contextmanager
    def paused(self) -> Iterator[None]:
        """The clock stands still meanwhile."""
        self.clock.pause()
        yield
        self._settled_at = time.perf_counter()
        self.clock.start()

    def decide(self, step: int, stop: Sequence[int]) -> Decision:
        """What comes after `step` steps; `stop` holds the signals that this process was sent.

        Processes exchange it between their hosts, while their GPUs run the step before: to send it
        from GPU to GPU, every host would have to wait for its own. The maximum with the zeros of
        the others is what the first one says, to the bit.
        """
        signal = stop[0] if stop else 0
        decision = Decision(signal=signal)
        if self.world.is_first:
            evals = self.config.evals + 1
            since_save = self.clock.elapsed - self._saved_at
            decision = Decision(
                save=self.settled > 0 and since_save >= self.config.checkpoint_seconds,
                evaluate=self._evals_done < int(self._share(step) * evals) < evals,
                size=self.tells_size and self.clock.elapsed >= 2 * self._size_told_at,
                step=self._fits(step + 1),
                factor=lr_factor(self.config.schedule, self.budget, step, self._elapsed(step)),
                wait=self.step_seconds > SLOW,
                signal=signal,
            )
        decision = Decision(*self.world.largest(decision))
        return Decision(signal=decision.signal) if decision.signal else decision

    def _elapsed(self, step: int) -> float:
        """Seconds on the clock when `step` steps are done, estimated if some are under way."""
        return self.clock.elapsed + (step - self.settled) * self.step_seconds

    def _share(self, step: int) -> float:
        return self.budget.share(step, self._elapsed(step))

    def _fits(self, step: int) -> bool:
        """Whether a step would end within the budget if it takes as long as the last one."""
        if self.config.steps is not None:
            return step <= self.config.steps
        return self._elapsed(step) < self.config.seconds
