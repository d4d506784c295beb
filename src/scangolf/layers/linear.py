"""The linear layer of every block: float32 weights, cast to the input's dtype at the product."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Linear(nn.Module):
    """y = x W^T (+ b). Says itself which optimiser group its parameters belong to.

    Weights and bias start uniform within ±1/sqrt(fan in), or at zero with `zero=True`.
    """

    def __init__(
        self, fan_in: int, fan_out: int, *, bias: bool = False, zero: bool = False
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(fan_out, fan_in))
        self.bias = nn.Parameter(torch.empty(fan_out)) if bias else None
        self.zero = zero
        self.groups = {"weight": "matrix", "bias": "vector"}
        self.dt_rows = range(0)
        """The outputs that set the memory of a scan: an artifact rounds these rows finely."""

    def init_weights(self, generator: torch.Generator) -> None:
        bound = 0.0 if self.zero else self.weight.shape[1] ** -0.5
        for parameter in (self.weight, self.bias):
            if parameter is not None:
                nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def parts(self, x: Tensor, sizes: Sequence[int]) -> list[Tensor]:
        """x W^T in pieces of these widths, each a tensor of its own; for layers without a bias.

        One product that is split afterwards is copied where its pieces must be contiguous, and the
        gradients of its pieces are copied into one again.
        """
        return [F.linear(x, weight) for weight in self.weight.to(x.dtype).split(list(sizes))]

    def forward(self, x: Tensor) -> Tensor:
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, self.weight.to(x.dtype), bias)


class OutProjection(Linear):
    """A projection that writes into the residual stream, with a gain for each channel it writes.

    The weight starts at zero, so that a block starts as the identity, and the gain at one. The gain
    multiplies the rows of the weight, not the output. That is the same function, but the backward
    pass needs neither the output nor another gradient of its size, and the gain's own gradient is a
    sum over the weight instead of over all tokens.
    """

    def __init__(self, fan_in: int, fan_out: int) -> None:
        super().__init__(fan_in, fan_out, zero=True)
        self.gain = nn.Parameter(torch.empty(fan_out))
        self.groups = self.groups | {"gain": "vector"}

    def init_weights(self, generator: torch.Generator) -> None:
        super().init_weights(generator)
        nn.init.ones_(self.gain)

    def scaled_weight(self, dtype: torch.dtype) -> Tensor:
        """The weight with its rows multiplied by the gain."""
        return torch.mul(self.weight, self.gain[:, None]).to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.scaled_weight(x.dtype))
