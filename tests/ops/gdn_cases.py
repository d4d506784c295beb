"""Inputs of the gated delta rule, and what a result is compared with."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from scan_cases import as_float64, relative_error
from torch import Tensor

from scangolf.ops import gated_delta_rule
from scangolf.ops.gdn_reference import gated_delta_rule_sequential

SEQUENCES = ("q", "k", "v", "g", "beta")
LENGTHS = (1, 63, 100, 257)
TOLERANCE = {  # of outputs, of gradients
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 1.5e-2),
}


def make_inputs(
    batch: int = 2,
    length: int = 100,
    heads: int = 3,
    key_dim: int = 5,
    value_dim: int = 7,
    dtype: torch.dtype = torch.float64,
    initial: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """Keyword arguments that want gradients: keys of norm one, states that live for some steps.

    With a dtype of 16 bits g and the state are float32, as a layer has them.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    inputs = {
        "q": normal(batch, length, heads, key_dim),
        "k": F.normalize(normal(batch, length, heads, key_dim), dim=-1),
        "v": normal(batch, length, heads, value_dim),
        "g": -(normal(batch, length, heads) - 2).exp(),
        "beta": normal(batch, length, heads).sigmoid(),
    }
    if initial:
        inputs["initial_state"] = normal(batch, heads, key_dim, value_dim)
    wide = torch.promote_types(dtype, torch.float32)
    dtypes = {"g": wide, "initial_state": wide}
    return {k: v.to(dtypes.get(k, dtype)).requires_grad_() for k, v in inputs.items()}


def outputs_and_gradients(
    rule: Callable[..., Any], inputs: dict[str, Any], **options: Any
) -> dict[str, Tensor]:
    """o, the final state, and the gradients of a random weighting of both."""
    outputs = rule(**inputs, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [  # bfloat16 numbers, so that every dtype gets the same
        torch.randn(x.shape, generator=generator).bfloat16().to(x) for x in outputs
    ]
    grads = torch.autograd.grad(outputs, list(inputs.values()), weights)
    return dict(zip(("o", "final", *inputs), (*outputs, *grads), strict=True))


def assert_matches_sequential(
    inputs: dict[str, Any], dtype: torch.dtype, seq_idx: Tensor | None = None, **options: Any
) -> None:
    got = outputs_and_gradients(gated_delta_rule, inputs, seq_idx=seq_idx, **options)
    want = outputs_and_gradients(gated_delta_rule_sequential, as_float64(inputs), seq_idx=seq_idx)
    for name, value in got.items():
        limit = TOLERANCE[dtype][name not in ("o", "final")]
        if want[name].norm() == 0:  # of a g that leaves nothing
            assert value.norm() == 0, name
        else:
            assert relative_error(value, want[name]) < limit, name
        if name in inputs:
            assert value.dtype == inputs[name].dtype, name


def assert_equal_results(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)
