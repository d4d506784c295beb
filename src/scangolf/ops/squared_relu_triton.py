"""The two products of an MLP that meet its squared ReLU, each in one Triton kernel.

    forward     a  = relu(x W^T)^2                     W is up, [H, D]
    backward    da = dy V^T, du = 2 sqrt(a) da         V is down transposed, [H, D]

Alone, the squared ReLU reads what a product wrote and writes as much, and its backward pass reads
two such tensors and writes one. Here the product's sums are in registers: forward writes once,
backward reads once and writes once. The positive part of u is sqrt(a), so u is never stored.

A program makes one tile of the output; it loads tiles by the tensor memory accelerator, which
fills up with zeros beyond the borders. A multiprocessor has several programs, of which one
multiplies while another squares. Neighbouring programs have the same rows of x and other columns,
so that x comes from memory once. docs/LOG.md has what programs that go from tile to tile take.

Shapes: R rows, D columns summed over, H hidden columns, in tiles of those sizes in the kernel.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

TILE = {"R": 128, "H": 128, "D": 64}
LAUNCH = {"num_warps": 4, "num_stages": 3}  # with two the backward kernel takes a fifth longer


@triton.jit
def squared_relu_product(
    x, w, a,
    COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row, column = place(COLUMNS, R, H)
    u_RH = product(x, w, row, column, SUMMED, R, H, D)
    u_RH = tl.maximum(u_RH, 0.0)
    a.store([row, column], (u_RH * u_RH).to(a.dtype))


@triton.jit
def squared_relu_product_backward(
    dy, v, a, du,
    COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, D: tl.constexpr,
):  # fmt: skip
    row, column = place(COLUMNS, R, H)
    da_RH = product(dy, v, row, column, SUMMED, R, H, D)
    u_RH = tl.sqrt(a.load([row, column]).to(tl.float32))
    du.store([row, column], (2.0 * u_RH * da_RH).to(du.dtype))


@triton.jit
def place(COLUMNS: tl.constexpr, R: tl.constexpr, H: tl.constexpr):
    """Where a program's tile of the output begins."""
    across: tl.constexpr = (COLUMNS + H - 1) // H
    return tl.program_id(0) // across * R, tl.program_id(0) % across * H


@triton.jit
def product(
    x, w, row, column, SUMMED: tl.constexpr, R: tl.constexpr, H: tl.constexpr, D: tl.constexpr
):
    """A tile of x w^T, in float32."""
    sum_RH = tl.zeros([R, H], tl.float32)
    for d in range(0, SUMMED, D):
        sum_RH = tl.dot(x.load([row, d]), w.load([column, d]).T, sum_RH)
    return sum_RH


def takes(x: Tensor, up: Tensor) -> bool:
    """Whether the kernels can have x [..., D] and up [H, D]: 16 bits, rows of whole 16 bytes.

    Of GPUs, those of compute capability 9: the kernels were measured on no other.
    """
    if x.is_cuda and torch.cuda.get_device_properties(x.device).major != 9:
        return False
    return x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] % 8 == up.shape[0] % 8 == 0


def hidden(x_RD: Tensor, up_HD: Tensor) -> Tensor:
    """relu(x up^T)^2, [R, H]."""
    a_RH = x_RD.new_empty(len(x_RD), len(up_HD))
    _launch(squared_relu_product, x_RD, up_HD, a_RH)
    return a_RH


def hidden_backward(dy_RD: Tensor, down_DH: Tensor, a_RH: Tensor) -> Tensor:
    """The gradient of x up^T, [R, H], where dy is that of hidden(x, up) down^T."""
    du_RH = torch.empty_like(a_RH)
    _launch(squared_relu_product_backward, dy_RD, down_DH.T, a_RH, du_RH)
    return du_RH


def _launch(kernel, x_RD: Tensor, w_HD: Tensor, *hidden: Tensor) -> None:
    x_RD, w_HD = x_RD.contiguous(), w_HD.contiguous()
    (rows, summed), columns = x_RD.shape, len(w_HD)
    R, H, D = TILE["R"], TILE["H"], TILE["D"]
    blocks = ([R, D], [H, D], *[[R, H]] * len(hidden))
    descriptors = (
        TensorDescriptor.from_tensor(tensor, block)
        for tensor, block in zip((x_RD, w_HD, *hidden), blocks, strict=True)
    )
    programs = triton.cdiv(rows, R) * triton.cdiv(columns, H)
    with torch.cuda.device_of(x_RD):
        kernel[(programs,)](*descriptors, COLUMNS=columns, SUMMED=summed, **TILE, **LAUNCH)
