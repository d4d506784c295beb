"""`scangolf bench train`: the speed of training steps, presets by lengths.

A cell of the table is a short run of the trainer itself on real batches: what is compiled is
compiled before the clock starts, as in every run, and nothing of it is kept.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table

from scangolf.bench.kernels import Kernel, groups, record
from scangolf.bench.model_flop import training_flop
from scangolf.bench.timing import Stopwatch
from scangolf.config import BatchConfig, RunConfig
from scangolf.console import wide_console
from scangolf.data.shards import Dataset, open_dataset
from scangolf.device import compute_dtype, describe, pick_device, within_memory
from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS
from scangolf.score.evaluate import Score
from scangolf.settings import from_words, with_settings
from scangolf.train.loop import Trainer
from scangolf.train.progress import Silent

NEVER = 1e9
"""Seconds between checkpoints."""
PROFILED_STEPS = 4
DEFAULTS = {"cuda": ("baseline", "attention", "hybrid", "hybrid-s6")}


@dataclass(frozen=True)
class Cell:
    """One preset at one length. Milliseconds are of a step, medians over the steps."""

    preset: str
    layers: str
    parameters: int
    length: int
    batch_tokens: int
    micro_tokens: int
    steps: int
    step_ms: float
    tokens_per_second: float
    tflop_per_second: float
    """Of the model's matrix products, forward and backward (bench/model_flop.py)."""
    utilisation: float
    """The same over what a large product of two matrices reaches on this device."""
    peak_gib: float | None
    """Most memory held on a GPU, the compiler's and the optimiser's included."""
    ready_seconds: float
    """Until the first step could start: building, compiling, priming."""
    kernels: list[Kernel]
    """What a GPU ran in a step, if it was asked for."""


def bench_train(
    presets: Sequence[str],
    lengths: Sequence[int],
    settings: Sequence[str],
    data: Path | None,
    tokens: int | None,
    micro_tokens: int | None,
    seconds: float,
    device: str,
    profile: bool,
    as_json: bool,
) -> None:
    """Measures and prints; the options are those of the verb."""
    if seconds <= 0:
        raise UserError(f"--seconds {seconds}: needs more than 0")
    where = pick_device(device)
    if profile and where.type != "cuda":
        raise UserError(f"--profile: lists the kernels of a GPU, and --device is {where}")
    changes = from_words(settings)
    bases = [
        with_settings(PRESETS[name](), changes)
        for name in presets or DEFAULTS.get(where.type, ("tiny",))
    ]
    batch: dict[str, Any] = {"tokens": tokens, "micro_tokens": micro_tokens}
    batch = {name: value for name, value in batch.items() if value is not None}
    runs = [
        _run_config(base, length, batch, data, seconds, str(where), profile)
        for base in bases
        for length in lengths or (base.batch.seq_len,)
    ]
    datasets = {run.data: open_dataset(Path(run.data)) for run in runs}
    with Console(stderr=True).status("measuring the device") as status:
        peak = Stopwatch(where, 0.2).product_rate(compute_dtype(where))
        cells = []
        for run in runs:
            status.update(f"{run.preset}, length {run.batch.seq_len}")
            cells.append(_measure(run, datasets[run.data], where, peak, profile))
    if as_json:
        values = {
            "device": describe(where),
            "torch": torch.__version__,
            "product_flop": peak,
            "settings": changes,
        }
        print(json.dumps(values | {"cells": [dataclasses.asdict(c) for c in cells]}, indent=2))
        return
    console = wide_console()
    console.print(f"{describe(where)}, torch {torch.__version__}; medians of steps")
    console.print(
        "step, pass: tokens of each; "
        f"share: of the {peak / 1e12:,.3g} TFLOP/s of a large product of matrices"
    )
    if changes:
        console.print("of all:", ", ".join(f"{name} = {value}" for name, value in changes.items()))
    console.print(_table(cells))
    for cell in cells if profile else ():
        console.print(_kernel_table(cell))


