"""The SSD scan in CUDA, for NVIDIA GPUs from Ampere on: the backend "cuda".

The kernels stand in ssd_cuda*.cu: one forward, one backward. This module lays the inputs out for
them and adds up what they leave in parts. Nothing is added atomically: the same inputs give the
same bits.

Products are of numbers in x's dtype, of 16 bits, and sums are float32. A chunk has 64 steps,
whatever was asked for. A block keeps the state of one head, or of a part of it where the state is
large or the heads are few.

Shapes: B batch, L length, H heads, P head size, G groups of heads, N state, K chunks.
"""

import ctypes
import math
from functools import cache
from typing import Any

import torch
from torch import Tensor

from scangolf.ops import nvrtc
from scangolf.ops.documents import documents

DTYPES = {torch.bfloat16: 1, torch.float16: 2}
CHUNK, WARPS = 64, 4
STATES = (16, 32, 64, 128, 256)
LARGEST_BLOCK = 8192  # numbers of a block's state: they live in registers
MOST_BLOCKS = {"forward": 3, "backward": 2}  # that share a multiprocessor: bounds the registers


def why_not(x: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps these kernels from the inputs; None if nothing does."""
    p, n = x.shape[3], B.shape[3]
    if not x.is_cuda or torch.version.cuda is None:
        return "they need an NVIDIA GPU"
    if torch.cuda.get_device_capability(x.device) < (8, 0):
        return "they need compute capability 8.0"
    if not nvrtc.available():
        return "NVRTC was not found"
    if x.dtype not in DTYPES:
        return f"they take bfloat16 and float16, not {str(x.dtype).removeprefix('torch.')}"
    if n not in STATES:
        return f"they take states of {', '.join(map(str, STATES))}, not {n}"
    if not _sizes(p, n):
        return f"they take head sizes of 16 to 256 that a state of {n} fits, not {p}"
    if not _sizes(p, n, _gpu(x.device).shared_memory_per_block_optin):
        least = shared_memory("backward", _sizes(p, n)[-1], n)
        return f"a state of {n} needs {least:,} bytes of shared memory for a block"
    return None


def part_size(x: Tensor, B: Tensor) -> int:
    """Channels of a head that share a block: the most that fit and leave no multiprocessor idle."""
    (batch, _, heads, p), gpu = x.shape, _gpu(x.device)
    sizes = _sizes(p, B.shape[3], gpu.shared_memory_per_block_optin)
    enough = (s for s in sizes if batch * heads * (p // s) >= gpu.multi_processor_count)
    return next(enough, sizes[-1])


def shared_memory(name: str, p: int, n: int) -> int:
    """Bytes of a block, as the kernels' structures `Shared` divide them up."""
    chunk = CHUNK
    steps = 4 * (6 * chunk + chunk + 4)
    if name == "forward":
        numbers = 2 * chunk * (p + 2 * n) + n * p + (chunk * p if p > n else 8)
        return 2 * numbers + 2 * steps
    numbers = 2 * (chunk * (2 * p + 2 * n) + n * p) + n * p + chunk**2
    parts = 4 * ((3 + WARPS) * chunk + WARPS)
    return 2 * (numbers + (chunk * n if n > p else 8)) + 2 * steps + 2 * parts


def saved(x: Tensor, A: Tensor, B: Tensor, chunk_size: int) -> Tensor:
    """The states that `forward` saves for `backward`, without numbers: [B, K, H, N P], a part of a
    head after the other."""
    batch, length, heads, p = x.shape
    return x.new_empty(batch, -(-length // CHUNK), heads, B.shape[3] * p)


def forward(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, L, H, P] in x's dtype, the final state [B, H, P, N] in float32, the saved states."""
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, seq_idx)
    y, final = scan.rows(), scan.state()
    states = saved(x, A, B, chunk_size)
    initial = None if initial_state is None else initial_state.float().contiguous()
    scan.launch("forward", y=y, final=final, states=states, initial=initial)
    return y, final, states


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    states: Tensor,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    dt_bias: Tensor | None,
    dt_softplus: bool,
    chunk_size: int,
    seq_idx: Tensor | None,
) -> tuple[Tensor, ...]:
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_state; empty where absent."""
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, seq_idx)
    dy = _dense(grad_y.to(x.dtype))
    dx, grad_initial = scan.rows(), scan.state()
    batch, length, heads, _ = x.shape
    per_step = (batch, length, heads, scan.parts)
    dB, dC = (scan.empty(*per_step, B.shape[3], dtype=x.dtype) for _ in "BC")
    ddt = scan.empty(*per_step)
    dA, dskip, dbias = (scan.empty(batch, heads, scan.parts) for _ in range(3))
    scan.launch(
        "backward",
        grad_y=dy, dy_batch=dy.stride(0), dy_row=dy.stride(1), dy_head=dy.stride(2),
        grad_final=None if grad_final is None else grad_final.float().contiguous(),
        states=states, dx=dx, dB=dB, dC=dC, ddt=ddt, dA=dA, dskip=dskip, dbias=dbias,
        grad_initial=grad_initial,
    )  # fmt: skip
    return (
        dx,
        ddt.sum(3).to(dt.dtype) if scan.parts > 1 else ddt.squeeze(3).to(dt.dtype, copy=True),
        dA.sum((0, 2)).to(A.dtype),
        _of_groups(dB, B),
        _of_groups(dC, C),
        x.new_empty(0) if D is None else dskip.sum((0, 2)).to(D.dtype),
        x.new_empty(0) if dt_bias is None else dbias.sum((0, 2)).to(dt_bias.dtype),
        grad_initial,
    )


def _of_groups(parts: Tensor, like: Tensor) -> Tensor:
    """The sums over a group's heads and their parts, [B, L, G, N]."""
    batch, length, groups, n = like.shape
    return parts.view(batch, length, groups, -1, n).sum(3, dtype=torch.float32).to(like.dtype)


class _Scan:
    """The inputs of one scan as the kernels take them."""

    def __init__(self, x, dt, A, B, C, D, dt_bias, dt_softplus: bool, seq_idx) -> None:
        _, length, heads, p = self.shape = x.shape
        self.n, self.size, self.device = B.shape[3], part_size(x, B), x.device
        self.parts = p // self.size
        x, B, C = (_dense(v.to(x.dtype)) for v in (x, B, C))
        dt = dt if dt.dtype == x.dtype else dt.float()
        dt = dt if dt.stride(-1) == 1 else dt.contiguous()
        self.dtype = x.dtype
        self.known: dict[str, Tensor | int | None] = {
            "x": x, "x_batch": x.stride(0), "x_row": x.stride(1), "x_head": x.stride(2),
            "dt": dt, "dt_batch": dt.stride(0), "dt_row": dt.stride(1),
            "B": B, "B_batch": B.stride(0), "B_row": B.stride(1), "B_group": B.stride(2),
            "C": C, "C_batch": C.stride(0), "C_row": C.stride(1), "C_group": C.stride(2),
            "A": A.float().contiguous(),
            "documents": None if seq_idx is None else documents(seq_idx),
            "skip": None if D is None else D.float().contiguous(),
            "bias": None if dt_bias is None else dt_bias.float().contiguous(),
            "length": length, "heads": heads, "per_group": heads // B.shape[2],
            "parts": self.parts, "chunks": -(-length // CHUNK),
        }  # fmt: skip
        self.macros = {
            "IO": DTYPES[x.dtype], "DT": int(dt.dtype == x.dtype), "N": self.n, "P": self.size,
            "HAS_BIAS": int(dt_bias is not None), "HAS_SKIP": int(D is not None),
            "HAS_SEQ": int(seq_idx is not None), "SOFTPLUS": int(dt_softplus),
        }  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def rows(self) -> Tensor:
        return self.empty(*self.shape, dtype=self.dtype)

    def state(self) -> Tensor:
        batch, _, heads, p = self.shape
        return self.empty(batch, heads, p, self.n)

    def launch(self, name: str, **given: Tensor | int | None) -> None:
        memory = shared_memory(name, self.size, self.n)
        gpu = _gpu(self.device)
        blocks = min(gpu.shared_memory_per_multiprocessor // (memory + 1024), MOST_BLOCKS[name])
        sources = "lanes.cu", "ssd_cuda.cu", f"ssd_cuda_{name}.cu"
        macros = self.macros | {"BLOCKS": max(blocks, 1), "SHARED": memory}
        arguments = _Arguments(
            **{
                k: v.data_ptr() if isinstance(v, Tensor) else v or 0
                for k, v in (self.known | given).items()
            }
        )
        with torch.cuda.device(self.device):
            kernel = nvrtc.kernel(sources, name, macros, memory)
            count = self.shape[0] * self.shape[2] * self.parts
            kernel.launch((count, 1), 32 * WARPS, arguments)


_POINTERS = (
    "x B C grad_y dt A skip bias initial grad_final documents y states final dx dB dC ddt dA dskip"
    " dbias grad_initial"
)
_STRIDES = "x_batch dt_batch B_batch C_batch dy_batch"
_SIZES = (
    "x_row x_head dt_row B_row B_group C_row C_group dy_row dy_head"
    " length heads per_group parts chunks"
)


class _Arguments(ctypes.Structure):
    """The kernels' structure of this name, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
        *((name, ctypes.c_int32) for name in _SIZES.split()),
    ]


def _sizes(p: int, n: int, room: float = math.inf) -> list[int]:
    """Channels that a block can take of heads of size p, the most first.

    Its four warps divide the state [n, size] among them in blocks of 16 x 16; `room` is the shared
    memory, in bytes, that a block can have.
    """
    least = 16 * WARPS // min(n // 16, WARPS)
    sizes = (s for s in (64, 32, 16) if s >= least and p % s == 0 and s * n <= LARGEST_BLOCK)
    return [s for s in sizes if shared_memory("backward", s, n) <= room]


def _dense(x: Tensor) -> Tensor:
    """Consecutive in the last dimension, all else on 16-byte boundaries: a copy if x is not so."""
    each = 16 // x.element_size()
    fits = x.stride(-1) == 1 and not any(stride % each for stride in x.stride()[:-1])
    fits = fits and x.data_ptr() % 16 == 0 and max(x.stride()[1:]) < 2**31
    return x if fits else x.clone(memory_format=torch.contiguous_format)


@cache
def _gpu(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)
