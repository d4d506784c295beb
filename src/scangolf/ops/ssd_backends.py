"""Which backend runs an SSD scan: the one that was named, or the fastest that can.

A backend has `forward`, `backward` and `saved` as in ops/ssd_chunked.py. Modules of kernels have
`why_not`, too; they are imported where they are asked for, not before.
"""

from importlib import import_module
from types import ModuleType
from typing import Literal

from torch import Tensor

from scangolf.ops import ssd_chunked
from scangolf.ops.backends import choose, refusal

Backend = Literal["auto", "cuda", "triton", "reference"]
KERNELS = ("cuda", "triton")  # the faster first


def choose_backend(backend: str, x: Tensor, A: Tensor, B: Tensor) -> str:
    """The backend that runs: "cuda", "triton" or "reference". See ops/backends.py.

    Args:
        backend: any of the names of `Backend`.
        x: [batch, length, heads, head_dim].
        A: [heads].
        B: [batch, length, groups, state].

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    empty = x.numel() == 0 or B.numel() == 0
    return choose(backend, Backend, KERNELS, x, empty, lambda name: why_not(name, x, A, B))


def why_not(backend: str, x: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps a backend from the inputs; None if nothing does. Shapes as in choose_backend."""
    return refusal(backend, _kernels, "x", x, x, A, B)


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
