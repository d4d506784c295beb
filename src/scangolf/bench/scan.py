"""`scangolf bench scan`: from its options to what it prints."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Console

from scangolf.bench import crossing as crossings
from scangolf.bench.floor import Shape
from scangolf.bench.gdn import GDN
from scangolf.bench.measure import measure
from scangolf.bench.s6 import S6
from scangolf.bench.ssd import SSD
from scangolf.device import pick_device
from scangolf.errors import UserError

DtypeName = Literal["bf16", "float16", "float32"]
DTYPES: dict[str, torch.dtype] = {
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
}
OPERATORS = {operator.name: operator for operator in (S6, SSD, GDN)}
SECONDS = 2.0


def bench_scan(
    op: str = "s6",
    shape: tuple[str, ...] = (),
    channels: int | None = None,
    state: int | None = None,
    dtype: DtypeName | None = None,
    seconds: float = SECONDS,
    device: str = "auto",
    crossing: bool = False,
    png: Path | None = None,
    as_json: bool = False,
) -> bool:
    """Measures and prints; returns whether every form of ours passed its check."""
    if seconds <= 0:
        raise UserError(f"--seconds {seconds}: needs more than 0")
    if png is not None and not crossing:
        raise UserError(f"--png {png}: is the picture of --crossing, which was not asked for")
    where = _device(device)
    operator = OPERATORS[op]
    defaults = operator.shapes[where.type]
    if crossing:
        defaults = crossings.shapes(defaults[0], where.type)
    shapes = _shapes(defaults, shape, channels, state)
    if crossing:
        crossings.check_shapes(shapes)
    if dtype is None:
        dtype = "bf16" if where.type == "cuda" else "float32"
    given = {"shape": " ".join(shape), "channels": channels, "state": state}
    options = {k: v for k, v in given.items() if v} | {
        "op": op, "dtype": dtype, "seconds": f"{seconds:g}", "device": where,
    }  # fmt: skip
    command = " ".join(
        ["scangolf bench scan", *(f"--{k} {v}" for k, v in options.items())]
        + ["--crossing"] * crossing
    )
    gpu = torch.cuda.device(where) if where.type == "cuda" else contextlib.nullcontext()
    with gpu, Console(stderr=True).status("measuring the device") as status:
        report = measure(operator, where, shapes, DTYPES[dtype], seconds, command, status, crossing)
    if crossing and report.passed:
        report.crossing = crossings.find(report)
    if as_json:
        print(json.dumps(_finite(dataclasses.asdict(report)), indent=2, allow_nan=False))
    else:
        from scangolf.bench.table import print_report

        print_report(report)
    if png is not None and report.passed:
        from scangolf.bench.plot import crossing_png

        crossing_png(report, png)
    return report.passed


def _device(name: str) -> torch.device:
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = pick_device(name)
    if device.type not in ("cuda", "cpu"):
        raise UserError(f"--device {name}: has no float64 to check against; take cpu or cuda")
    return device


def _shapes(
    defaults: list[Shape], texts: tuple[str, ...], channels: int | None, state: int | None
) -> list[Shape]:
    for name, value in (("channels", channels), ("state", state)):
        if value is not None and value < 1:
            raise UserError(f"--{name} {value}: needs at least 1")
    if texts:
        pairs = [parse_shape(text) for text in texts]
        defaults = [dataclasses.replace(defaults[0], batch=b, length=n) for b, n in pairs]
    given = {k: v for k, v in (("channels", channels), ("state", state)) if v is not None}
    return [dataclasses.replace(shape, **given) for shape in defaults]


def parse_shape(text: str) -> tuple[int, int]:
    batch, _, length = text.partition("x")
    if not (batch.isdigit() and length.isdigit() and int(batch) and int(length)):
        raise UserError(f"--shape {text}: expected batch x length, as in 16x4096")
    return int(batch), int(length)


def _finite(value: Any) -> Any:
    """JSON has no number for what is not one."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
