"""What else the bytes would hold: the same model with one of its sizes as large as they allow."""

from __future__ import annotations

import dataclasses
from bisect import bisect_left
from collections.abc import Callable, Sequence

import torch

from scangolf.artifact.room import Room
from scangolf.config import ModelConfig, RunConfig, check_model
from scangolf.errors import UserError
from scangolf.model import HybridLM

WIDTH = 64
"""Widths are multiples of it: GPUs multiply such matrices in whole tiles."""
MOST_STEPS = 1000
"""How far a size is grown at most."""


@dataclasses.dataclass(frozen=True)
class Grown:
    settings: dict[str, int]
    """Of the model, by the names of their fields."""
    room: Room


def grow(config: RunConfig, code_bytes: int, bits: float) -> list[Grown]:
    """A wider MLP, more blocks, and a wider stream, each the largest of its kind.

    Each leaves at least `bits` for every weight. A kind is left out where one step is too much.
    """
    model = config.model
    ratio = model.mlp_width / model.d_model

    def wider(steps: int) -> dict[str, int]:
        d_model = (model.d_model // WIDTH + steps) * WIDTH
        return {"d_model": d_model, "mlp_width": round(ratio * d_model)}

    kinds: list[Callable[[int], dict[str, int]]] = [
        lambda steps: {"mlp_width": (model.mlp_width // WIDTH + steps) * WIDTH},
        lambda steps: {"n_layers": model.n_layers + steps},
        wider,
    ]

    def room(settings: dict[str, int]) -> Room:
        with torch.device("meta"):
            larger = HybridLM(dataclasses.replace(model, **settings), seed=None)
        return Room.of(larger, config.artifact, code_bytes)

    found = []
    for kind in kinds:
        sizes = [kind(steps) for steps in range(1, MOST_STEPS)]
        sizes = [settings for settings in sizes if _valid(model, settings)]
        count = _fitting(sizes, lambda settings: room(settings).bits_per_weight >= bits)
        if count:
            found.append(Grown(sizes[count - 1], room(sizes[count - 1])))
    return found


def _valid(model: ModelConfig, settings: dict[str, int]) -> bool:
    """Heads cannot share out every width, and there are not any number of blocks."""
    try:
        check_model(dataclasses.replace(model, **settings))
    except UserError:
        return False
    return True


def _fitting(sizes: Sequence[dict[str, int]], fits: Callable[[dict[str, int]], bool]) -> int:
    """How many of ever larger sizes fit; few are looked at that are much larger than those."""
    end = 1
    while end <= len(sizes) and fits(sizes[end - 1]):
        end *= 2
    return bisect_left(
        sizes, True, lo=end // 2, hi=min(end, len(sizes)), key=lambda size: not fits(size)
    )
