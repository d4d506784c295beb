"""Triton kernels of norm, rotation and gain, forward and backward: all heads of a few positions a
program.

Each pass reads its inputs once and writes its outputs once. With r the reciprocal of the root mean
square of a head, n = r x, and dy turned back by the angles,

    dgain = sum(dy n)        dx = r gain (dy - n mean(dy n))

Each program leaves its sums for the gains, and torch adds these up: the same inputs give the same
bits.

Shapes: R rows, which are positions of all sequences, H heads, W pairs of a head; the latter two
padded to powers of two.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 4096  # of a program: 32 for each thread
WARPS = 4


@triton.jit(do_not_specialize=("rows", "length"))
def rotate_kernel(
    x, cos, sin, gain, y, rows, length, eps,
    heads: tl.constexpr, pairs: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HAS_GAIN: tl.constexpr,
):  # fmt: skip
    at, inside, angle, has_angle = place(rows, length, heads, pairs, R, H, W)
    a_RHW, b_RHW, r_RH1 = load_normalised(x, at, inside, pairs, eps)
    cos_R1W, sin_R1W = load_angles(cos, sin, angle, has_angle)
    if HAS_GAIN:
        r_RH1 *= load_gain(gain, heads, H)
    a_RHW, b_RHW = a_RHW * r_RH1, b_RHW * r_RH1
    first = a_RHW * cos_R1W + b_RHW * sin_R1W
    second = b_RHW * cos_R1W - a_RHW * sin_R1W
    tl.store(y + at, first.to(y.dtype.element_ty), mask=inside)
    tl.store(y + at + pairs, second.to(y.dtype.element_ty), mask=inside)


@triton.jit(do_not_specialize=("rows", "length"))
def rotate_backward_kernel(
    grad_y, x, cos, sin, gain, grad_x, grad_gain, rows, length, eps,
    heads: tl.constexpr, pairs: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, W: tl.constexpr, HAS_GAIN: tl.constexpr,
):  # fmt: skip
    at, inside, angle, has_angle = place(rows, length, heads, pairs, R, H, W)
    a_RHW, b_RHW, r_RH1 = load_normalised(x, at, inside, pairs, eps)
    a_RHW, b_RHW = a_RHW * r_RH1, b_RHW * r_RH1
    cos_R1W, sin_R1W = load_angles(cos, sin, angle, has_angle)
    first = tl.load(grad_y + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(grad_y + at + pairs, mask=inside, other=0.0).to(tl.float32)
    da_RHW = first * cos_R1W - second * sin_R1W
    db_RHW = second * cos_R1W + first * sin_R1W
    dot_RH = tl.sum(da_RHW * a_RHW + db_RHW * b_RHW, axis=2)
    if HAS_GAIN:
        head = tl.arange(0, H)
        to = grad_gain + tl.program_id(0) * heads + head
        tl.store(to, tl.sum(dot_RH, axis=0), mask=head < heads)
        r_RH1 *= load_gain(gain, heads, H)
    mean_RH1 = (dot_RH / (2 * pairs))[:, :, None]
    da_RHW, db_RHW = r_RH1 * (da_RHW - a_RHW * mean_RH1), r_RH1 * (db_RHW - b_RHW * mean_RH1)
    tl.store(grad_x + at, da_RHW.to(grad_x.dtype.element_ty), mask=inside)
    tl.store(grad_x + at + pairs, db_RHW.to(grad_x.dtype.element_ty), mask=inside)


@triton.jit
def place(
    rows, length, heads: tl.constexpr, pairs: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
):  # fmt: skip
    """Where the first numbers of a program's pairs are, in x and of the angles, and which of them
    are there."""
    row, head, pair = tl.program_id(0) * R + tl.arange(0, R), tl.arange(0, H), tl.arange(0, W)
    of_head = row.to(tl.int64)[:, None] * heads + head[None, :]
    at = of_head[:, :, None] * (2 * pairs) + pair[None, None, :]
    there = (row < rows)[:, None] & (head < heads)[None, :]
    inside = there[:, :, None] & (pair < pairs)[None, None, :]
    angle = (row % length)[:, None] * pairs + pair[None, :]
    return at, inside, angle, (row < rows)[:, None] & (pair < pairs)[None, :]


@triton.jit
def load_normalised(x, at, inside, pairs: tl.constexpr, eps):
    """Both numbers of the pairs, and what they are to be multiplied with."""
    a_RHW = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    b_RHW = tl.load(x + at + pairs, mask=inside, other=0.0).to(tl.float32)
    square_RH = tl.sum(a_RHW * a_RHW + b_RHW * b_RHW, axis=2)
    return a_RHW, b_RHW, tl.rsqrt(square_RH / (2 * pairs) + eps)[:, :, None]


@triton.jit
def load_angles(cos, sin, angle, there):
    cos_RW = tl.load(cos + angle, mask=there, other=0.0).to(tl.float32)
    sin_RW = tl.load(sin + angle, mask=there, other=0.0).to(tl.float32)
    return cos_RW[:, None, :], sin_RW[:, None, :]


@triton.jit
def load_gain(gain, heads: tl.constexpr, H: tl.constexpr):
    head = tl.arange(0, H)
    return tl.load(gain + head, mask=head < heads, other=0.0).to(tl.float32)[None, :, None]


def forward(x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, eps: float) -> Tensor:
    """y, in the dtype and shape of x; no dimension is empty."""
    launch = _Launch(x, cos, sin, gain, eps)
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    launch(rotate_kernel, y)
    return y


def backward(
    grad_y: Tensor, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Gradients of x and of the gain, empty where there is none."""
    launch = _Launch(x, cos, sin, gain, eps)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    parts = torch.empty((launch.programs, x.shape[2]), dtype=torch.float32, device=x.device)
    launch(rotate_backward_kernel, grad_x, parts, before=(grad_y.contiguous(),))
    return grad_x, x.new_empty(0) if gain is None else parts.sum(0).to(gain.dtype)


class _Launch:
    """The inputs of both passes as the kernels take them."""

    def __init__(
        self, x: Tensor, cos: Tensor, sin: Tensor, gain: Tensor | None, eps: float
    ) -> None:
        batch, length, heads, head_dim = x.shape
        sizes = triton.next_power_of_2(heads), triton.next_power_of_2(head_dim // 2)
        at_once = max(1, NUMBERS // (2 * sizes[0] * sizes[1]))
        x, cos, sin = (v.contiguous() for v in (x, cos, sin))
        self.inputs = x, cos, sin, x if gain is None else gain.contiguous()
        self.sizes = batch * length, length, eps
        self.programs = triton.cdiv(batch * length, at_once)
        self.constants: dict[str, Any] = {
            "heads": heads, "pairs": head_dim // 2, "R": at_once, "H": sizes[0], "W": sizes[1],
            "HAS_GAIN": gain is not None, "num_warps": WARPS,
        }  # fmt: skip

    def __call__(self, kernel: Any, *outputs: Tensor, before: tuple[Tensor, ...] = ()) -> None:
        with torch.cuda.device_of(self.inputs[0]):
            kernel[(self.programs,)](*before, *self.inputs, *outputs, *self.sizes, **self.constants)
