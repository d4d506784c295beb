"""The two products of an MLP that meet its squared ReLU, in one persistent Triton kernel.

    forward     a  = relu(x W^T)^2                     W is up, [H, D]
    backward    da = dy V^T, du = 2 sqrt(a) da         V is down transposed, [H, D]

Alone, the squared ReLU reads what a product wrote and writes as much, and its backward pass reads
two such tensors and writes one. Here the product's sums are in registers: forward writes once,
backward reads once and writes once. The positive part of u is sqrt(a), so u is never stored.

There is one program for each multiprocessor; it goes from tile to tile of the output, and loads
tiles by the tensor memory accelerator, which fills up with zeros beyond the borders. Neighbouring
programs have the same rows of x and other columns, so that x comes from memory once.

Shapes: R rows, D columns summed over, H hidden columns, in tiles of those sizes in the kernel.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor


@dataclass(frozen=True)
class Tile:
    R: int
    H: int
    D: int
    warps: int
    stages: int


FORWARD = Tile(R=128, H=256, D=64, warps=8, stages=3)
BACKWARD = Tile(R=128, H=128, D=64, warps=8, stages=4)
SHARED_BYTES = 227 * 1024
"""What is in flight of the inputs and the tile of the output are in shared memory."""


@triton.jit(do_not_specialize=("rows",))
def forward_kernel(
    x, w, a, rows, COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, D: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (COLUMNS + H - 1) // H
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, R) * across, PROGRAMS, flatten=True):
        row, column = tile // across * R, tile % across * H
        u_RH = tl.zeros([R, H], tl.float32)
        for d in range(0, SUMMED, D):
            u_RH = tl.dot(x.load([row, d]), w.load([column, d]).T, u_RH)
        u_RH = tl.maximum(u_RH, 0.0)
        a.store([row, column], (u_RH * u_RH).to(a.dtype))


@triton.jit(do_not_specialize=("rows",))
def backward_kernel(
    dy, v, a, du, rows, COLUMNS: tl.constexpr, SUMMED: tl.constexpr,
    R: tl.constexpr, H: tl.constexpr, D: tl.constexpr, PROGRAMS: tl.constexpr,
):  # fmt: skip
    across: tl.constexpr = (COLUMNS + H - 1) // H
    for tile in tl.range(tl.program_id(0), tl.cdiv(rows, R) * across, PROGRAMS, flatten=True):
        row, column = tile // across * R, tile % across * H
        da_RH = tl.zeros([R, H], tl.float32)
        for d in range(0, SUMMED, D):
            da_RH = tl.dot(dy.load([row, d]), v.load([column, d]).T, da_RH)
        u_RH = tl.sqrt(a.load([row, column]).to(tl.float32))
        du.store([row, column], (2.0 * u_RH * da_RH).to(du.dtype))


def takes(x: Tensor, up: Tensor) -> bool:
    """Whether the kernels can have x [..., D] and up [H, D]: 16 bits, rows of whole 16 bytes."""
    if x.is_cuda:
        gpu = torch.cuda.get_device_properties(x.device)
        if gpu.major < 9 or gpu.shared_memory_per_block_optin < SHARED_BYTES:
            return False
    return x.dtype in (torch.bfloat16, torch.float16) and x.shape[-1] % 8 == up.shape[0] % 8 == 0


def hidden(x_RD: Tensor, up_HD: Tensor, tile: Tile = FORWARD) -> Tensor:
    """relu(x up^T)^2, [R, H]."""
    a_RH = x_RD.new_empty(len(x_RD), len(up_HD))
    _launch(forward_kernel, tile, x_RD, up_HD, a_RH)
    return a_RH


def hidden_backward(dy_RD: Tensor, down_DH: Tensor, a_RH: Tensor, tile: Tile = BACKWARD) -> Tensor:
    """The gradient of x up^T, [R, H], where dy is that of hidden(x, up) down^T."""
    du_RH = torch.empty_like(a_RH)
    _launch(backward_kernel, tile, dy_RD, down_DH.T, a_RH, du_RH)
    return du_RH


def _launch(kernel, tile: Tile, x_RD: Tensor, w_HD: Tensor, *hidden: Tensor) -> None:
    x_RD, w_HD = x_RD.contiguous(), w_HD.contiguous()
    (rows, summed), columns = x_RD.shape, len(w_HD)
    blocks = ([tile.R, tile.D], [tile.H, tile.D], *[[tile.R, tile.H]] * len(hidden))
    descriptors = (
        TensorDescriptor.from_tensor(tensor, block)
        for tensor, block in zip((x_RD, w_HD, *hidden), blocks, strict=True)
    )
    programs = 4
    if x_RD.is_cuda:
        programs = torch.cuda.get_device_properties(x_RD.device).multi_processor_count
    with torch.cuda.device_of(x_RD):
        kernel[(programs,)](
            *descriptors, rows, COLUMNS=columns, SUMMED=summed, R=tile.R, H=tile.H, D=tile.D,
            PROGRAMS=programs, num_warps=tile.warps, num_stages=tile.stages,
        )  # fmt: skip
