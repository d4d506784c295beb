"""The selective scan in CUDA, for NVIDIA GPUs from Ampere on: the backend "cuda".

The kernels stand in s6_cuda.cu, the mathematics in docs/scan.md. This module lays the inputs out
for them, chooses how a launch is cut, and adds up what they leave in parts. Nothing is added
atomically: the same inputs give the same bits.

Forward, the states of a channel are split over warps where there are few channels; backward, time
is cut into chunks, from states that the forward pass saves.

Shapes: B batch, L length, D channels, N state (padded: 4, 8 or 16), G groups of channels,
K chunks, M spans.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from scangolf.ops import nvrtc

SOURCE = Path(__file__).with_suffix(".cu")
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WARPS = 4
SPAN = 128  # steps over which the backward pass carries sums
LARGEST_STATE = 16


class Tuning(NamedTuple):
    """How the launches are cut."""

    split: int  # warps that share the states of a channel, forward
    chunks: int  # of a sequence, backward
    helpers: int = 4  # warps of a block that prepare and finish tiles, forward
    stages: int = 4  # tiles of rows in shared memory, forward
    forward: tuple[int, int, int] = (8, 8, 3)  # steps of a tile, unrolled, blocks that share an SM
    along: tuple[int, int, int] = (8, 2, 4)
    against: tuple[int, int, int] = (8, 2, 4)


def tuning(u: Tensor, A: Tensor, B: Tensor) -> Tuning:
    """As few cuts as fill the GPU."""
    (batch, length, channels), groups = u.shape, B.shape[2]
    multiprocessors = _multiprocessors(u.device)
    runs = batch * groups * triton.cdiv(channels // groups, 32)
    padded = _padded(A.shape[1])
    split = 1
    while split < min(WARPS, padded // 4) and runs * split < 6 * multiprocessors:
        split *= 2
    blocks = batch * groups * triton.cdiv(channels // groups, 32 * WARPS)
    chunks = min(max(4 * multiprocessors // blocks, 1), triton.cdiv(length, SPAN))
    if split == 1:
        return Tuning(1, chunks)
    if split == 2:
        return Tuning(2, chunks, 4, 4, (16, 8, 2))
    return Tuning(4, chunks, 4, 4, (64, 16, 1))


def why_not(u: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps these kernels from the inputs; None if nothing does."""
    channels, groups = u.shape[2], B.shape[2]
    if not u.is_cuda or torch.version.cuda is None:
        return "they need an NVIDIA GPU"
    if torch.cuda.get_device_capability(u.device) < (8, 0):
        return "they need compute capability 8.0"
    if not nvrtc.available():
        return "NVRTC was not found"
    if A.shape[1] > LARGEST_STATE:
        return f"they take states of {LARGEST_STATE} at most, not {A.shape[1]}"
    if channels % 8:
        return f"they take a multiple of 8 channels, not {channels}"
    if groups > 1 and channels // groups % 32:
        return f"they take a multiple of 32 channels a group, not {channels // groups}"
    return None


