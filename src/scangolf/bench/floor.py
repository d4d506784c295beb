"""What no scan can undercut on this machine: bytes over its bandwidth, exponentials over the rate
of its special-function units, products over the rate of large ones. Rates are measured or the
device's own; of bytes the counts are here, of the rest with the operators."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from scangolf.bench.timing import Stopwatch

EXPONENTIALS_PER_CLOCK = {(9, 0): 16}
"""Of one multiprocessor, by compute capability: CUDA C++ Programming Guide, throughput of
arithmetic instructions, reciprocal to base-2 exponential. Devices that are not here have no floor
of exponentials."""


@dataclass(frozen=True)
class Shape:
    """Of a scan with one group of B and C. The gated delta rule has a state for each of its keys'
    numbers."""

    batch: int
    length: int
    channels: int
    state: int  # of a channel

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
    product_flop: float | None = None  # measured: of a large product of matrices


@dataclass(frozen=True)
class Floor:
    """Of one pass or of both, in milliseconds; None where there is no count or no rate."""

    bytes: int
    flop: int
    memory_ms: float
    exponentials_ms: float | None
    products_ms: float | None

    @property
    def ms(self) -> float:
        return max(self.memory_ms, self.exponentials_ms or 0.0, self.products_ms or 0.0)

    @property
    def bound(self) -> str:
        """What it comes from."""
        if self.ms == self.memory_ms:
            return "memory"
        return "exponentials" if self.ms == self.exponentials_ms else "products"


@dataclass(frozen=True)
class Floors:
    """Of the forward pass, and of forward and backward together."""

    forward: Floor
    both: Floor


def floors(
    inputs: dict[str, Tensor], dy: Tensor, exponentials: int, flop: int, rates: Rates
) -> Floors:
    """Every input is read once and every output written once by each pass.

    Each pass takes the exponentials anew; the products of a forward pass have two each in the
    backward pass, and what is computed again there is not counted.

    Args:
        inputs: of the scan.
        dy: gradient of y, as large as y.
        exponentials: of a pass.
        flop: of the products of a forward pass.
        rates: of the device.
    """
    forward, backward = scan_bytes(inputs, dy)

    def floor(size: int, passes: int, products: int) -> Floor:
        return Floor(
            size,
            products * flop,
            1e3 * size / rates.copy_bytes,
            _ms(passes * exponentials, rates.exponentials),
            _ms(products * flop, rates.product_flop),
        )

    return Floors(floor(forward, 1, 1), floor(forward + backward, 2, 3))


def scan_bytes(inputs: dict[str, Tensor], dy: Tensor) -> tuple[int, int]:
    """Bytes that the forward pass and the backward pass cannot avoid to move."""
    size = sum(x.nbytes for x in inputs.values())
    forward = size + dy.nbytes  # to y
    backward = size + dy.nbytes + size  # with the gradient of y, to the gradients of the inputs
    return forward, backward


def _ms(count: int, rate: float | None) -> float | None:
    return 1e3 * count / rate if count and rate is not None else None


def measure_rates(stopwatch: Stopwatch, products: torch.dtype | None) -> Rates:
    """The copy first: a clock that can only be asked for its present value is then at work.

    Products of matrices are measured in the dtype given, if one is.
    """
    copy = stopwatch.copy_rate()
    flop = None if products is None else stopwatch.product_rate(products)
    if stopwatch.device.type != "cuda":
        return Rates(copy, None, None, "not a GPU", None, flop)
    properties = torch.cuda.get_device_properties(stopwatch.device)
    clock, source = _clock(stopwatch.device, properties)
    per_clock = EXPONENTIALS_PER_CLOCK.get((properties.major, properties.minor))
    count = properties.multi_processor_count
    exponentials = None if per_clock is None or clock is None else per_clock * count * clock
    return Rates(copy, exponentials, clock, source, count, flop)


def _clock(device: torch.device, properties: object) -> tuple[float | None, str]:
    kilohertz = getattr(properties, "clock_rate", None)
    if kilohertz:
        return 1e3 * kilohertz, "highest of the device"
    try:
        return 1e6 * torch.cuda.clock_rate(device), "as the driver reported it"
    except (ImportError, RuntimeError, OSError):
        return None, "unknown"
