"""The selective scan in CUDA, for NVIDIA GPUs from Ampere on: the backend "cuda".

The kernels stand in s6_cuda*.cu, the mathematics in docs/scan.md. This module lays the inputs out
for them, chooses how a launch is cut, and adds up what they leave in parts. Nothing is added
atomically: the same inputs give the same bits.

Where there are few channels, forward splits the state of a channel over warps; backward cuts time
into chunks, from states that forward saves.

Shapes: B batch, L length, D channels, N state (padded to 8 or 16), G groups of channels, K chunks.
"""

import ctypes
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops import nvrtc
from scangolf.ops.documents import documents

DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
WARPS = 4  # of a block; forward, as many again help them
SPAN = 256  # steps over which the backward pass carries sums
LARGEST_STATE = 16


class Cut(NamedTuple):
    """How one kernel is cut."""

    split: int  # warps that share the states of a channel, forward
    rows: int  # steps of a tile
    unroll: int  # steps that load together
    blocks: int  # that share a multiprocessor: bounds the registers of each


class Tuning(NamedTuple):
    forward: Cut
    along: Cut
    against: Cut
    chunks: int  # of a sequence, backward


def tuning(u: Tensor, A: Tensor, B: Tensor) -> Tuning:
    """As few cuts as fill the GPU; the numbers were measured on an H200 (docs/LOG.md)."""
    (batch, length, channels), groups = u.shape, B.shape[2]
    gpu = _gpu(u.device)
    padded = _padded(A.shape[1])
    runs = batch * groups * _ceil_div(channels // groups, 32)
    split = 1
    while split < padded // 4 and runs * split < 6 * gpu.multi_processor_count:
        split *= 2
    if split == 4:
        tall = gpu.shared_memory_per_block_optin > 220_000  # bytes
        forward = Cut(4, 64, 16, 1) if tall else Cut(4, 16, 8, 2)
    else:
        forward = Cut(1, 8, 8, 3) if split == 1 else Cut(2, 16, 8, 2)
    blocks = batch * groups * _ceil_div(channels // groups, 32 * WARPS)
    few = blocks < 3 * gpu.multi_processor_count
    chunks = _cut(length, _ceil_div(8 * gpu.multi_processor_count, blocks) if few else 1)[1]
    least = 16 // padded  # steps whose channel sums share a matrix product
    along = Cut(1, 8, max(2 if chunks == 1 else 1, least), 4)
    return Tuning(forward, along, Cut(1, 8, 4, 3), chunks)


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
    if channels // groups % 8:
        return f"they take a multiple of 8 channels a group, not {channels // groups}"
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
    scan.launch(
        "forward", shapes.forward, y=y, final=final, states=states, initial=initial,
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
    spans = _ceil_div(length, SPAN)
    dy = _dense(grad_y.to(scan.dtype))
    per_chunk = (batch, chunks, padded, channels)
    P = scan.rows()
    shared: dict[str, Tensor | int | None] = {
        "grad_y": dy, "dy_batch": dy.stride(0), "dy_row": dy.stride(1), "P": P,
        "grad_final": None if grad_final is None else grad_final.float().contiguous(),
        "dA": (dA := scan.empty(*per_chunk)),
        "span_states": scan.empty(batch, spans, padded, channels),
        "span_sums": scan.empty(batch, spans, 2, channels),
    }  # fmt: skip
    if chunks > 1:
        shared |= {name: scan.empty(*per_chunk) for name in ("entries", "decays", "exits")}

    dz = None if z is None else scan.rows()
    parts = scan.room_for_blocks(shapes.along)
    scan.launch("along", shapes.along, states=saved, dz=dz, dC=parts, **shared)
    dC = scan.add_blocks(parts, C.dtype)
    if chunks > 1:
        scan.carry(shapes.along, **shared)

    ddelta = scan.rows()
    parts = scan.room_for_blocks(shapes.against)
    dskip, dbias = (scan.empty(batch * chunks, channels) for _ in range(2))
    grad_initial = scan.empty(batch, channels, scan.n)
    scan.launch(
        "against", shapes.against,
        ddelta=ddelta, dB=parts, dskip=dskip, dbias=dbias, grad_initial=grad_initial, **shared,
    )  # fmt: skip
    dB = scan.add_blocks(parts, B.dtype)
    return (
        P.to(u.dtype),  # the kernel has left du there
        ddelta.to(delta.dtype),
        dA.sum((0, 1))[: scan.n].mT.to(A.dtype).contiguous(),
        dB,
        dC,
        u.new_empty(0) if D is None else dskip.sum(0).to(D.dtype),
        u.new_empty(0) if z is None or dz is None else dz.to(z.dtype),
        u.new_empty(0) if delta_bias is None else dbias.sum(0).to(delta_bias.dtype),
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
        u, delta = _dense(u.to(self.dtype)), _dense(delta.to(self.dtype))
        z = None if z is None else _dense(z.to(self.dtype))
        B, C = (_dense(_pad(x.to(self.dtype), self.padded)) for x in (B, C))
        chunk_length, self.chunks = _cut(self.length, shapes.chunks)
        self.tensors: dict[str, Tensor | None] = {
            "u": u, "delta": delta, "z": z, "B": B, "C": C,
            "A": A.float().contiguous(),
            "bias": None if delta_bias is None else delta_bias.float().contiguous(),
            "skip": None if D is None else D.float().contiguous(),
            "seq": None if seq_idx is None else documents(seq_idx),
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
            "IO": DTYPES[self.dtype], "SPAN": SPAN,
            "HAS_Z": int(z is not None), "HAS_BIAS": int(delta_bias is not None),
            "HAS_SKIP": int(D is not None), "HAS_SEQ": int(seq_idx is not None),
            "SOFTPLUS": int(delta_softplus),
        }  # fmt: skip

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.device)

    def rows(self) -> Tensor:
        return self.empty(self.batch, self.length, self.channels, dtype=self.dtype)

    def group_blocks(self, cut: Cut) -> int:
        return _ceil_div(self.channels // self.groups, 32 * WARPS // cut.split)

    def room_for_blocks(self, cut: Cut) -> Tensor:
        return self.empty(self.batch, self.groups, self.group_blocks(cut), self.length, self.padded)

    def add_blocks(self, parts: Tensor, dtype: torch.dtype) -> Tensor:
        """The sums over all channels of a group, [B, L, G, N]."""
        return parts.sum(2).transpose(1, 2)[..., : self.n].to(dtype).contiguous()

    def launch(self, name: str, cut: Cut, **given: Tensor | int | None) -> None:
        kernel = self.kernel(name, cut, self.shared_memory(name, cut))
        chunks = 1 if name == "forward" else self.chunks
        blocks = self.batch * chunks * self.groups * self.group_blocks(cut)
        with torch.cuda.device(self.device):
            threads = 32 * WARPS * (2 if name == "forward" else 1)
            kernel.launch((blocks, 1), threads, self.arguments(cut, given))

    def carry(self, cut: Cut, **given: Tensor | int | None) -> None:
        kernel = self.kernel("carry", cut, 0)
        grid = (_ceil_div(self.padded * self.channels, 128), self.batch)
        with torch.cuda.device(self.device):
            kernel.launch(grid, 128, self.arguments(cut, given))

    def kernel(self, name: str, cut: Cut, shared_memory: int) -> nvrtc.Kernel:
        direction = "forward" if name == "forward" else "backward"
        sources = "lanes.cu", "s6_cuda.cu", f"s6_cuda_{direction}.cu"
        macros = self.macros | {
            {"carry": "ALONG"}.get(name, name.upper()): 1,
            "CHUNKED": int(self.chunks > 1 and name != "forward"),
            "STATES": self.padded // cut.split, "SPLIT": cut.split,
            "ROWS": cut.rows, "UNROLL": cut.unroll, "BLOCKS": cut.blocks,
        }  # fmt: skip
        with torch.cuda.device(self.device):
            return nvrtc.kernel(sources, name, macros, shared_memory)

    def shared_memory(self, name: str, cut: Cut) -> int:
        """Bytes of a block, as the kernels divide them up."""
        runs, itemsize = WARPS // cut.split, self.dtype.itemsize
        weights = 2 * (2 * self.padded + 4)
        raw = 2 * self.padded * itemsize
        documents = 16 if self.macros["HAS_SEQ"] else 0
        if name == "forward":
            exchanged = 2 * 32 * (2 * runs + WARPS)
            rows = 4 * 3 * 32 * runs * itemsize
        else:
            exchanged = 2 * (runs * 8 * self.padded + (16 if self.padded < 16 else 0))
            rows = 2 * {"along": 4, "against": 5}[name] * 32 * runs * itemsize
        slot = cut.rows * (raw + documents // 4) + documents
        return cut.rows * (4 * (weights + exchanged) + rows) + 2 * slot

    def arguments(self, cut: Cut, given: dict[str, Tensor | int | None]) -> "_Arguments":
        group_blocks = self.group_blocks(cut)
        known = self.tensors | self.numbers | given
        known |= {"blocks": self.groups * group_blocks, "group_blocks": group_blocks}
        return _Arguments(
            **{k: v.data_ptr() if isinstance(v, Tensor) else v or 0 for k, v in known.items()}
        )


_POINTERS = (
    "u delta z grad_y B C A bias skip initial grad_final seq y dz ddelta P final states dB dC dA"
    " span_states span_sums entries decays exits dskip dbias grad_initial"
)
_STRIDES = "u_batch delta_batch z_batch dy_batch B_batch B_group C_batch C_group"
_SIZES = (
    "u_row delta_row z_row dy_row B_row C_row"
    " length channels per_group n chunks chunk_length blocks group_blocks"
)


class _Arguments(ctypes.Structure):
    """The kernels' structure of this name, field by field."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS.split()),
        *((name, ctypes.c_int64) for name in _STRIDES.split()),
        *((name, ctypes.c_int32) for name in _SIZES.split()),
    ]


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _padded(n: int) -> int:
    """A power of two, and in 16-bit numbers at least 16 bytes."""
    return max(8, 1 << (n - 1).bit_length())


def _cut(length: int, chunks: int) -> tuple[int, int]:
    """Length of a chunk, a multiple of SPAN, and how many there are."""
    chunk_length = _ceil_div(_ceil_div(length, chunks), SPAN) * SPAN
    return chunk_length, _ceil_div(length, chunk_length)


def _dense(x: Tensor) -> Tensor:
    """Consecutive in the last dimension, all else on 16-byte boundaries: a copy if x is not so."""
    each = 16 // x.element_size()
    fits = x.stride(-1) == 1 and not any(stride % each for stride in x.stride()[:-1])
    fits = fits and x.data_ptr() % 16 == 0 and x.stride(1) < 2**31
    return x if fits else x.clone(memory_format=torch.contiguous_format)


def _pad(x: Tensor, n: int) -> Tensor:
    return x if x.shape[-1] == n else F.pad(x, (0, n - x.shape[-1]))


@cache
def _gpu(device: torch.device) -> Any:
    return torch.cuda.get_device_properties(device)
