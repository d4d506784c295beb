"""What the operators refuse, in one line: the argument, what it is, what it must be."""

from typing import Any, get_args

import torch
from torch import Tensor


def check_backend(backend: str, backends: Any) -> None:
    """Raises ValueError unless `backend` is one of the names in the Literal `backends`."""
    if backend not in get_args(backends):
        *names, last = map(repr, get_args(backends))
        raise ValueError(f"backend is {backend!r}: expected {', '.join(names)} or {last}")


def check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx) -> None:
    _rank("u", u, ("batch", "length", "channels"))
    _rank("A", A, ("channels", "state"))
    (batch, length, channels), n = u.shape, A.shape[1]
    if n == 0:
        raise ValueError("A has no states: expected one at least")
    weights = (batch, length, n)
    if B.dim() == 4:
        weights = (batch, length, _groups(B.shape[2], channels, "channels of u"), n)
    _check_all("u", u, {
        "delta": (delta, (batch, length, channels)),
        "A": (A, (channels, n)),
        "B": (B, weights),
        "C": (C, weights),
        "D": (D, (channels,)),
        "z": (z, (batch, length, channels)),
        "delta_bias": (delta_bias, (channels,)),
        "initial_state": (initial_state, (batch, channels, n)),
    })  # fmt: skip
    _documents(seq_idx, u)


def check_step(state, u, delta, A, B, C, D, z, delta_bias) -> None:
    _rank("u", u, ("batch", "channels"))
    _rank("A", A, ("channels", "state"))
    (batch, channels), n = u.shape, A.shape[1]
    weights = (batch, n)
    if B.dim() == 3:
        weights = (batch, _groups(B.shape[1], channels, "channels of u"), n)
    _check_all("u", u, {
        "state": (state, (batch, channels, n)),
        "delta": (delta, (batch, channels)),
        "A": (A, (channels, n)),
        "B": (B, weights),
        "C": (C, weights),
        "D": (D, (channels,)),
        "z": (z, (batch, channels)),
        "delta_bias": (delta_bias, (channels,)),
    })  # fmt: skip


def check_delta_rule(q, k, v, g, beta, chunk_size, initial_state, seq_idx) -> None:
    _rank("q", q, ("batch", "length", "heads", "key_dim"))
    _rank("v", v, ("batch", "length", "heads", "value_dim"))
    (batch, length, heads, key_dim), value_dim = q.shape, v.shape[3]
    _check_all("q", q, {
        "k": (k, (batch, length, heads, key_dim)),
        "v": (v, (batch, length, heads, value_dim)),
        "g": (g, (batch, length, heads)),
        "beta": (beta, (batch, length, heads)),
        "initial_state": (initial_state, (batch, heads, key_dim, value_dim)),
    })  # fmt: skip
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}: expected one step at least")
    _documents(seq_idx, q)


def check_delta_step(state, q, k, v, g, beta) -> None:
    _rank("q", q, ("batch", "heads", "key_dim"))
    _rank("v", v, ("batch", "heads", "value_dim"))
    (batch, heads, key_dim), value_dim = q.shape, v.shape[2]
    _check_all("q", q, {
        "state": (state, (batch, heads, key_dim, value_dim)),
        "k": (k, (batch, heads, key_dim)),
        "v": (v, (batch, heads, value_dim)),
        "g": (g, (batch, heads)),
        "beta": (beta, (batch, heads)),
    })  # fmt: skip


def check_ssd(x, dt, A, B, C, D, z, dt_bias, chunk_size, initial_state, seq_idx) -> None:
    _rank("x", x, ("batch", "length", "heads", "head_dim"))
    batch, length, heads, head_dim = x.shape
    if chunk_size < 1:
        raise ValueError(f"chunk_size is {chunk_size}: expected 1 or more")
    if B.dim() == 4:
        weights = (batch, length, _groups(B.shape[2], heads, "heads of x"), B.shape[3])
    else:
        _rank("B", B, ("batch", "length", "state"))
        weights = (batch, length, B.shape[2])
    _check_all("x", x, {
        "dt": (dt, (batch, length, heads)),
        "A": (A, (heads,)),
        "B": (B, weights),
        "C": (C, weights),
        "D": (D, (heads,)),
        "z": (z, (batch, length, heads, head_dim)),
        "dt_bias": (dt_bias, (heads,)),
        "initial_state": (initial_state, (batch, heads, head_dim, weights[-1])),
    })  # fmt: skip
    _documents(seq_idx, x)


def check_ssd_step(state, x, dt, A, B, C, D, z, dt_bias) -> None:
    _rank("x", x, ("batch", "heads", "head_dim"))
    batch, heads, head_dim = x.shape
    if B.dim() == 3:
        weights = (batch, _groups(B.shape[1], heads, "heads of x"), B.shape[2])
    else:
        _rank("B", B, ("batch", "state"))
        weights = (batch, B.shape[1])
    _check_all("x", x, {
        "state": (state, (batch, heads, head_dim, weights[-1])),
        "dt": (dt, (batch, heads)),
        "A": (A, (heads,)),
        "B": (B, weights),
        "C": (C, weights),
        "D": (D, (heads,)),
        "z": (z, (batch, heads, head_dim)),
        "dt_bias": (dt_bias, (heads,)),
    })  # fmt: skip


def check_conv(x, weight, bias, seq_idx, initial) -> None:
    _rank("x", x, ("batch", "length", "channels"))
    _rank("weight", weight, ("channels", "taps"))
    (batch, _, channels), taps = x.shape, weight.shape[1]
    if taps == 0:
        raise ValueError("weight has no taps: expected one at least")
    _check_all("x", x, {
        "weight": (weight, (channels, taps)),
        "bias": (bias, (channels,)),
        "initial": (initial, (batch, taps - 1, channels)),
    })  # fmt: skip
    _documents(seq_idx, x)


def _check_all(
    first: str, x: Tensor, expected: dict[str, tuple[Tensor | None, tuple[int, ...]]]
) -> None:
    """The others must fit the first argument, x."""
    _floating(first, x, first, x)
    for name, (tensor, shape) in expected.items():
        if tensor is not None:
            _shape(name, tensor, shape)
            _floating(name, tensor, first, x)


def _documents(seq_idx: Tensor | None, x: Tensor) -> None:
    if seq_idx is not None:
        _shape("seq_idx", seq_idx, tuple(x.shape[:2]))
        if seq_idx.dtype not in (torch.int32, torch.int64):
            raise ValueError(f"seq_idx has dtype {seq_idx.dtype}: expected torch.int32")
        if seq_idx.device != x.device:
            raise ValueError(f"seq_idx is on {seq_idx.device}: expected {x.device}")


def _rank(name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
    if tensor.dim() != len(axes):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected [{', '.join(axes)}]")


def _groups(groups: int, count: int, served: str) -> int:
    if groups == 0 or count % groups:
        raise ValueError(f"B has {groups} groups: expected a divisor of the {count} {served}")
    return groups


def _shape(name: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected {shape}")


def _floating(name: str, tensor: Tensor, first: str, x: Tensor) -> None:
    if not tensor.dtype.is_floating_point:
        raise ValueError(f"{name} has dtype {tensor.dtype}: expected a floating dtype")
    if (tensor.dtype == torch.float64) != (x.dtype == torch.float64):
        raise ValueError(
            f"{name} has dtype {tensor.dtype}, {first} has {x.dtype}: "
            "float64 goes with float64 only"
        )
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device}: expected {x.device}, where {first} is")
