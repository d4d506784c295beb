"""Random inputs of the SSD scan, and its gradients, for the tests of this folder."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

OPTIONAL = ("D", "z", "dt_bias", "initial_state")
SEQUENCES = ("x", "dt", "B", "C", "z")


def make_ssd_inputs(
    batch: int = 2,
    length: int = 100,
    heads: int = 4,
    head_dim: int = 5,
    state: int = 3,
    groups: int | None = 2,
    dtype: torch.dtype = torch.float64,
    optional: tuple[str, ...] = OPTIONAL,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments that want gradients. Steps are small: states live for tens of tokens.

    With a dtype of 16 bits parameters and state are float32, as a layer has them.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    weights = (batch, length, state) if groups is None else (batch, length, groups, state)
    inputs = {
        "x": normal(batch, length, heads, head_dim),
        "dt": normal(batch, length, heads) - 2,
        "A": -normal(heads).exp(),
        "B": normal(*weights),
        "C": normal(*weights),
        "D": normal(heads),
        "z": normal(batch, length, heads, head_dim),
        "dt_bias": normal(heads),
        "initial_state": normal(batch, heads, head_dim, state),
    }
    wanted = {k: v for k, v in inputs.items() if k not in OPTIONAL or k in optional}
    wide = torch.promote_types(dtype, torch.float32)
    return {k: v.to(dtype if k in SEQUENCES else wide).requires_grad_() for k, v in wanted.items()}


def ssd_outputs_and_gradients(
    scan: Callable[..., Any],
    inputs: dict[str, Any],
    dt_softplus: bool = True,
    **options: Any,
) -> dict[str, Tensor]:
    """y, the final state, and the gradients of a random weighting of both."""
    outputs = scan(**inputs, dt_softplus=dt_softplus, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [  # bfloat16 numbers, so that every dtype gets the same
        torch.randn(v.shape, generator=generator).bfloat16().to(v) for v in outputs
    ]
    grads = torch.autograd.grad(outputs, list(inputs.values()), weights)
    return dict(zip(("y", "final", *inputs), (*outputs, *grads), strict=True))
