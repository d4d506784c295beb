"""Speed of the selective scan on this machine: right first, then fast.

Forward and backward go through the public operator and autograd. A form whose outputs or gradients
miss float64 by more than their limits, or that gives other bits the second time, gets no times.

`Report` is what --json prints, field by field.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from rich.console import Console
from rich.status import Status
from torch import Tensor

from scangolf.bench import contenders
from scangolf.bench.check import LIMITS, Tensors, compare, make_inputs, truth
from scangolf.bench.contenders import Contender
from scangolf.bench.floor import Floors, Rates, Shape, floors, measure_rates
from scangolf.bench.timing import Stopwatch, Times
from scangolf.device import describe, pick_device
from scangolf.errors import UserError

DtypeName = Literal["bf16", "float16", "float32"]
DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
SHAPES = {
    "cuda": [Shape(64, 1024, 1024, 16), Shape(16, 4096, 1024, 16), Shape(4, 16384, 1024, 16)],
    "cpu": [Shape(8, 1024, 256, 16), Shape(16, 256, 256, 8)],
}
SECONDS = 2.0


@dataclass
class Row:
    """One form of the scan on one shape. What was not measured is null."""

    name: str
    """What was asked for: a backend ("auto" first), "loop", "mamba_ssm" or "attention"."""
    form: str
    """What ran: the backend that "auto" stands for, or the peer's kind."""
    role: contenders.Role
    """Ours, a peer that computes the same, or another layer for orientation."""
    passed: bool | None = None
    """Whether times may be shown: errors within limits and, for ours, the same bits twice."""
    note: str = ""
    """Why there are no times."""
    errors: dict[str, float] | None = None
    """Relative error of y and of the gradient of each input, ||got - want|| / ||want||."""
    repeatable: bool | None = None
    """Whether two runs gave the same bits."""
    first_call_seconds: float | None = None
    """Of the first forward and backward in this process; compiled code may lie on disk already."""
    forward: Times | None = None
    """Without autograd: median_ms, least_ms, repeats."""
    both: Times | None = None
    """Forward and backward."""
    forward_share: float | None = None
    """Of the floor: 1 is as fast as the floor."""
    both_share: float | None = None
    peak_memory: float | None = None
    """What forward and backward take beyond their inputs, in multiples of the inputs' bytes."""
    speed_up: float | None = None
    """Forward and backward against the peer's."""


@dataclass
class ShapeReport:
    """All forms on one shape, and the floor below them."""

    shape: Shape
    floors: Floors
    rows: list[Row] = field(default_factory=list)


@dataclass
class Report:
    """Everything measured, and on what."""

    command: str
    device: str
    torch: str
    triton: str | None
    mamba_ssm: str | None
    dtype: str
    threads: int
    limits: dict[str, float]
    """Largest relative error allowed of y ("output") and of a gradient."""
    rates: Rates
    shapes: list[ShapeReport] = field(default_factory=list)
    passed: bool = True
    """Whether every form of ours passed its check."""


def bench_scan(
    shape: tuple[str, ...] = (),
    channels: int | None = None,
    state: int | None = None,
    dtype: DtypeName | None = None,
    seconds: float = SECONDS,
    device: str = "auto",
    as_json: bool = False,
) -> bool:
    """Measures and prints; returns whether every form of ours passed its check."""
    if seconds <= 0:
        raise UserError(f"--seconds {seconds}: needs more than 0")
    where = _device(device)
    shapes = _shapes(where, shape, channels, state)
    if dtype is None:
        dtype = "bf16" if where.type == "cuda" else "float32"
    given = {"shape": " ".join(shape), "channels": channels, "state": state}
    options = {k: v for k, v in given.items() if v} | {
        "dtype": dtype, "seconds": f"{seconds:g}", "device": where,
    }  # fmt: skip
    command = " ".join(["scangolf bench scan", *(f"--{k} {v}" for k, v in options.items())])
    gpu = torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext()
    with gpu, Console(stderr=True).status("measuring the device") as status:
        report = measure(where, shapes, DTYPES[dtype], seconds, command, status)
    if as_json:
        print(json.dumps(_finite(dataclasses.asdict(report)), indent=2, allow_nan=False))
    else:
        from scangolf.bench.table import print_report

        print_report(report)
    return report.passed


