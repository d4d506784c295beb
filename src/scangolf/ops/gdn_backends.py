"""Which backend runs a gated delta rule: the one that was named, or the fastest that can.

A backend has `forward`, `backward` and `saved` as in ops/gdn_chunked.py. Modules of kernels have
`why_not`, too; they are imported where they are asked for, not before.
"""

from importlib import import_module
from types import ModuleType
from typing import Literal

from torch import Tensor

from scangolf.ops import gdn_chunked
from scangolf.ops.backends import choose, refusal

Backend = Literal["auto", "triton", "reference"]
KERNELS = ("triton",)


def choose_backend(backend: str, q: Tensor, v: Tensor) -> str:
    """The backend that runs: "triton" or "reference". See ops/backends.py.

    Args:
        backend: any of the names of `Backend`.
        q: [batch, length, heads, key_dim].
        v: [batch, length, heads, value_dim].

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    empty = q.numel() == 0 or v.numel() == 0
    return choose(backend, Backend, KERNELS, v, empty, lambda name: why_not(name, q, v))


def why_not(backend: str, q: Tensor, v: Tensor) -> str | None:
    """What keeps a backend from the inputs; None if nothing does. Shapes as in choose_backend."""
    return refusal(backend, _kernels, "v", v, q, v)


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
