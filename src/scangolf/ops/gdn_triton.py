"""The gated delta rule in Triton kernels, for GPUs: the backend "triton".

The kernels stand in gdn_triton_fwd.py and gdn_triton_bwd.py: two forward, three backward. This
module lays the inputs out for them. Nothing is added atomically: the same inputs give the same
bits.

Chunks have a power of two of steps, near the size that is asked for; of float32 at most 32.

Shapes: B batch, L length, H heads, K key_dim, V value_dim, N chunks.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from scangolf.ops.gdn_triton_bwd import adjoint_kernel, keys_kernel, scores_kernel
from scangolf.ops.gdn_triton_fwd import inverse_kernel, rule_kernel

LONGEST_CHUNK = 64
LARGEST = 128  # key and value of a program: tiles live in registers
FLOAT32_TILE = 32 * 64  # steps times key or value: without tensor cores long code is slow code
ENOUGH = 512  # programs that go from chunk to chunk: with fewer, values are cut in blocks
NARROWEST = 32  # of these blocks


def why_not(q: Tensor, v: Tensor) -> str | None:
    """What keeps these kernels from the inputs; None if nothing does."""
    if not v.is_cuda and not triton.knobs.runtime.interpret:
        return "they need a GPU"
    if max(q.shape[3], v.shape[3]) > LARGEST:
        return f"they take key_dim and value_dim of {LARGEST} at most"
    return None


def saved(q: Tensor, k: Tensor, v: Tensor, chunk_size: int) -> Tensor:
    """What `forward` saves for `backward`, without numbers: a record of each chunk and head.

    [B, N, H, size of a record]; gdn_triton_fwd.py says what stands in it.
    """
    (batch, length, heads, _), dtype = q.shape, _dtype(q, k, v)
    steps, K, V = _sizes(q, v, dtype, chunk_size)
    size = K * V + steps * steps + steps * V
    return v.new_empty(batch, -(-length // steps), heads, size, dtype=dtype)


def forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    initial_state: Tensor | None,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """o [B, L, H, V] in v's dtype, the final state [B, H, K, V] in float32, the saved records."""
    rule = _Rule(q, k, v, g, beta, chunk_size, seq_idx)
    records = saved(q, k, v, chunk_size)
    rule.launch(inverse_kernel, rule.chunks, records=records)
    o, final = rule.like(v, v.dtype), rule.state()
    rule.launch(
        rule_kernel, rule.blocks,
        initial=final if initial_state is None else initial_state.contiguous(),
        HAS_INITIAL=initial_state is not None, o=o, records=records, final=final,
    )  # fmt: skip
    return o, final, records


