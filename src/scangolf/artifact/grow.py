"""What else the bytes would hold: the same model with one of its sizes as large as they allow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from scangolf.artifact.room import Room
from scangolf.config import RunConfig, check_model
from scangolf.errors import UserError
from scangolf.model import HybridLM

WIDTH = 64
"""Widths are multiples of it: GPUs multiply such matrices in whole tiles."""
MOST_STEPS = 1000
"""An end for heads that can share out none of the widths."""


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
    found = []
    for kind in kinds:
        larger = None
        for steps in range(1, MOST_STEPS):
            settings = kind(steps)
            try:
                resized = dataclasses.replace(model, **settings)
                check_model(resized)
            except UserError:  # a width that the heads cannot share out
                continue
            with torch.device("meta"):
                room = Room.of(HybridLM(resized, seed=None), config.artifact, code_bytes)
            if room.bits_per_weight < bits:
                break
            larger = Grown(settings, room)
        if larger is not None:
            found.append(larger)
    return found
