"""What the operators refuse, in one line: the argument, what it is, what it must be."""

import torch
from torch import Tensor


def check_scan(u, delta, A, B, C, D, z, delta_bias, initial_state, seq_idx) -> None:
    _rank("u", u, ("batch", "length", "channels"))
    _rank("A", A, ("channels", "state"))
    (batch, length, channels), n = u.shape, A.shape[1]
    weights = (batch, length, n)
    if B.dim() == 4:
        weights = (batch, length, _groups(B.shape[2], channels), n)
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
        weights = (batch, _groups(B.shape[1], channels), n)
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


def _rank(name: str, tensor: Tensor, axes: tuple[str, ...]) -> None:
    if tensor.dim() != len(axes):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}: expected [{', '.join(axes)}]")


def _groups(groups: int, channels: int) -> int:
    if groups == 0 or channels % groups:
        raise ValueError(
            f"B has {groups} groups: expected a divisor of the {channels} channels of u"
        )
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