def backward(
    grad_o: Tensor,
    grad_final: Tensor | None,
    records: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    g: Tensor,
    beta: Tensor,
    chunk_size: int,
    seq_idx: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, g, beta in their dtypes, and of the initial state in float32."""
    rule = _Rule(q, k, v, g, beta, chunk_size, seq_idx)
    do = _last_dense(grad_o.to(records.dtype))
    of_states = rule.arguments["K"] * rule.arguments["V"]
    dv, dk = (rule.like(x, records.dtype) for x in (v, k))
    dq, dg, dbeta = (rule.like(x, x.dtype) for x in (q, g, beta))
    grad_initial = rule.state()
    shared: dict[str, Any] = {
        "grad_o": do, "do_batch": do.stride(0), "do_row": do.stride(1), "do_head": do.stride(2),
        "records": records, "adjoints": records.new_empty(*records.shape[:3], of_states),
        "dv": dv, "dk": dk,
        "g_part": rule.like(g, torch.float32), "beta_part": rule.like(beta, torch.float32),
    }  # fmt: skip
    rule.launch(
        adjoint_kernel, rule.blocks,
        grad_final=do if grad_final is None else grad_final.contiguous(),
        HAS_FINAL=grad_final is not None, grad_initial=grad_initial, **shared,
    )  # fmt: skip
    rule.launch(scores_kernel, rule.chunks, dq=dq, **shared)
    rule.launch(keys_kernel, rule.chunks, dg=dg, dbeta=dbeta, **shared)
    return dq, dk.to(k.dtype), dv.to(v.dtype), dg, dbeta, grad_initial


class _Rule:
    """The inputs of one call as the kernels take them: arguments by name."""

    def __init__(self, q, k, v, g, beta, chunk_size: int, seq_idx) -> None:
        self.batch, length, self.heads, key_dim = q.shape
        dtype = _dtype(q, k, v)
        steps, K, V = _sizes(q, v, dtype, chunk_size)
        in_float32 = dtype == torch.float32
        self.warps = 8 if in_float32 or max(K, V) > 64 else 4
        self.stages = 1 if in_float32 else 2
        self.chunks, C = -(-length // steps), min(V, 64)
        few = self.batch * self.heads * V // C < ENOUGH
        if C > NARROWEST and (few or in_float32):
            C = NARROWEST
        self.blocks = V // C
        q, k, v = (_last_dense(x.to(dtype)) for x in (q, k, v))
        g, beta = _last_dense(g), _last_dense(beta)
        self.v = v
        self.arguments: dict[str, Any] = {
            "q": q, "q_batch": q.stride(0), "q_row": q.stride(1), "q_head": q.stride(2),
            "k": k, "k_batch": k.stride(0), "k_row": k.stride(1), "k_head": k.stride(2),
            "v": v, "v_batch": v.stride(0), "v_row": v.stride(1), "v_head": v.stride(2),
            "g": g, "g_batch": g.stride(0), "g_row": g.stride(1),
            "beta": beta, "beta_batch": beta.stride(0), "beta_row": beta.stride(1),
            "documents": v if seq_idx is None else seq_idx.contiguous(),
            "length": length, "heads": self.heads, "chunks": self.chunks,
            "key_dim": key_dim, "value_dim": v.shape[3],
            "T": steps, "K": K, "V": V, "C": C, "HAS_SEQ": seq_idx is not None,
            "PRECISION": "ieee" if in_float32 else "tf32",
            "WIDE": not v.is_cuda,
        }  # fmt: skip

    def like(self, x: Tensor, dtype: torch.dtype) -> Tensor:
        return torch.empty(x.shape, dtype=dtype, device=x.device)

    def state(self) -> Tensor:
        """An empty [B, H, K, V]."""
        sizes = self.arguments["key_dim"], self.arguments["value_dim"]
        return self.v.new_empty(self.batch, self.heads, *sizes, dtype=torch.float32)

    def launch(self, kernel: Any, parts: int, **arguments: Any) -> None:
        """With a program for each part, chunks or blocks of the value, of each head."""
        known = self.arguments | arguments
        with torch.cuda.device_of(self.v):
            kernel[(self.batch * self.heads * parts,)](
                **{name: known[name] for name in kernel.arg_names},
                num_warps=self.warps,
                num_stages=self.stages,
            )


def _dtype(q: Tensor, k: Tensor, v: Tensor) -> torch.dtype:
    """What products take: the inputs' dtype if they agree."""
    return v.dtype if q.dtype == k.dtype == v.dtype else torch.float32


def _last_dense(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()


def _sizes(q: Tensor, v: Tensor, dtype: torch.dtype, chunk_size: int) -> tuple[int, int, int]:
    """Steps of a chunk, key and value as the kernels take them."""
    K, V = _padded(q.shape[3]), _padded(v.shape[3])
    longest = LONGEST_CHUNK
    if dtype == torch.float32:
        longest = max(16, min(FLOAT32_TILE // max(K, V), 32))
    return min(_padded(chunk_size), longest), K, V


def _padded(n: int) -> int:
    """Products take blocks of 16 at least."""
    return max(16, triton.next_power_of_2(n))
