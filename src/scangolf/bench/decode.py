"""`scangolf bench decode`: the speed of generating text, presets by tokens that came before.

Weights are random: they make no difference to the speed. The steps are those of `generate`, without
the drawing of a token, and checked first: their logits must be those of the whole sequence at once.

Shapes: B sequences, L length, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor

from scangolf.bench.timing import Stopwatch
from scangolf.console import wide_console
from scangolf.device import compute_dtype, describe, pick_device
from scangolf.errors import UserError
from scangolf.layers.mixer import State
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS

CONTEXTS = (128, 1024, 8192)
DEFAULTS = {"cuda": ("attention", "hybrid", "ssm")}
CHECKED = 8
"""Steps whose logits are compared with those of a whole sequence."""
LARGEST_ERROR = {torch.float32: 1e-4, torch.bfloat16: 5e-2}
"""Of the logits, relative to their norm."""


@dataclass(frozen=True)
class Cell:
    preset: str
    context: int
    """Tokens that came before."""
    batch: int
    prompt_ms: float
    """To read the context at once."""
    token_ms: float
    """For one more token of every sequence; medians."""
    tokens_per_second: float
    """Of all sequences together."""
    state_bytes: int
    """What a sequence remembers after the context."""
    error: float
    """Of the logits of steps against those of a whole sequence, relative to their norm."""


def bench_decode(
    presets: Sequence[str],
    contexts: Sequence[int],
    batch: int,
    seconds: float,
    device: str,
    as_json: bool,
) -> bool:
    """Measures and prints; the options are those of the verb. False if a check failed."""
    for name, value in (
        ("batch", batch),
        ("seconds", seconds),
        *(("contexts", c) for c in contexts),
    ):
        if value <= 0:
            raise UserError(f"--{name} {value}: needs more than 0")
    where = pick_device(device)
    watch = Stopwatch(where, seconds)
    cells = []
    with Console(stderr=True).status("decoding") as status:
        for name in presets or DEFAULTS.get(where.type, ("tiny",)):
            for context in contexts or CONTEXTS:
                status.update(f"{name}, after {context:,} tokens")
                cells.append(_measure(name, context, batch, watch))
    if as_json:
        values = {"device": describe(where), "torch": torch.__version__}
        print(json.dumps(values | {"cells": [dataclasses.asdict(c) for c in cells]}, indent=2))
    else:
        console = wide_console()
        console.print(f"{describe(where)}, torch {torch.__version__}; sequences at a time: {batch}")
        console.print(_table(cells))
    limit = LARGEST_ERROR[compute_dtype(where)]
    wrong = [cell for cell in cells if not cell.error <= limit]
    for cell in wrong:
        print(f"{cell.preset}, {cell.context:,}: logits are off by {cell.error:.1e}, over {limit}")
    return not wrong


@torch.inference_mode()
def _measure(preset: str, context: int, batch: int, watch: Stopwatch) -> Cell:
    model = HybridLM(PRESETS[preset]().model).to(watch.device)
    model.compute_dtype = compute_dtype(watch.device)
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        # Projections that start at zero would make every mixer silent.
        parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator).to(watch.device))
    shape = (batch, context)
    tokens_BL = torch.randint(model.config.vocab_size, shape, generator=generator).to(watch.device)
    error = _error(model, tokens_BL)

    def prompt() -> list[State]:
        return model.extend(tokens_BL, model.init_state(batch))[1]

    state = prompt()
    prompt_ms = watch.time(prompt, least=1).median_ms
    token_ms = watch.time(lambda: model.step(tokens_BL[:, -1], state)).median_ms
    return Cell(
        preset=preset,
        context=context,
        batch=batch,
        prompt_ms=prompt_ms,
        token_ms=token_ms,
        tokens_per_second=batch / (1e-3 * token_ms),
        state_bytes=sum(t.nbytes for t in _tensors(state)) // batch,
        error=error,
    )


def _error(model: HybridLM, tokens_BL: Tensor) -> float:
    """Of the last few positions' logits, step by step, against all positions at once.

    Within the window of attention, beyond which decoding forgets and a whole sequence does not.
    """
    tokens_BL = tokens_BL[:, -model.config.attention.window :]
    checked = min(CHECKED, tokens_BL.shape[1])
    whole_BLV = model(tokens_BL)[:, -checked:]
    state = model.init_state(len(tokens_BL))
    if tokens_BL.shape[1] > checked:
        _, state = model.extend(tokens_BL[:, :-checked], state)
    steps = []
    for token_B in tokens_BL[:, -checked:].unbind(1):
        logits_BV, state = model.step(token_B, state)
        steps.append(logits_BV)
    return float((torch.stack(steps, 1) - whole_BLV).norm() / whole_BLV.norm())


def _tensors(state: Sequence[State]) -> Iterator[Tensor]:
    for part in state:
        if isinstance(part, Tensor):
            yield part
        elif isinstance(part, tuple):
            yield from _tensors(part)


def _table(cells: list[Cell]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("preset", no_wrap=True)
    for name in ("after tokens", "reading ms", "ms a token", "tokens/s", "state", "error"):
        table.add_column(name, justify="right", no_wrap=True)
    for c in cells:
        table.add_row(
            c.preset,
            f"{c.context:,}",
            f"{c.prompt_ms:,.1f}",
            f"{c.token_ms:,.2f}",
            f"{c.tokens_per_second:,.0f}",
            f"{c.state_bytes / 2**10:,.0f} KiB",
            f"{c.error:.0e}",
        )
    return table
