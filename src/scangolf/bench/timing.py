"""Stopwatches: medians of many runs, on a GPU by its own clock and with a cold cache."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch

WARM_UP = 3  # calls
LONGEST_LEAD = 0.02  # seconds of writing that keep a GPU busy while the host queues what is timed
Work = Callable[[], object]


@dataclass(frozen=True)
class Times:
    """Of one piece of work: median and least of the runs, and how many there were."""

    median_ms: float
    least_ms: float
    repeats: int

    @staticmethod
    def of(seconds: list[float]) -> Times:
        return Times(1e3 * statistics.median(seconds), 1e3 * min(seconds), len(seconds))


class Stopwatch:
    """Times work on one device, within a budget of seconds for every piece of work.

    On a GPU: CUDA events around the work. Before each run a buffer larger than the L2 cache is
    written, as often as it takes the host to queue the work, so that launches are hidden where
    they can be, as in training. On a CPU: the wall clock.
    """

    def __init__(self, device: torch.device, seconds: float) -> None:
        self.device, self.seconds = device, seconds
        self.cuda = device.type == "cuda"
        if self.cuda:
            cache = torch.cuda.get_device_properties(device).L2_cache_size
            self._junk = torch.empty(max(4 * cache, 1 << 28), dtype=torch.int8, device=device)
            self._write_seconds = statistics.median(self._gpu_seconds(self._junk.zero_, 10, 0))

    def time(self, work: Work, least: int = 3, most: int = 500) -> Times:
        """Repeats the work within the budget, from `least` to `most` times, after a warm-up."""
        if not self.cuda:
            seconds = self._wall_seconds(work, 1)[0]  # not counted: the warm-up
            repeats = min(most, max(least, int(self.seconds / seconds)))
            return Times.of(self._wall_seconds(work, repeats))
        for _ in range(WARM_UP - 1):
            work()
        self.synchronize()
        start = time.perf_counter()
        work()
        queued = time.perf_counter() - start
        self.synchronize()
        whole = time.perf_counter() - start
        writes = math.ceil(min(1.5 * queued, LONGEST_LEAD) / self._write_seconds)
        repeats = int(self.seconds / (whole + writes * self._write_seconds))
        return Times.of(self._gpu_seconds(work, min(most, max(least, repeats)), max(writes, 1)))

    def first(self, work: Callable[[], object]) -> float:
        """Seconds of a single call, compiling included if it is the first."""
        self.synchronize()
        start = time.perf_counter()
        work()
        self.synchronize()
        return time.perf_counter() - start

    def peak_bytes(self, work: Work) -> int | None:
        """Memory that the work takes beyond what is held before it; known for GPUs only."""
        if not self.cuda:
            return None
        self.synchronize()
        torch.cuda.reset_peak_memory_stats(self.device)
        before = torch.cuda.memory_allocated(self.device)
        work()
        self.synchronize()
        return torch.cuda.max_memory_allocated(self.device) - before

    def copy_rate(self) -> float:
        """Bytes a second read and written together, when one large buffer is copied to another."""
        size = 1 << 28
        if self.cuda:
            size = min(1 << 30, torch.cuda.mem_get_info(self.device)[0] // 8)
        source, target = (torch.ones(size, dtype=torch.int8, device=self.device) for _ in "ab")
        return 2 * size / (1e-3 * self.time(lambda: target.copy_(source), most=20).median_ms)

    def product_rate(self, dtype: torch.dtype) -> float:
        """FLOP a second of a product of two large square matrices."""
        side = 8192 if self.cuda else 1024
        a, b = (torch.randn(side, side, device=self.device, dtype=dtype) for _ in "ab")
        return 2 * side**3 / (1e-3 * self.time(lambda: a @ b, most=20).median_ms)

    def synchronize(self) -> None:
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def _wall_seconds(self, work: Work, repeats: int) -> list[float]:
        seconds = []
        for _ in range(repeats):
            start = time.perf_counter()
            work()
            seconds.append(time.perf_counter() - start)
        return seconds

    def _gpu_seconds(self, work: Work, repeats: int, writes: int) -> list[float]:
        pairs = []
        for _ in range(repeats):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            for _ in range(writes):
                self._junk.zero_()
            start.record()
            work()
            end.record()
            pairs.append((start, end))
        self.synchronize()
        return [1e-3 * start.elapsed_time(end) for start, end in pairs]
