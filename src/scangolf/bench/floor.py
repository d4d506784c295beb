"""What no selective scan can undercut on this machine: bytes over its bandwidth, exponentials over
the rate of its special-function units. Rates are measured or the device's own, counts are here."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from scangolf.bench.timing import Stopwatch

EXPONENTIALS_PER_CLOCK = {(9, 0): 16}
"""Of one multiprocessor, by compute capability: CUDA C++ Programming Guide, throughput of
arithmetic instructions, reciprocal to base-2 exponential. Devices that are not here have no floor
of exponentials."""


@dataclass(frozen=True)
class Shape:
    """Of a scan with one group of B and C."""

    batch: int
    length: int
    channels: int
    state: int

    @property
    def updates(self) -> int:
        return self.batch * self.length * self.channels * self.state


@dataclass(frozen=True)
class Rates:
    """What a device does in a second; None where it is not known."""

    copy_bytes: float  # measured: read and written together
    exponentials: float | None  # multiprocessors x clock x exponentials of one clock
    clock_hz: float | None
    clock_source: str
    multiprocessors: int | None


@dataclass(frozen=True)
class Floor:
    """Of one pass or of both, in milliseconds."""

    bytes: int
    memory_ms: float
    exponentials_ms: float | None

    @property
    def ms(self) -> float:
        return max(self.memory_ms, self.exponentials_ms or 0.0)


@dataclass(frozen=True)
class Floors:
    """Of the forward pass, and of forward and backward together."""

    forward: Floor
    both: Floor


def floors(shape: Shape, dtype: torch.dtype, rates: Rates) -> Floors:
    """Every input is read once and every output written once by each pass; each pass needs every
    decay, and to take an exponential again is cheaper than to store it."""
    forward, backward = scan_bytes(shape, dtype)

    def floor(size: int, passes: int) -> Floor:
        exponentials = None
        if rates.exponentials is not None:
            exponentials = 1e3 * passes * shape.updates / rates.exponentials
        return Floor(size, 1e3 * size / rates.copy_bytes, exponentials)

    return Floors(floor(forward, 1), floor(forward + backward, 2))


def scan_bytes(shape: Shape, dtype: torch.dtype) -> tuple[int, int]:
    """Bytes that the forward pass and the backward pass cannot avoid to move.

    With z, D and delta_bias. u, delta, z, B, C and y have the dtype given; A, D and delta_bias are
    float32.
    """
    rows = shape.batch * shape.length * shape.channels * dtype.itemsize  # u, delta, z, y alike
    weights = shape.batch * shape.length * shape.state * dtype.itemsize  # B, C
    parameters = (shape.channels * shape.state + 2 * shape.channels) * torch.float32.itemsize
    inputs = 3 * rows + 2 * weights + parameters
    forward = inputs + rows  # y
    backward = inputs + rows + inputs  # with the gradient of y, to the gradients of the inputs
    return forward, backward


def measure_rates(stopwatch: Stopwatch) -> Rates:
    """The copy first: a clock that can only be asked for its present value is then at work."""
    copy = stopwatch.copy_rate()
    if stopwatch.device.type != "cuda":
        return Rates(copy, None, None, "not a GPU", None)
    properties = torch.cuda.get_device_properties(stopwatch.device)
    clock, source = _clock(stopwatch.device, properties)
    per_clock = EXPONENTIALS_PER_CLOCK.get((properties.major, properties.minor))
    count = properties.multi_processor_count
    exponentials = None if per_clock is None or clock is None else per_clock * count * clock
    return Rates(copy, exponentials, clock, source, count)


def _clock(device: torch.device, properties: object) -> tuple[float | None, str]:
    kilohertz = getattr(properties, "clock_rate", None)
    if kilohertz:
        return 1e3 * kilohertz, "highest of the device"
    try:
        return 1e6 * torch.cuda.clock_rate(device), "as the driver reported it"
    except (ImportError, RuntimeError, OSError):
        return None, "unknown"