def measure(
    device: torch.device,
    shapes: list[Shape],
    dtype: torch.dtype,
    seconds: float,
    command: str,
    status: Status,
) -> Report:
    stopwatch = Stopwatch(device, seconds)
    output, gradient = LIMITS[dtype]
    report = Report(
        command, describe(device), torch.__version__, _version("triton"), _version("mamba_ssm"),
        str(dtype).removeprefix("torch."), torch.get_num_threads(),
        {"output": output, "gradient": gradient}, measure_rates(stopwatch),
    )  # fmt: skip
    for shape in shapes:
        status.update(f"{shape.batch} x {shape.length}")
        try:
            part = _measure_shape(shape, dtype, stopwatch, report.rates, status)
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"--shape {shape.batch}x{shape.length}: too large for the memory of {device}; "
                "take a smaller batch"
            ) from error
        report.shapes.append(part)
        report.passed &= all(row.passed is not False for row in part.rows if row.role == "ours")
    return report


def _measure_shape(
    shape: Shape, dtype: torch.dtype, stopwatch: Stopwatch, rates: Rates, status: Status
) -> ShapeReport:
    device = stopwatch.device
    report = ShapeReport(shape, floors(shape, dtype, rates))
    inputs, dy = make_inputs(shape, device, dtype)
    wanted = truth(inputs, dy)
    pairs: list[tuple[Row, Contender]] = []
    for contender in _contenders(shape, inputs, dy):
        status.update(f"{shape.batch} x {shape.length}: checking {contender.name}")
        row = Row(contender.name, contender.form, contender.role)
        _check(row, contender, wanted, dtype, stopwatch)
        pairs.append((row, contender))
    del wanted
    other = contenders.attention(shape, device, dtype) if device.type == "cuda" else None
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


def _contenders(shape: Shape, inputs: Tensors, dy: Tensor) -> Iterator[Contender]:
    for name, form in contenders.backends(inputs):
        yield contenders.ours(name, form, inputs, dy)
    if dy.device.type == "cuda":
        peer = contenders.mamba_ssm(inputs, dy)
        if peer is not None:
            yield peer
    elif shape.updates <= contenders.MOST_UPDATES_OF_LOOP:
        yield contenders.loop(inputs, dy)


def _check(
    row: Row, contender: Contender, wanted: Tensors, dtype: torch.dtype, stopwatch: Stopwatch
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
        row.passed, row.note = False, f"{type(error).__name__}: {error}".splitlines()[0][:200]
        return
    verdict = compare(found[0], found[1], wanted, dtype)
    row.errors, row.repeatable = verdict.errors, verdict.repeatable
    row.passed = verdict.within_limits and (verdict.repeatable or row.role != "ours")
    if row.passed:
        row.first_call_seconds = first
    else:
        row.note = "wrong" if not verdict.within_limits else "two runs gave different bits"


def _time(row: Row, contender: Contender, stopwatch: Stopwatch, below: Floors, size: int) -> None:
    row.forward, row.both = stopwatch.time(contender.forward), stopwatch.time(contender.both)
    peak = stopwatch.peak_bytes(contender.both)
    row.peak_memory = None if peak is None else peak / size
    if row.role != "orientation":
        row.forward_share = below.forward.ms / row.forward.median_ms
        row.both_share = below.both.ms / row.both.median_ms


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = pick_device(name)
    if device.type not in SHAPES:
        raise UserError(f"--device {name}: has no float64 to check against; take cpu or cuda")
    return device


def _shapes(
    device: torch.device, texts: tuple[str, ...], channels: int | None, state: int | None
) -> list[Shape]:
    for name, value in (("channels", channels), ("state", state)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: needs at least 1")
    defaults = SHAPES[device.type]
    if texts:
        pairs = [contenders.parse_shape(text) for text in texts]
        defaults = [dataclasses.replace(defaults[0], batch=b, length=n) for b, n in pairs]
    given = {k: v for k, v in (("channels", channels), ("state", state)) if v is not None}
    return [dataclasses.replace(shape, **given) for shape in defaults]


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _finite(value: Any) -> Any:
    """JSON has no number for what is not one."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
