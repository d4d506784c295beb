"""How much the loss depends on every linear layer: what its inputs are, what its outputs do.

To second order an error E_RD in the weights of a layer costs

    1/2 sum_r g_r (E H E^T)_rr    nats a token,

H_DD the mean of x x^T over its inputs and g_R the mean squared gradient of its outputs, as in
K-FAC (Martens & Grosse 2015, arXiv:1503.05671) with the diagonal of the outputs' factor. Both come
from one forward and backward pass over a few ten thousand tokens of the training split.

Shapes: B sequences, L length, R rows (outputs), D columns (inputs), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from scangolf.data.batches import Sequences
from scangolf.layers.linear import Linear
from scangolf.model import HybridLM

TOKENS = 32_768
"""Tokens to calibrate on."""
TOKENS_AT_ONCE = 4096
"""Bounds the memory: the pass is in float32 and keeps every layer's activations."""


@dataclass(frozen=True)
class Curvature:
    """The loss around the weights of one layer."""

    H_DD: Tensor
    """float64: mean of x x^T over its inputs."""
    g_R: Tensor
    """float64: the squared gradient of each output, mean over tokens, summed over `loops`."""
    dt_rows: range = range(0)
    """The outputs that set the memory of a scan: an error there adds up over time."""


@dataclass(frozen=True)
class _Product:
    """One product x W^T of a forward pass, with all of a parameter's rows or some."""

    name: str
    first_row: int
    gain_R: Tensor | None
    """What the rows were multiplied by before."""
    x: Tensor
    out: Tensor


class _Products(TorchFunctionMode):
    """Notes every F.linear on a parameter, or on rows of one, whichever layer calls it.

    Or on a parameter times a gain for each row, by torch.mul. So a layer need not know about it,
    and a parameter that is used in another way has no curvature. Lookups in the embedding are noted
    apart.
    """

    def __init__(self, model: HybridLM) -> None:
        self.names = {id(p): name for name, p in model.named_parameters()}
        self.products: list[_Product] = []
        self.lookups: list[Tensor] = []
        self.scaled: dict[int, tuple[Tensor, str, Tensor]] = {}

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if func is F.linear:
            x, weight = args[:2]
            owner = weight if weight._base is None else weight._base
            if id(weight) in self.scaled:
                _, name, gain_R = self.scaled[id(weight)]
                self.products.append(_Product(name, 0, gain_R, x.detach(), out))
            elif id(owner) in self.names:
                skipped = weight.storage_offset() - owner.storage_offset()
                name, row = self.names[id(owner)], skipped // owner.shape[1]
                self.products.append(_Product(name, row, None, x.detach(), out))
        elif func is torch.mul and id(args[0]) in self.names:
            weight, gain = args
            if isinstance(gain, Tensor) and gain.shape == (len(weight), 1):
                # `out` is kept, so that no later tensor has its id.
                self.scaled[id(out)] = (out, self.names[id(weight)], gain.detach()[:, 0])
        elif func is F.embedding:
            self.lookups.append(out)
        return out


def calibration_batches(
    shards: Sequence[np.ndarray], seq_len: int, device: torch.device
) -> Iterator[tuple[Tensor, Tensor]]:
    """About TOKENS tokens from all over the training split, as inputs and targets, int64 [B, L]."""
    sequences = Sequences(shards, seq_len=seq_len, order="window", seed=0)
    at_once = max(1, TOKENS_AT_ONCE // seq_len)
    for first in range(0, max(at_once, TOKENS // seq_len), at_once):
        rows = torch.from_numpy(sequences.take(first, at_once)).to(device).long()
        yield rows[:, :-1], rows[:, 1:]


def calibrate(model: HybridLM, batches: Iterable[tuple[Tensor, Tensor]]) -> dict[str, Curvature]:
    """The curvature of every matrix that the model multiplies by, by parameter name.

    `batches` are inputs and targets, int64 [B, L], on the model's device. The model's weights,
    gradients and `compute_dtype` are left as they were; the passes are in float32.

    A tied embedding is a product, the head, and a table that is looked up. An error in a row of the
    table costs what the gradient there says, alike in all directions and, as the head's does,
    in proportion to how often the token comes: that is a multiple of the identity in H.
    """
    H: dict[str, Tensor] = {}
    n_inputs: dict[str, int] = {}
    g: dict[str, Tensor] = {}
    lookup = torch.zeros((), dtype=torch.float64)
    n_tokens = 0
    shapes = {name: p.shape for name, p in model.named_parameters()}
    dtype, model.compute_dtype = model.compute_dtype, torch.float32
    try:
        for x_BL, y_BL in batches:
            with torch.enable_grad(), _Products(model) as noted:
                nats = model(x_BL, y_BL).sum()
            outs = [product.out for product in noted.products]
            grads = torch.autograd.grad(nats, outs + noted.lookups)
            n_tokens += y_BL.numel()
            for product, grad in zip(noted.products, grads, strict=False):
                R, D = shapes[product.name]
                grad = grad.flatten(0, -2)
                if product.gain_R is not None:
                    grad = grad * product.gain_R
                rows = slice(product.first_row, product.first_row + grad.shape[1])
                g.setdefault(product.name, grad.new_zeros(R))[rows] += grad.square().sum(0)
                if product.first_row == 0:
                    x = product.x.flatten(0, -2)
                    H[product.name] = H.get(product.name, x.new_zeros(D, D)).addmm(x.T, x)
                    n_inputs[product.name] = n_inputs.get(product.name, 0) + len(x)
            for grad in grads[len(outs) :]:
                lookup += (grad.square().sum() / grad.shape[-1]).cpu()
    finally:
        model.compute_dtype = dtype
    dt_rows = {f"{n}.weight": m.dt_rows for n, m in model.named_modules() if isinstance(m, Linear)}
    found = {
        name: Curvature(
            _exact(H[name]) / n_inputs[name],
            _exact(g[name]) / n_tokens,
            dt_rows.get(name, range(0)),
        )
        for name in H
    }
    if model.config.tie_embeddings:
        head = found["embedding.weight"]
        share = (lookup / n_tokens).to(head.g_R.device) / head.g_R.sum()
        head.H_DD.diagonal().add_(share)
    return found


def _exact(sums: Tensor) -> Tensor:
    """In float64, which Apple's GPUs do not have."""
    return sums.to("cpu" if sums.device.type == "mps" else sums.device).double()
