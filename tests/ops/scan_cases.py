"""Random inputs of the selective scan, and its gradients, for the tests of this folder."""

from collections.abc import Callable
from itertools import product
from typing import Any

import torch
from torch import Tensor

OPTIONAL = ("D", "z", "delta_bias", "initial_state")


def make_inputs(
    batch: int = 2,
    length: int = 65,
    channels: int = 6,
    state: int = 3,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
    optional: tuple[str, ...] = OPTIONAL,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments that want gradients. Steps are small: states live for tens of tokens."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (batch, length, state) if groups is None else (batch, length, groups, state)
    inputs = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels) - 2,
        "A": -normal(channels, state).exp(),
        "B": normal(*weights),
        "C": normal(*weights),
        "D": normal(channels),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels),
        "initial_state": normal(batch, channels, state),
    }
    wanted = {k: v for k, v in inputs.items() if k not in OPTIONAL or k in optional}
    return {k: v.to(dtype).requires_grad_() for k, v in wanted.items()}


def documents(batch: int, length: int, *starts: int) -> Tensor:
    """Document numbers; each sequence begins one at each of `starts`, the second one step later."""
    seq_idx = torch.zeros(batch, length, dtype=torch.int32)
    for row, start in product(range(batch), starts):
        seq_idx[row, start + row :] += 1
    return seq_idx


def as_float64(inputs: dict[str, Any]) -> dict[str, Any]:
    return {k: v.detach().double().requires_grad_() for k, v in inputs.items()}


def outputs_and_gradients(
    scan: Callable[..., Any], inputs: dict[str, Any], **options: Any
) -> dict[str, Tensor]:
    """y, the final state, and the gradients of a random weighting of both."""
    y, final = scan(**inputs, delta_softplus=True, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [  # bfloat16 numbers, so that every dtype gets the same
        torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in (y, final)
    ]
    grads = torch.autograd.grad((y, final), list(inputs.values()), weights)
    return {"y": y, "final": final} | dict(zip(inputs, grads, strict=True))


def relative_error(got: Tensor, want: Tensor) -> float:
    return ((got.double() - want.double()).norm() / want.double().norm()).item()
