"""Which backend runs a gated delta rule: the one that was named, or the fastest that can.

A backend has `forward`, `backward` and `saved` as in ops/gdn_chunked.py. Modules of kernels have
`why_not`, too; they are imported where they are asked for, not before.
"""

from importlib import import_module
from types import ModuleType
from typing import Literal

import torch
from torch import Tensor

from scangolf.ops import gdn_chunked
from scangolf.ops.checks import check_backend

Backend = Literal["auto", "triton", "reference"]
KERNELS = ("triton",)


def choose_backend(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that runs: "triton" or "reference".

    The same inputs give the same answer, so that the backward pass finds what the forward pass
    took. Empty inputs take the reference, whatever was asked for, and so do tensors on a GPU that
    is not there: fake ones, of which only shapes are asked.

    Args:
        backend: any of the names of `Backend`.
        q: [batch, length, heads, key_dim].
        v: [batch, length, heads, value_dim].

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    check_backend(backend, Backend)
    if backend == "reference" or q.numel() == 0 or v.numel() == 0:
        return "reference"
    if v.is_cuda and not torch.cuda.is_available():
        return "reference"
    if backend == "auto":
        able = (name for name in KERNELS if v.is_cuda and why_not(name, q, v) is None)
        return next(able, "reference")
    reason = why_not(backend, q, v)
    if reason is not None:
        raise ValueError(f"backend is {backend!r}, whose kernels cannot run: {reason}")
    return backend


def why_not(backend: str, q: Tensor, v: Tensor) -> str | None:
    """What keeps a backend from the inputs; None if nothing does. Shapes as in choose_backend."""
    if backend == "reference":
        return None
    if v.dtype == torch.float64:
        return "they compute in float32, v is float64"
    try:
        kernels = _kernels(backend)
    except ImportError as error:
        return f"they need {error.name}, which is not installed"
    return kernels.why_not(q, v)


def implementation(backend: str, q: Tensor, v: Tensor) -> ModuleType:
    """The `forward`, `backward` and `saved` that run; all else as in `choose_backend`."""
    chosen = choose_backend(backend, q, v)
    return gdn_chunked if chosen == "reference" else _kernels(chosen)


def saved(backend: str, q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Tensor:
    """Without its numbers, what `forward` saves for `backward`, of tensors without data, too.

    Batch and length may be symbolic. All other sizes become plain numbers for a GPU: a graph that
    is compiled with these as symbols is compiled again where they change.
    """
    if v.is_cuda:
        q, k, v = (x.new_empty(*x.shape[:2], *map(int, x.shape[2:])) for x in (q, k, v))
    return implementation(backend, q, v).saved(q, k, v, chunk_size)


def _kernels(backend: str) -> ModuleType:
    return import_module(f"scangolf.ops.gdn_{backend}")
