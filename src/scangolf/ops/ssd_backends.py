"""Which backend runs an SSD scan: the one that was named, or the fastest that can.

A backend has `forward`, `backward` and `saved` as in ops/ssd_chunked.py. Modules of kernels have
`why_not`, too; they are imported where they are asked for, not before.
"""

from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from scangolf.ops import ssd_chunked
from scangolf.ops.checks import check_backend

Backend = Literal["auto", "cuda", "triton", "reference"]
KERNELS = ("cuda", "triton")  # the faster first


def choose_backend(backend: str, x: Tensor, A: Tensor, B: Tensor) -> str:
    """The backend that runs: "cuda", "triton" or "reference".

    The same inputs give the same answer, so that the backward pass finds what the forward pass
    took. Empty inputs take the reference, whatever was asked for, and so do tensors on a GPU that
    is not there: fake ones, of which only shapes are asked.

    Args:
        backend: any of the names of `Backend`.
        x: [batch, length, heads, head_dim].
        A: [heads].
        B: [batch, length, groups, state].

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    check_backend(backend, Backend)
    if backend == "reference" or x.numel() == 0 or B.numel() == 0:
        return "reference"
    if x.is_cuda and not torch.cuda.is_available():
        return "reference"
    if backend == "auto":
        able = (name for name in KERNELS if x.is_cuda and why_not(name, x, A, B) is None)
        return next(able, "reference")
    reason = why_not(backend, x, A, B)
    if reason is not None:
        raise ValueError(f"backend is {backend!r}, whose kernels cannot run: {reason}")
    return backend


def why_not(backend: str, x: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps a backend from the inputs; None if nothing does. Shapes as in choose_backend."""
    if backend == "reference":
        return None
    if x.dtype == torch.float64:
        return "they compute in float32, x is float64"
    try:
        kernels = _kernels(backend)
    except ImportError as error:
        return f"they need {error.name}, which is not installed"
    return kernels.why_not(x, A, B)


def implementation(backend: str, x: Tensor, A: Tensor, B: Tensor) -> ModuleType:
    """The `forward`, `backward` and `saved` that run; all else as in `choose_backend`."""
    chosen = choose_backend(backend, x, A, B)
    return ssd_chunked if chosen == "reference" else _kernels(chosen)


def saved(backend: str, x: Tensor, A: Tensor, B: Tensor, chunk_size: int) -> Tensor:
    """Without its numbers, what `forward` saves for `backward`, of tensors without data, too.

    Batch and length may be symbolic. All other sizes become plain numbers for a GPU: a graph that
    is compiled with these as symbols is compiled again where they change.
    """
    if x.is_cuda:
        x = x.new_empty(*x.shape[:2], *map(int, x.shape[2:]))
        A = A.new_empty(int(A.shape[0]))
        B = B.new_empty(*B.shape[:2], *map(int, B.shape[2:]))
    return implementation(backend, x, A, B).saved(x, A, B, chunk_size)


def _kernels(backend: str) -> ModuleType:
    return import_module(f"scangolf.ops.ssd_{backend}")
