"""Which backend runs a selective scan: the one that was named, or the fastest that can.

A backend has `forward`, `backward` and `saved_shape` as in ops/s6_chunked.py. Modules of kernels
have `why_not` and LARGEST_STATE, too; they are imported where they are asked for, not before.
"""

from functools import cache
from typing import Any, Literal

from torch import Tensor

from scangolf.ops import s6_chunked
from scangolf.ops.backends import choose, refusal
from scangolf.ops.s6_slices import Sliced

Backend = Literal["auto", "cuda", "triton", "reference"]
KERNELS = ("cuda", "triton")  # the faster first


def choose_backend(backend: str, u: Tensor, A: Tensor, B: Tensor) -> str:
    """The backend that runs: "cuda", "triton" or "reference". See ops/backends.py.

    Args:
        backend: any of the names of `Backend`.
        u: [batch, length, channels].
        A: [channels, state].
        B: [batch, length, groups, state].

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    empty = u.numel() == 0 or A.numel() == 0
    return choose(backend, Backend, KERNELS, u, empty, lambda name: why_not(name, u, A, B))


def why_not(backend: str, u: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps a backend from the inputs; None if nothing does. Shapes as in choose_backend."""
    return refusal(backend, _kernels, "u", u, u, A, B)


def implementation(backend: str, u: Tensor, A: Tensor, B: Tensor) -> Any:
    """The `forward`, `backward` and `saved_shape` that run; all else as in `choose_backend`."""
    chosen = choose_backend(backend, u, A, B)
    return s6_chunked if chosen == "reference" else _kernels(chosen)


def saved_shape(backend: str, u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    """Shape of what `forward` saves for `backward`, of tensors without data, too.

    Batch and length may be symbolic. Channels, groups and state become plain numbers for a GPU: a
    graph that is compiled with these as symbols is compiled again where they change.
    """
    if u.is_cuda:
        u = u.new_empty(*u.shape[:2], int(u.shape[2]))
        A = A.new_empty(*map(int, A.shape))
        B = B.new_empty(*B.shape[:2], *map(int, B.shape[2:]))
    return implementation(backend, u, A, B).saved_shape(u, A, B)


@cache
def _kernels(backend: str) -> Sliced:
    if backend == "cuda":
        from scangolf.ops import s6_cuda as kernels
    else:
        from scangolf.ops import s6_triton as kernels
    return Sliced(kernels)
