"""What a person sees of a plan: its variants as they were checked, and how its runs ended."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.table import Table

from scangolf.artifact.predict import MIXED_BITS
from scangolf.artifact.room import Room
from scangolf.config import RunConfig
from scangolf.console import wide_console
from scangolf.experiments.claims import holder
from scangolf.experiments.plan import Plan
from scangolf.experiments.work import Job


@contextmanager
def waiting() -> Iterator[Callable[[str], None]]:
    """A live line on a terminal; elsewhere silent."""
    with Console().status("checking") as status:
        yield status.update


def print_checked(plan: Plan, configs: Mapping[str, RunConfig], rooms: Mapping[str, Room]) -> None:
    """The variants that can be run, if any."""
    if not rooms:
        return
    out = wide_console()
    table = Table("variant", "settings", box=box.SIMPLE_HEAD)
    table.add_column("parameters", justify="right")
    table.add_column("bytes, uncompressed", justify="right")
    for name, room in rooms.items():
        settings = ", ".join(f"{key} = {value}" for key, value in plan.variants[name].items())
        table.add_row(name, settings or "-", f"{room.parameters:,}", f"{room.uncompressed_bytes:,}")
    out.print(table)
    fits = [room.fits for room in rooms.values()]
    if over := fits.count(None):
        out.print(
            f"{over} of these are above the limit of bytes before compression, which takes some "
            "7 to 20 % off trained weights",
            soft_wrap=True,
        )
    if coarse := fits.count(False):
        out.print(
            f"{coarse} of these have fewer than {MIXED_BITS:g} bits for every weight, at which the "
            "score suffers",
            soft_wrap=True,
        )
    config = configs[next(iter(rooms))]
    budget = f"{config.seconds:g} seconds" if config.steps is None else f"{config.steps} steps"
    variants, seeds = len(plan.variants), len(plan.seeds)
    out.print(
        f"{plan.name}: {_count(variants, 'variant')} of {plan.preset}, {_count(seeds, 'seed')} "
        f"each, {budget} a run: {_count(variants * seeds, 'run')}"
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def print_outcome(jobs: Sequence[Job]) -> None:
    """Every run with its score, or what became of it."""
    table = Table("variant", "seed", "state", box=box.SIMPLE_HEAD)
    table.add_column("bits a byte", justify="right")
    table.add_column("steps", justify="right")
    for job in jobs:
        state = job.state()
        how, score, steps = state, "", ""
        if state == "finished":
            summary = json.loads((job.folder / "summary.json").read_text())
            score, steps = f"{summary['artifact_val_bpb']:.4f}", f"{summary['steps']:,}"
        elif state == "failed":
            how = f"failed: {job.error()}"
        elif state == "under way":
            how = f"under way: {holder(job.folder)}"
        table.add_row(job.variant, str(job.config.seed), how, score, steps)
    wide_console().print(table)
