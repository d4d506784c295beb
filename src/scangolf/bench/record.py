"""What --json prints, field by field: the records of a benchmark of a scan."""

from __future__ import annotations

from dataclasses import dataclass, field

from scangolf.bench.floor import Floors, Rates, Shape
from scangolf.bench.operators import Role
from scangolf.bench.timing import Times


@dataclass
class Row:
    """One form of the scan on one shape. What was not measured is null."""

    name: str
    """What was asked for: a backend ("auto" first), "loop", "mamba_ssm", "fla" or "attention"."""
    form: str
    """What ran: the backend that "auto" stands for, or the peer's kind."""
    role: Role
    """Ours, a peer that computes the same, or another layer for orientation."""
    passed: bool | None = None
    """Whether times may be shown: errors within limits and, for ours, the same bits twice."""
    note: str = ""
    """Why there are no times, or of a peer's forward pass only."""
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
    notes: list[str] = field(default_factory=list)
    """Peers that were left out, and why."""


@dataclass
class Crossing:
    """Where the scan passes attention, forward and backward."""

    length: float | None
    """From here on the scan is the faster one; null if that is not within the lengths measured."""
    words: str
    """The same as a sentence."""


@dataclass
class Report:
    """Everything measured, and on what."""

    operator: str
    """"s6", "ssd" or "gdn"."""
    about: str
    """What is fused, and how the channels are cut."""
    command: str
    device: str
    torch: str
    triton: str | None
    mamba_ssm: str | None
    fla: str | None
    dtype: str
    threads: int
    limits: dict[str, float]
    """Largest relative error allowed of y ("output") and of a gradient."""
    rates: Rates
    shapes: list[ShapeReport] = field(default_factory=list)
    passed: bool = True
    """Whether every form of ours passed its check."""
    crossing: Crossing | None = None
    """If it was asked for, and its times were had."""
