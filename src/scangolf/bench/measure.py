"""Checks the forms of a scan and times what passed.

Forward and backward go through the public operator and autograd. A form whose outputs or gradients
miss float64 by more than their limits, or that gives other bits the second time, gets no times.
"""

from __future__ import annotations

import importlib.metadata

import torch
from rich.status import Status
from torch import Tensor

from scangolf.bench import contenders
from scangolf.bench.check import compare, make_inputs, truth
from scangolf.bench.floor import Floors, Rates, Shape, floors, measure_rates
from scangolf.bench.operators import Contender, Operator, Tensors
from scangolf.bench.record import Report, Row, ShapeReport
from scangolf.bench.timing import Stopwatch
from scangolf.device import describe, within_memory


def measure(
    operator: Operator,
    device: torch.device,
    shapes: list[Shape],
    dtype: torch.dtype,
    seconds: float,
    command: str,
    status: Status,
    against_attention: bool = False,
) -> Report:
    """Checks and times every form on every shape; `against_attention`: "auto" and attention only.

    Raises OutOfMemory where a shape is too large for the device.
    """
    stopwatch = Stopwatch(device, seconds)
    output, gradient = operator.limits(dtype)
    products = dtype if operator.flop(shapes[0]) else None
    report = Report(
        operator.name, operator.about, command, describe(device), torch.__version__,
        _version("triton"), _version("mamba_ssm"), _version("fla-core"),
        str(dtype).removeprefix("torch."), torch.get_num_threads(),
        {"output": output, "gradient": gradient}, measure_rates(stopwatch, products),
    )  # fmt: skip
    for shape in shapes:
        status.update(f"{shape.batch} x {shape.length}")
        asked = f"--shape {shape.batch}x{shape.length}"
        with within_memory(device, f"{asked}: it", "take a smaller batch"):
            part = _measure_shape(
                operator, shape, dtype, stopwatch, report.rates, status, against_attention
            )
        report.shapes.append(part)
        report.passed &= all(row.passed is not False for row in part.rows if row.role == "ours")
    return report


def _measure_shape(
    operator: Operator,
    shape: Shape,
    dtype: torch.dtype,
    stopwatch: Stopwatch,
    rates: Rates,
    status: Status,
    against_attention: bool,
) -> ShapeReport:
    device = stopwatch.device
    inputs, dy = make_inputs(operator, shape, device, dtype)
    below = floors(inputs, dy, operator.exponentials(shape), operator.flop(shape), rates)
    report = ShapeReport(shape, below)
    wanted = truth(operator, shape, inputs, dy)
    limits = operator.limits(dtype)
    found = _ours(operator, inputs, dy)
    taking_part = found[:1] if against_attention else found + _peers(operator, report, inputs, dy)
    pairs: list[tuple[Row, Contender]] = []
    for contender in taking_part:
        status.update(f"{shape.batch} x {shape.length}: checking {contender.name}")
        row = Row(contender.name, contender.form, contender.role)
        _check(row, contender, wanted, limits, stopwatch)
        pairs.append((row, contender))
    del wanted
    with_attention = against_attention or device.type == "cuda"
    other = contenders.attention(shape, device, dtype) if with_attention else None
    if other is not None:
        pairs.append((Row(other.name, other.form, other.role, note="not checked"), other))

    size = sum(x.nbytes for x in inputs.values())
    for row, contender in pairs:
        report.rows.append(row)
        if row.passed or row.role == "orientation":
            status.update(f"{shape.batch} x {shape.length}: timing {contender.name}")
            _time(row, contender, stopwatch, report.floors, size)
    peer = next((row.both for row in report.rows if row.role == "peer" and row.both), None)
    for row in report.rows:
        if peer and row.both and row.role == "ours":
            row.speed_up = peer.median_ms / row.both.median_ms
    return report


def _ours(operator: Operator, inputs: Tensors, dy: Tensor) -> list[Contender]:
    return [contenders.ours(operator, *pair, inputs, dy) for pair in operator.backends(inputs)]


def _peers(operator: Operator, report: ShapeReport, inputs: Tensors, dy: Tensor) -> list[Contender]:
    """The loop on a CPU, elsewhere another package's kernels; a note where these cannot be had."""
    if dy.device.type != "cuda":
        few = report.shape.updates <= contenders.MOST_UPDATES_OF_LOOP
        return [contenders.loop(operator, inputs, dy)] if few else []
    try:
        return [operator.peer(inputs, dy)]
    except Exception as error:
        report.notes.append(f"{operator.peer_name} is left out: {_reason(error)}")
        return []


def _check(
    row: Row,
    contender: Contender,
    wanted: Tensors,
    limits: tuple[float, float],
    stopwatch: Stopwatch,
) -> None:
    """Two runs against the truth; what does not run at all has failed, unless it is not there."""
    found: list[Tensors] = []
    try:
        first = stopwatch.first(lambda: found.append(contender.results()))
        found.append(contender.results())
    except ValueError as error:  # the operator's refusal
        row.passed = None if contender.name != "auto" else False
        row.note = f"not available: {error}"
        return
    except Exception as error:
        row.passed, row.note = False, _reason(error)
        if row.role == "peer":
            _check_forward(row, contender, wanted, limits, stopwatch)
        return
    _judge(row, found, wanted, limits, first)


def _check_forward(
    row: Row,
    contender: Contender,
    wanted: Tensors,
    limits: tuple[float, float],
    stopwatch: Stopwatch,
) -> None:
    """Of a peer that refuses its backward pass, for the reason in the row's note."""
    found: list[Tensors] = []
    reason, row.note = row.note, ""
    try:
        first = stopwatch.first(lambda: found.append({"y": contender.forward()}))
        found.append({"y": contender.forward()})
    except Exception as error:
        row.note = _reason(error)
        return
    _judge(row, found, {"y": wanted["y"]}, limits, first)
    row.note = row.note or f"forward only: {reason}"


def _judge(
    row: Row, found: list[Tensors], wanted: Tensors, limits: tuple[float, float], first: float
) -> None:
    verdict = compare(found[0], found[1], wanted, limits)
    row.errors, row.repeatable = verdict.errors, verdict.repeatable
    row.passed = verdict.within_limits and (verdict.repeatable or row.role != "ours")
    if row.passed:
        row.first_call_seconds = first
    else:
        row.note = "wrong" if not verdict.within_limits else "two runs gave different bits"


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:200]


def _time(row: Row, contender: Contender, stopwatch: Stopwatch, below: Floors, size: int) -> None:
    row.forward = stopwatch.time(contender.forward)
    if row.role != "orientation":
        row.forward_share = below.forward.ms / row.forward.median_ms
        if row.errors is not None and set(row.errors) == {"y"}:
            return
    row.both = stopwatch.time(contender.both)
    peak = stopwatch.peak_bytes(contender.both)
    row.peak_memory = None if peak is None else peak / size
    if row.role != "orientation":
        row.both_share = below.both.ms / row.both.median_ms


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
