"""What the benchmark knows of an operator, and what it can time."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor

from scangolf.bench.floor import Shape
from scangolf.errors import UserError

Tensors = dict[str, Tensor]
Role = Literal["ours", "peer", "orientation"]
HEAD_SIZE = 64
LIMITS_FLOAT32 = (1e-5, 1e-4)


class Normal(Protocol):
    """Normal random numbers of a size, in the dtype of the activations unless given."""

    def __call__(self, *size: int, dtype: torch.dtype = ...) -> Tensor: ...


@dataclass(frozen=True)
class Contender:
    """Something to time: a function of its inputs, and the gradient of what it returns."""

    name: str
    form: str
    role: Role
    run: Callable[[Tensors], Tensor]
    inputs: Tensors
    grad: Tensor
    time_last: bool = False  # [B, D, L] instead of [B, L, D]

    def forward(self) -> Tensor:
        with torch.no_grad():
            return self.run(self.inputs)

    def both(self) -> tuple[Tensor, ...]:
        return torch.autograd.grad(self.run(self.inputs), list(self.inputs.values()), self.grad)

    def results(self) -> Tensors:
        """y and the gradients, in our layout."""
        found = results(self.run, self.inputs, self.grad)
        if not self.time_last:
            return found
        return {k: v.mT if v.dim() == 3 else v for k, v in found.items()}


@dataclass(frozen=True)
class Operator:
    """A scan and what stands beside it. Its inputs are keyword arguments, by name."""

    name: str
    about: str
    """What is fused and how the channels are cut, for people."""
    shapes: dict[str, list[Shape]]
    """Measured unless others are asked for, by the type of the device."""
    limits_16_bit: tuple[float, float]
    """Largest relative error of y and of a gradient; of float32: LIMITS_FLOAT32."""
    draw: Callable[[Shape, Normal, torch.device], Tensors]
    """Inputs. Those with more than two axes begin with batch, length; the others with channels or
    heads."""
    like: str
    """The input that y has the shape of: [batch, length, channels or heads, ...]."""
    scan: Callable[[Tensors, str], Tensor]
    """y of the inputs, by the backend of that name."""
    loop: Callable[[Tensors], Tensor]
    """The same a step at a time."""
    backends: Callable[[Tensors], list[tuple[str, str]]]
    """Names to ask for and what runs: "auto" first, then the others that take the inputs."""
    peer_name: str
    peer: Callable[[Tensors, Tensor], Contender]
    """Of the inputs and the gradient of y; raises where it cannot be had."""
    shared: tuple[str, ...] = ()
    """Inputs that all channels or heads read: [batch, length, state]."""
    exponentials: Callable[[Shape], int] = lambda shape: 0
    """What a pass cannot avoid, each kind by itself; 0 where it is not counted."""
    flop: Callable[[Shape], int] = lambda shape: 0
    """Of the matrix products of a forward pass; a backward pass has two for each of them."""

    def limits(self, dtype: torch.dtype) -> tuple[float, float]:
        return LIMITS_FLOAT32 if dtype == torch.float32 else self.limits_16_bit


def results(scan: Callable[[Tensors], Tensor], inputs: Tensors, dy: Tensor) -> Tensors:
    """y and the gradients, by the names of the inputs."""
    y = scan(inputs)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    return {"y": y.detach()} | dict(zip(inputs, grads, strict=True))


def able(
    names: tuple[str, ...], resolved: str, on_gpu: bool, why_not: Callable[[str], str | None]
) -> list[tuple[str, str]]:
    """`Operator.backends` of an operator with these kernels, whose "auto" takes `resolved`."""
    others = [*names, "reference"] if on_gpu else ["reference"]
    return [
        ("auto", resolved),
        *((b, b) for b in others if b != resolved and why_not(b) is None),
    ]


def heads(shape: Shape) -> int:
    if shape.channels % HEAD_SIZE:
        raise UserError(f"--channels {shape.channels}: needs a multiple of {HEAD_SIZE}, for heads")
    return shape.channels // HEAD_SIZE


def pairs(length: int, chunk: int) -> int:
    """Pairs of steps s <= t that lie in one chunk, of one sequence."""
    whole, rest = divmod(length, chunk)
    return (whole * chunk * (chunk + 1) + rest * (rest + 1)) // 2


def peer_function(module: str, name: str, *arguments: str) -> Any:
    """A function of another package.

    Raises:
        Exception: of any kind where it cannot be imported: a build for another torch fails in many
            ways. TypeError where it does not take these arguments by name.
    """
    function = getattr(importlib.import_module(module), name)
    inspect.signature(function).bind(**dict.fromkeys(arguments))
    return function