def _run_config(
    config: RunConfig,
    length: int,
    batch: dict[str, Any],
    data: Path | None,
    seconds: float,
    device: str,
    profile: bool,
) -> RunConfig:
    whole: BatchConfig = dataclasses.replace(
        config.batch,
        seq_len=length,
        **{"micro_tokens": max(length, config.batch.micro_tokens)} | batch,
    )
    return dataclasses.replace(
        config,
        batch=whole,
        data=config.data if data is None else str(data),
        seconds=seconds,
        steps=PROFILED_STEPS if profile else None,
        device=device,
        evals=0,
        checkpoint_seconds=NEVER,
    )


def _measure(
    config: RunConfig, dataset: Dataset, device: torch.device, peak: float, profile: bool
) -> Cell:
    cuda = device.type == "cuda"
    if cuda:
        torch.compiler.reset()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), time.perf_counter()
        what = f"{config.preset} at length {config.batch.seq_len}"
        asked = f"--micro-tokens {config.batch.micro_tokens}"
        with within_memory(device, f"{asked}: {what}", "take fewer"):
            trainer = _Trainer(config, dataset, folder, Silent(), _no_score)
            ready = time.perf_counter() - start
            kernels = _train(trainer, profile)
        lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    speed = statistics.median(record["tokens_per_second"] for record in records)
    flop = speed * training_flop(trainer.model, config.batch.seq_len)
    return Cell(
        preset=config.preset,
        layers=config.model.pattern,
        parameters=trainer.model.n_parameters,
        length=config.batch.seq_len,
        batch_tokens=config.batch.tokens,
        micro_tokens=trainer.micro_sequences * config.batch.seq_len,
        steps=len(records),
        step_ms=1e3 * config.batch.tokens / speed,
        tokens_per_second=speed,
        tflop_per_second=flop / 1e12,
        utilisation=flop / peak,
        peak_gib=torch.cuda.max_memory_allocated(device) / 2**30 if cuda else None,
        ready_seconds=ready,
        kernels=kernels,
    )


def _train(trainer: Trainer, profile: bool) -> list[Kernel]:
    """The run; with `profile` the kernels of an average step of it."""
    if not profile:
        trainer.train()
        return []
    return record(trainer.train, PROFILED_STEPS)


class _Trainer(Trainer):
    def save(self) -> None:
        """Nothing: what a benchmark trains is not kept."""


def _no_score(model: HybridLM) -> Score:
    raise AssertionError("a benchmark asks for no evaluation")


def _table(cells: list[Cell]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    columns: dict[str, Callable[[Cell], str]] = {
        "size": lambda c: f"{c.parameters / 1e6:.1f} M",
        "length": lambda c: f"{c.length:,}",
        "step": lambda c: f"{c.batch_tokens:,}",
        "pass": lambda c: f"{c.micro_tokens:,}",
        "tokens/s": lambda c: f"{c.tokens_per_second:,.0f}",
        "ms a step": lambda c: f"{c.step_ms:,.1f}",
        "TFLOP/s": lambda c: f"{c.tflop_per_second:,.3g}",
        "share": lambda c: f"{c.utilisation:.1%}",
        "peak GiB": lambda c: "-" if c.peak_gib is None else f"{c.peak_gib:.1f}",
        "ready s": lambda c: f"{c.ready_seconds:.0f}",
    }
    table.add_column("preset", no_wrap=True)
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(cell.preset, *(show(cell) for show in columns.values()))
    return table


def _kernel_table(cell: Cell) -> Table:
    """Groups of kernels, and the longest of each."""
    table = Table(title=f"{cell.preset}, length {cell.length:,}: where a step's time goes",
                  box=box.SIMPLE_HEAD, title_justify="left")  # fmt: skip
    for column in ("kernels", "ms a step", "calls"):
        table.add_column(column, justify="left" if column == "kernels" else "right")
    for name, kernels in groups(cell.kernels).items():
        table.add_row(name, f"{sum(k.ms for k in kernels):.2f}", "", style="bold")
        for kernel in kernels[:6]:
            table.add_row(f"  {kernel.name[:80]}", f"{kernel.ms:.2f}", f"{kernel.calls:g}")
    return table