def saved_shape(u: Tensor, A: Tensor, B: Tensor, shapes: Tuning | None = None) -> tuple[int, ...]:
    """Shape of the states that `forward` saves for `backward`: [B, K, N, D]."""
    _, chunks = _cut(u.shape[1], (shapes or tuning(u, A, B)).chunks)
    return u.shape[0], chunks, _padded(A.shape[1]), u.shape[2]


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
    shapes: Tuning | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, L, D] in u's dtype, the final state [B, D, N], the saved states [B, K, N, D]."""
    shapes = shapes or tuning(u, A, B)
    scan = _Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, shapes)
    y = scan.rows()
    final = scan.empty(scan.batch, scan.channels, scan.n)
    states = scan.empty(*saved_shape(u, A, B, shapes))
    initial = None if initial_state is None else initial_state.float().contiguous()
    rows, runs = shapes.forward[0], WARPS // shapes.split
    numbers = 2 * rows * (2 * scan.padded + 4) + 2 * (2 * runs + WARPS) * rows * 32
    shared = 4 * numbers + shapes.stages * 3 * rows * runs * 32 * scan.dtype.itemsize
    macros = {"HELPERS": shapes.helpers, "STAGES": shapes.stages, "CHUNKED": 0}
    scan.launch(
        "forward", "FORWARD", shapes.split, False, shapes.forward, shared, macros,
        y=y, final=final, states=states, initial=initial,
    )  # fmt: skip
    return y.to(u.dtype), final, states


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    saved: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    seq_idx: Tensor | None,
    shapes: Tuning | None = None,
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where absent."""
    shapes = shapes or tuning(u, A, B)
    scan = _Scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, shapes)
    batch, length, channels, chunks, padded = (
        scan.batch, scan.length, scan.channels, scan.chunks, scan.padded,
    )  # fmt: skip
    spans = triton.cdiv(length, SPAN)
    dy = _rows(grad_y.to(scan.dtype))
    per_chunk = (batch, chunks, padded, channels)
    given = None if grad_final is None else grad_final.float().contiguous()
    P, dA = scan.rows(), scan.empty(*per_chunk)
    shared: dict = {
        "grad_y": dy, "dy_batch": dy.stride(0), "dy_row": dy.stride(1), "grad_final": given,
        "P": P, "dA": dA,
        "span_states": scan.empty(batch, spans, padded, channels),
        "span_steps": scan.empty(batch, spans, 2, channels),
    }  # fmt: skip
    if chunks > 1:
        for name in ("entries", "decays", "exits"):
            shared[name] = scan.empty(*per_chunk)

    dz = None if z is None else scan.rows()
    parts = scan.empty(batch, scan.groups, scan.group_blocks(1), length, padded)
    scan.launch(
        "along", "ALONG", 1, True, shapes.along, scan.shared_backward(4, shapes.along), {},
        states=saved, dz=dz, dC=parts, **shared,
    )  # fmt: skip
    dC = scan.add_blocks(parts, C.dtype)
    if chunks > 1:
        scan.carry(shapes.along, **shared)

    du, ddelta = scan.rows(), scan.rows()
    parts = scan.empty(batch, scan.groups, scan.group_blocks(1), length, padded)
    dskip, dbias = (scan.empty(batch * chunks, channels) for _ in range(2))
    grad_initial = scan.empty(batch, channels, scan.n)
    scan.launch(
        "against", "AGAINST", 1, True, shapes.against, scan.shared_backward(5, shapes.against), {},
        du=du, ddelta=ddelta, dB=parts, dskip=dskip, dbias=dbias, grad_initial=grad_initial,
        **shared,
    )  # fmt: skip
    dB = scan.add_blocks(parts, B.dtype)
    nothing = scan.empty(0)
    return (
        du.to(u.dtype),
        ddelta.to(delta.dtype),
        dA.sum((0, 1))[: scan.n].mT.to(A.dtype).contiguous(),
        dB,
        dC,
        nothing if D is None else dskip.sum(0).to(D.dtype),
        nothing if z is None or dz is None else dz.to(z.dtype),
        nothing if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
        grad_initial,
    )


class _Scan:
    """The inputs of one scan as the kernels take them."""

    def __init__(
        self, u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, seq_idx, shapes: Tuning
    ) -> None:
        (self.batch, self.length, self.channels), self.n = u.shape, A.shape[1]
        self.groups, self.padded, self.device = B.shape[2], _padded(A.shape[1]), u.device
        rows = [x for x in (u, delta, z) if x is not None]
        same = {x.dtype for x in (*rows, B, C)} == {u.dtype} and u.dtype in DTYPES
        self.dtype = u.dtype if same else torch.float32
        u, delta = _rows(u.to(self.dtype)), _rows(delta.to(self.dtype))
        z = None if z is None else _rows(z.to(self.dtype))
        B, C = (_last_dense(x.to(self.dtype)) for x in (B, C))
        chunk_length, self.chunks = _cut(self.length, shapes.chunks)
        self.tensors: dict[str, Tensor | None] = {
            "u": u, "delta": delta, "z": z, "B": B, "C": C,
            "A": A.float().contiguous(),
            "bias": None if delta_bias is None else delta_bias.float().contiguous(),
            "skip": None if D is None else D.float().contiguous(),
            "seq": None if seq_idx is None else seq_idx.to(torch.int32).contiguous(),
        }  # fmt: skip
        self.numbers = {
            "u_batch": u.stride(0), "u_row": u.stride(1),
            "delta_batch": delta.stride(0), "delta_row": delta.stride(1),
            "z_batch": 0 if z is None else z.stride(0), "z_row": 0 if z is None else z.stride(1),
            "B_batch": B.stride(0), "B_row": B.stride(1), "B_group": B.stride(2),
            "C_batch": C.stride(0), "C_row": C.stride(1), "C_group": C.stride(2),
            "length": self.length, "channels": self.channels,
            "per_group": self.channels // self.groups, "n": self.n,
            "chunks": self.chunks, "chunk_length": chunk_length,
        }  # fmt: skip
        self.macros = {
            "IO": DTYPES[self.dtype], "WARPS": WARPS, "SPAN": SPAN,
            "HAS_Z": int(z is not None), "HAS_BIAS": int(delta_bias is not None),
            "HAS_SKIP": int(D is not None), "HAS_SEQ": int(seq_idx is not None),
            "SOFTPLUS": int(delta_softplus),
        }  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def rows(self) -> Tensor:
        return self.empty(self.batch, self.length, self.channels, dtype=self.dtype)

    def group_blocks(self, split: int) -> int:
        return triton.cdiv(self.channels // self.groups, 32 * WARPS // split)

    def add_blocks(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """The sums over all channels of a group, [B, L, G, N]."""
        return parts.sum(2).transpose(1, 2)[..., : self.n].to(dtype).contiguous()

    def shared_backward(self, tensors: int, cut: tuple[int, int, int]) -> int:
        """Bytes of shared memory of a block: weights, sums over channels, rows; two tiles each."""
        rows = cut[0]
        numbers = rows * (2 * self.padded + 4) + rows * (WARPS * 8 * self.padded + 16)
        return 2 * (4 * numbers + WARPS * tensors * rows * 32 * self.dtype.itemsize)

    def arguments(self, split: int, given: dict) -> "_Arguments":
        group_blocks = self.group_blocks(split)
        known = self.tensors | self.numbers | given
        known |= {"blocks": self.groups * group_blocks, "group_blocks": group_blocks}
        return _Arguments(
            **{k: v.data_ptr() if isinstance(v, Tensor) else v or 0 for k, v in known.items()}
        )

    def launch(
        self, name: str, part: str, split: int, chunked: bool, cut: tuple[int, int, int],
        shared: int, macros: dict[str, int], **given: Tensor | int | None,
    ) -> None:  # fmt: skip
        kernel = self.kernel(name, part, split, cut, shared, macros)
        programs = self.batch * self.groups * self.group_blocks(split)
        with torch.cuda.device(self.device):
            kernel.launch(
                (programs * (self.chunks if chunked else 1), 1),
                32 * (WARPS + macros.get("HELPERS", 0)),
                self.arguments(split, given),
            )

    def carry(self, cut: tuple[int, int, int], **given: Tensor | int | None) -> None:
        kernel = self.kernel("carry", "ALONG", 1, cut, 0, {})
        with torch.cuda.device(self.device):
            grid = (triton.cdiv(self.padded * self.channels, 128), self.batch)
            kernel.launch(grid, 128, self.arguments(1, given))

    def kernel(
        self, name: str, part: str, split: int, cut: tuple[int, int, int], shared: int,
        macros: dict[str, int],
    ) -> nvrtc.Kernel:  # fmt: skip
        rows, unroll, blocks = cut
        defaults = {"HELPERS": 0, "STAGES": 0, "CHUNKED": int(self.chunks > 1)}
        macros = self.macros | defaults | macros | {
            part: 1, "SPLIT": split, "STATES": self.padded // split,
            "ROWS": rows, "UNROLL": unroll, "BLOCKS": blocks,
        }  # fmt: skip
        with torch.cuda.device(self.device):
            return nvrtc.kernel(SOURCE, name, macros, shared)


_POINTERS = (
    "u delta z grad_y B C A bias skip initial grad_final seq y dz du ddelta P final states dB dC dA"
    " span_states span_steps entries decays exits dskip dbias grad_initial"
)
_STRIDES = (
    "u_batch u_row delta_batch delta_row z_batch z_row dy_batch dy_row"
    " B_batch B_row B_group C_batch C_row C_group"
)
_SIZES = "length channels per_group n chunks chunk_length blocks group_blocks"


class _Arguments(ctypes.Structure):
    """The kernels' structure of this name, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
        *((name, ctypes.c_int32) for name in _SIZES.split()),
    ]


def _padded(n: int) -> int:
    return max(4, triton.next_power_of_2(n))


def _cut(length: int, chunks: int) -> tuple[int, int]:
    """Length of a chunk, a multiple of SPAN, and how many there are."""
    chunk_length = triton.cdiv(triton.cdiv(length, chunks), SPAN) * SPAN
    return chunk_length, triton.cdiv(length, chunk_length)


def _rows(x: Tensor) -> Tensor:
    """Rows of consecutive channels that start on 16-byte boundaries."""
    each = 16 // x.element_size()
    fits = x.stride(2) == 1 and x.stride(0) % each == 0 and x.stride(1) % each == 0
    return x if fits and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def _last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count
