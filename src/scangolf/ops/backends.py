"""Which backend of an operator runs: the one that was named, or the fastest that can.

What differs between operators (names, inputs, modules) stands in ops/s6_backends.py,
ops/ssd_backends.py and ops/gdn_backends.py.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from scangolf.ops.checks import check_backend


def choose(
    backend: str,
    backends: Any,
    kernels: tuple[str, ...],
    x: Tensor,
    empty: bool,
    why_not: Callable[[str], str | None],
) -> str:
    """The name of the backend that runs.

    The same inputs give the same answer, so that the backward pass finds what the forward pass
    took. Empty inputs take the reference, whatever was asked for, and so do tensors on a GPU that
    is not there: fake ones, of which only shapes are asked.

    Args:
        backend: what was asked for.
        backends: the Literal of all names.
        kernels: those of modules of kernels, the fastest first; "auto" takes them on GPUs only.
        x: the input that tells the device.
        empty: whether there is nothing to compute.
        why_not: what keeps the backend of a name from the inputs, None if nothing does.

    Raises:
        ValueError: no such backend, or the one that was named cannot take the inputs.
    """
    check_backend(backend, backends)
    if backend == "reference" or empty:
        return "reference"
    if x.is_cuda and not torch.cuda.is_available():
        return "reference"
    if backend == "auto":
        able = (name for name in kernels if x.is_cuda and why_not(name) is None)
        return next(able, "reference")
    reason = why_not(backend)
    if reason is not None:
        raise ValueError(f"backend is {backend!r}, whose kernels cannot run: {reason}")
    return backend


def refusal(
    backend: str, load: Callable[[str], Any], name: str, x: Tensor, *inputs: Tensor
) -> str | None:
    """What keeps a backend from the inputs, one of which is x, called `name`; None if nothing does.

    `load` gives the module of a backend's kernels, which is imported here, not before; it is asked
    its `why_not(*inputs)`.
    """
    if backend == "reference":
        return None
    if x.dtype == torch.float64:
        return f"they compute in float32, {name} is float64"
    try:
        kernels = load(backend)
    except ImportError as error:
        return f"they need {error.name}, which is not installed"
    return kernels.why_not(*inputs)
