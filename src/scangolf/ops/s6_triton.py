"""The selective scan in Triton kernels, for GPUs: the backend "triton".

The recurrence stands in ops/reference.py, the kernels in s6_triton_fwd.py and s6_triton_bwd.py.
This module lays the inputs out for them, chooses the shapes of their programs, and adds up what
they leave in parts. Nothing is added atomically: the same inputs give the same bits.

The forward pass saves the state before each chunk, nothing else.

Shapes: B batch, L length, D channels, N state (padded: a power of two), G groups of channels,
K chunks, M spans.
"""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from scangolf.ops.s6_triton_bwd import adjoint_kernel, states_kernel
from scangolf.ops.s6_triton_fwd import carry_kernel, scan_kernel, summary_kernel

LARGEST_STATE = 32  # of one program: it lives in registers
OLDEST = (7, 0)  # compute capability of the NVIDIA GPUs that Triton supports
SPAN = 64  # steps over which the backward pass carries sums
SHORTEST_CHUNK = 256
ENOUGH_PROGRAMS = 1024  # two warps for each scheduler of a large GPU
LOG2_E = math.log2(math.e)


class Block(NamedTuple):
    """What a program, one warp, holds."""

    channels: int  # 32 or 64
    steps: int  # rows of u, delta, z that are loaded ahead
    ahead: bool = True  # whether B and C are loaded a step ahead, too
    registers: int | None = None  # of a thread at most


class Tuning(NamedTuple):
    """The programs of each kernel, and the number of chunks of a sequence."""

    scan: Block
    summary: Block
    states: Block
    adjoint: Block
    chunks: int


