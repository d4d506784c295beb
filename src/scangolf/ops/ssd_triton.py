"""The SSD scan in Triton kernels, for GPUs: the backend "triton".

The kernels stand in ssd_triton_fwd.py and ssd_triton_bwd.py: one forward, three backward. This
module lays the inputs out for them and adds up what they leave in parts. Nothing is added
atomically: the same inputs give the same bits.

Chunks have a power of two of steps, near the size that is asked for.

Shapes: B batch, L length, H heads, P head size, G groups of heads, N state, K chunks.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from scangolf.ops.ssd_triton_bwd import adjoint_kernel, inputs_kernel, weights_kernel
from scangolf.ops.ssd_triton_fwd import scan_kernel

LONGEST_CHUNK = 128
LARGEST = 128  # head size and state of a program: tiles live in registers


def why_not(x: Tensor, A: Tensor, B: Tensor) -> str | None:
    """What keeps these kernels from the inputs; None if nothing does."""
    if not x.is_cuda and not triton.knobs.runtime.interpret:
        return "they need a GPU"
    if max(x.shape[3], B.shape[3]) > LARGEST:
        return f"they take head sizes and states of {LARGEST} at most"
    return None


def saved(x: Tensor, A: Tensor, B: Tensor, chunk_size: int) -> Tensor:
    """The states that `forward` saves for `backward`, without numbers: [B, K, H, N, P]."""
    chunks = -(-x.shape[1] // _steps(chunk_size))
    return x.new_empty(x.shape[0], chunks, x.shape[2], B.shape[3], x.shape[3])


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
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, seq_idx)
    y = scan.like(x)
    final = x.new_empty(*x.shape[:1], *x.shape[2:], B.shape[3], dtype=torch.float32)
    states = saved(x, A, B, chunk_size)
    scan.launch(
        scan_kernel, scan.batch * scan.heads,
        initial=x if initial_state is None else initial_state.contiguous(),
        HAS_INITIAL=initial_state is not None, y=y, states=states, final=final,
    )  # fmt: skip
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
    scan = _Scan(x, dt, A, B, C, D, dt_bias, dt_softplus, chunk_size, seq_idx)
    dy = _last_dense(grad_y.to(scan.x.dtype))
    gradients: dict[str, Any] = {
        "grad_y": dy, "dy_batch": dy.stride(0), "dy_row": dy.stride(1), "dy_head": dy.stride(2),
    }  # fmt: skip
    adjoints = torch.empty_like(states)
    grad_initial = x.new_empty(*x.shape[:1], *x.shape[2:], B.shape[3], dtype=torch.float32)
    scan.launch(
        adjoint_kernel, scan.batch * scan.heads,
        grad_final=dy if grad_final is None else grad_final.contiguous(),
        HAS_FINAL=grad_final is not None, adjoints=adjoints, grad_initial=grad_initial,
        **gradients,
    )  # fmt: skip
    dx, ddt = scan.like(x), scan.like(dt, torch.float32)
    dB, dC = scan.like(B), scan.like(C)
    dA, dskip = (
        dx.new_empty(scan.batch * scan.chunks, scan.heads, dtype=torch.float32) for _ in "AD"
    )
    gradients |= {"states": states, "adjoints": adjoints}
    scan.launch(
        inputs_kernel, scan.batch * scan.chunks * scan.heads,
        dx=dx, ddt=ddt, dA=dA, dskip=dskip, **gradients,
    )  # fmt: skip
    scan.launch(weights_kernel, scan.batch * scan.chunks * scan.groups, dB=dB, dC=dC, **gradients)
    return (
        dx,
        ddt.to(dt.dtype, copy=True),
        dA.sum(0).to(A.dtype),
        dB,
        dC,
        x.new_empty(0) if D is None else dskip.sum(0).to(D.dtype),
        x.new_empty(0) if dt_bias is None else ddt.sum((0, 1)).to(dt_bias.dtype),
        grad_initial,
    )


class _Scan:
    """The inputs of one scan as the kernels take them: arguments by name."""

    def __init__(
        self, x, dt, A, B, C, D, dt_bias, dt_softplus: bool, chunk_size: int, seq_idx
    ) -> None:
        self.batch, length, self.heads, p = x.shape
        self.groups, n = B.shape[2:]
        steps = _steps(chunk_size)
        self.chunks = -(-length // steps)
        same = {t.dtype for t in (x, B, C)} == {x.dtype}
        dtype = x.dtype if same else torch.float32
        self.x = x = _last_dense(x.to(dtype))
        B, C = _last_dense(B.to(dtype)), _last_dense(C.to(dtype))
        dt = _last_dense(dt)
        documents = x
        if seq_idx is not None:
            documents = torch.zeros_like(seq_idx, dtype=torch.int32)
            documents[:, 1:] = (seq_idx[:, 1:] != seq_idx[:, :-1]).cumsum(1)
        self.arguments: dict[str, Any] = {
            "x": x, "x_batch": x.stride(0), "x_row": x.stride(1), "x_head": x.stride(2),
            "dt": dt, "dt_batch": dt.stride(0), "dt_row": dt.stride(1),
            "B": B, "B_batch": B.stride(0), "B_row": B.stride(1), "B_group": B.stride(2),
            "C": C, "C_batch": C.stride(0), "C_row": C.stride(1), "C_group": C.stride(2),
            "A": A.contiguous(), "skip": A if D is None else D.contiguous(),
            "bias": A if dt_bias is None else dt_bias.contiguous(), "documents": documents,
            "length": length, "heads": self.heads, "chunks": self.chunks, "n": n, "p": p,
            "per_group": self.heads // self.groups,
            "Q": steps, "N": _padded(n), "P": _padded(p),
            "HAS_SKIP": D is not None, "HAS_BIAS": dt_bias is not None,
            "HAS_SEQ": seq_idx is not None, "SOFTPLUS": dt_softplus,
            "PRECISION": "ieee" if dtype == torch.float32 else "tf32",
            "WIDE": not x.is_cuda,
            "PTX": x.is_cuda and torch.version.hip is None,
        }  # fmt: skip

    def like(self, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(x.shape, dtype=dtype or x.dtype, device=x.device)

    def launch(self, kernel: Any, programs: int, **arguments: Any) -> None:
        known = self.arguments | arguments
        with torch.cuda.device_of(self.x):
            kernel[(programs,)](
                **{name: known[name] for name in kernel.arg_names}, num_warps=4, num_stages=1
            )


def _last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _steps(chunk_size: int) -> int:
    return min(_padded(chunk_size), LONGEST_CHUNK)


def _padded(n: int) -> int:
    """Products take blocks of 16 at least."""
    return max(16, triton.next_power_of_2(n))