def tuning(u: Tensor, A: Tensor, B: Tensor) -> Tuning:
    """Wide programs do the least work; chunks make as many of them as fill the GPU."""
    (batch, length, channels), groups = u.shape, B.shape[2]
    wide = 64 if A.shape[1] <= 16 else 32
    programs = batch * groups * triton.cdiv(channels // groups, wide)
    chunks = min(triton.cdiv(ENOUGH_PROGRAMS, programs), length // SHORTEST_CHUNK)
    sweep = Block(wide, 2, ahead=False)
    return Tuning(Block(wide, 4), Block(wide, 8), sweep, sweep, max(chunks, 1))


def why_not(u: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps these kernels from the inputs; None if nothing does."""
    if not u.is_cuda and not triton.knobs.runtime.interpret:
        return "they need a GPU"
    if u.is_cuda and torch.version.hip is None:
        capability = torch.cuda.get_device_capability(u.device)
        if capability < OLDEST:
            return f"they need compute capability {OLDEST[0]}.{OLDEST[1]}"
    if A.shape[1] > LARGEST_STATE:
        return f"they take states of {LARGEST_STATE} at most, not {A.shape[1]}"
    return None


def saved_shape(u: Tensor, A: Tensor, B: Tensor, shapes: Tuning | None = None) -> tuple[int, ...]:
    """Shape of the states that `forward` saves for `backward`: [B, K, N, D]."""
    batch, length, channels = u.shape
    _, chunks = _cut(length, (shapes or tuning(u, A, B)).chunks)
    return batch, chunks, _padded(A.shape[1]), channels


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
    x = _lay_out(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, shapes)
    states_BKND = x.empty(*saved_shape(u, A, B, shapes))
    states_BKND[:, 0] = 0.0
    if initial_state is not None:
        states_BKND[:, 0, : x.n] = initial_state.mT
    y, final_BND = x.rows(u.dtype), x.empty(x.batch, x.n_padded, x.channels)
    _fill_borders(x, states_BKND, x.arguments["u"], adjoint=False)
    x.launch(scan_kernel, x.shapes.scan, y=y, states=states_BKND, final=final_BND)
    return y, final_BND[:, : x.n].mT.contiguous(), states_BKND


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    states_BKND: Tensor,
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
    x = _lay_out(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx, shapes)
    dy = _rows(grad_y)
    rows = {"grad_y": dy, "dy_batch": dy.stride(0), "dy_row": dy.stride(1)}
    spans, nothing = triton.cdiv(x.length, SPAN), x.empty(0)
    dA = x.empty(x.batch, x.chunks, x.n_padded, x.channels)
    shared = rows | {
        "P": x.rows(torch.float32),
        "dA": dA,
        "span_states": x.empty(x.batch, spans, x.n_padded, x.channels),
        "span_steps": x.empty(x.batch, spans, x.channels),
    }

    dz = nothing if x.dtypes["z"] is None else x.rows(x.dtypes["z"])
    parts = _room_for_channel_sums(x, x.shapes.states)
    x.launch(states_kernel, x.shapes.states, states=states_BKND, dz=dz, dC=parts, **shared)
    dC = _add_blocks(x, parts, x.dtypes["C"])
    del parts

    exits_BKND = torch.empty_like(states_BKND)
    exits_BKND[:, -1] = 0.0
    if grad_final is not None:
        exits_BKND[:, -1, : x.n] = grad_final.mT
    _fill_borders(x, exits_BKND, dy, adjoint=True)
    du, ddelta = x.rows(u.dtype), x.rows(delta.dtype)
    parts = _room_for_channel_sums(x, x.shapes.adjoint)
    dskip, dbias = (x.empty(x.batch * x.chunks, x.channels) for _ in range(2))
    grad_initial = x.empty(x.batch, x.n_padded, x.channels)
    x.launch(
        adjoint_kernel, x.shapes.adjoint,
        exits=exits_BKND, du=du, ddelta=ddelta, dB=parts,
        dskip=dskip, dbias=dbias, grad_initial=grad_initial, **shared,
    )  # fmt: skip
    dB = _add_blocks(x, parts, x.dtypes["B"])
    dA = dA.sum((0, 1))[: x.n].mT.to(x.dtypes["A"])
    dD, d_bias = (
        nothing if x.dtypes[name] is None else part.sum(0).to(x.dtypes[name])
        for name, part in (("D", dskip), ("delta_bias", dbias))
    )
    dstate = grad_initial[:, : x.n].mT.contiguous()
    return du, ddelta, dA.contiguous(), dB, dC, dD, dz, d_bias, dstate


# --- layout and launches ------------------------------------------------------------------------


@dataclass
class _Scan:
    """One scan, laid out for the kernels: their arguments by name, and what the results need."""

    arguments: dict[str, Any]
    shapes: Tuning
    batch: int
    length: int
    channels: int
    groups: int
    chunks: int
    n: int
    n_padded: int
    dtypes: dict[str, torch.dtype | None]

    def launch(self, kernel: Any, block: Block, **arguments: Any) -> None:
        group_blocks = triton.cdiv(self.channels // self.groups, block.channels)
        blocks = self.groups * group_blocks
        known = self.arguments | arguments | {
            "blocks": blocks,
            "group_blocks": group_blocks,
            "C": block.channels,
            "T": block.steps,
            "AHEAD": block.ahead,
            "FULL": self.channels // self.groups % block.channels == 0,
        }  # fmt: skip
        with torch.cuda.device_of(known["u"]):
            kernel[(self.batch * self.chunks * blocks,)](
                **{name: known[name] for name in kernel.arg_names},
                num_warps=1,
                num_stages=1,
                maxnreg=block.registers,
                enable_fp_fusion=True,
            )

    def empty(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=self.arguments["u"].device)

    def rows(self, dtype: torch.dtype) -> Tensor:
        return self.empty(self.batch, self.length, self.channels, dtype=dtype)


def _lay_out(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus: bool, seq_idx, shapes: Tuning
) -> _Scan:
    (batch, length, channels), n, groups = u.shape, A.shape[1], B.shape[2]
    n_padded = _padded(n)
    u, delta = _rows(u), _rows(delta)
    z_rows = u if z is None else _rows(z)
    A_ND = u.new_zeros(n_padded, channels, dtype=torch.float32)
    A_ND[:n] = A.mT.float() * LOG2_E
    weights = u.new_empty(batch, groups, length, 2, n_padded, dtype=torch.float32)
    weights[..., 0, :n], weights[..., 1, :n] = B.transpose(1, 2), C.transpose(1, 2)
    if n < n_padded:
        weights[..., n:] = 0.0
    penalty = u
    if seq_idx is not None:
        penalty = u.new_zeros(batch, length, dtype=torch.float32)
        penalty[:, 1:].masked_fill_(seq_idx[:, 1:] != seq_idx[:, :-1], -math.inf)
    chunk_length, chunks = _cut(length, shapes.chunks)
    arguments: dict[str, Any] = {
        "u": u, "u_batch": u.stride(0), "u_row": u.stride(1),
        "delta": delta, "delta_batch": delta.stride(0), "delta_row": delta.stride(1),
        "z": z_rows, "z_batch": z_rows.stride(0), "z_row": z_rows.stride(1),
        "A": A_ND, "weights": weights, "penalty": penalty,
        "bias": u if delta_bias is None else delta_bias.float().contiguous(),
        "skip": u if D is None else D.float().contiguous(),
        "length": length, "chunks": chunks, "chunk_length": chunk_length,
        "channels": channels, "per_group": channels // groups,
        "N": n_padded, "SPAN": SPAN, "HAS_Z": z is not None, "HAS_BIAS": delta_bias is not None,
        "HAS_SKIP": D is not None, "HAS_PENALTY": seq_idx is not None, "SOFTPLUS": delta_softplus,
        "PTX": u.is_cuda and torch.version.hip is None,
    }  # fmt: skip
    optional = {"A": A, "B": B, "C": C, "D": D, "z": z, "delta_bias": delta_bias}
    dtypes = {name: None if x is None else x.dtype for name, x in optional.items()}
    return _Scan(arguments, shapes, batch, length, channels, groups, chunks, n, n_padded, dtypes)


def _fill_borders(x: _Scan, borders_BKND: Tensor, dy: Tensor, adjoint: bool) -> None:
    """The states before the chunks, from the first of them; the adjoints after, from the last."""
    if x.chunks == 1:
        return
    ends, decays = torch.empty_like(borders_BKND), torch.empty_like(borders_BKND)
    x.launch(
        summary_kernel, x.shapes.summary, ends=ends, decays=decays, ADJOINT=adjoint,
        dy=dy, dy_batch=dy.stride(0), dy_row=dy.stride(1),
    )  # fmt: skip
    size, block = x.n_padded * x.channels, 256
    with torch.cuda.device_of(dy):
        carry_kernel[triton.cdiv(size, block), x.batch](
            borders_BKND, ends, decays, x.chunks, size, ADJOINT=adjoint, BLOCK=block
        )


def _room_for_channel_sums(x: _Scan, block: Block) -> Tensor:
    group_blocks = triton.cdiv(x.channels // x.groups, block.channels)
    return x.empty(x.batch, x.groups, group_blocks, x.length, x.n_padded)


def _add_blocks(x: _Scan, parts: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The sums over all channels of a group, [B, L, G, N]."""
    return parts.sum(2).transpose(1, 2)[..., : x.n].to(dtype).contiguous()


# --- shapes -------------------------------------------------------------------------------------


def _padded(n: int) -> int:
    return max(4, triton.next_power_of_2(n))


def _cut(length: int, chunks: int) -> tuple[int, int]:
    """Length of a chunk, a multiple of SPAN, and how many there are."""
    chunk_length = triton.cdiv(triton.cdiv(length, chunks), SPAN) * SPAN
    return chunk_length, triton.cdiv(length, chunk_length)


def _rows(x: Tensor) -> Tensor:
    """Any stride but that of the channels."""
    return x if x.stride(2) == 1 else x.contiguous()
