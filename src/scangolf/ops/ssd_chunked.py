"""The SSD scan in plain torch operations, for any device: the backend "reference".

Mamba-2 (Dao & Gu 2024, arXiv:2405.21060), section 6; the recurrence stands in ops/reference.py. The
sequence is cut into chunks. With S_t the sum of d A from the chunk's first step to step t,

    y_t = sum_{s <= t} exp(S_t - S_s) (C_t B_s) d_s x_s  +  exp(S_t) C_t h,

where h is the state before the chunk: the first term is a product of matrices, and only the states
go from chunk to chunk. The forward pass saves them for the backward pass, which computes all else
again.

Every decay is the exponential of a difference S_t - S_s, s <= t, which is not positive where A d is
not; exp(-S_s) by itself would overflow. Where a document begins, no exponent becomes infinite: the
decay between steps of different documents is set to zero.

Shapes: B batch, L length, K chunks, T steps of a chunk, H heads, P head size, G groups of heads,
N state. Inside, time is the last axis of what belongs to a head, so that the heads of a group are
rows of one matrix; i is the step an input is written at, t the step it is read at.
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops.reference import state_dtype

SCRATCH_CPU = 1 << 18  # elements of a scratch array: here, what stays in the cache
SCRATCH_GPU = 1 << 25


class _Scan(NamedTuple):
    """What a scan reads; the parameters are in the dtype of the state."""

    x: Tensor
    dt: Tensor
    B: Tensor
    C: Tensor
    document_BL: Tensor | None  # counted from 0
    A_H: Tensor
    D_H: Tensor | None
    bias_H: Tensor | None
    softplus: bool


class _Block(NamedTuple):
    """Some chunks of some sequences, all of one length: what is computed at once."""

    rows: slice
    chunks: slice
    steps: slice

    def of(self, v: Tensor) -> Tensor:
        """[B, L, ...] as [B, K, T, ...], a view."""
        return v[self.rows, self.steps].unflatten(1, (self.chunks.stop - self.chunks.start, -1))

    def of_heads(self, v_BLHP: Tensor, dtype: torch.dtype) -> Tensor:
        """As [B, K, H, P, T]; not a copy if it has this layout."""
        return self.of(v_BLHP).permute(0, 1, 3, 4, 2).to(dtype).contiguous()

    def write_heads(self, target_BLHP: Tensor, v_BKHPT: Tensor) -> None:
        self.of(target_BLHP).copy_(v_BKHPT.permute(0, 1, 4, 2, 3))

    def of_groups(self, v_BLGN: Tensor, dtype: torch.dtype) -> Tensor:
        """As [B, K, G, T, N], and [B, L, H] as [B, K, H, T]."""
        return self.of(v_BLGN).transpose(2, 3).to(dtype).contiguous()

    def write_groups(self, target_BLGN: Tensor, v_BKGTN: Tensor) -> None:
        self.of(target_BLGN).copy_(v_BKGTN.transpose(2, 3))


class _Part(NamedTuple):
    """A block's inputs and decays."""

    x_BKHPT: Tensor
    biased_BKHT: Tensor  # step size before the softplus
    d_BKHT: Tensor
    drive_BKHPT: Tensor  # d x, what B writes into the state
    B_BKGTN: Tensor
    C_BKGTN: Tensor
    decay_BKHit: Tensor  # 0 where t < i
    from_start_BKHT: Tensor  # decay of the state before the chunk, until step t
    to_end_BKHT: Tensor  # decay of what is written at step t, until the chunk's end
    whole_BKH11: Tensor  # decay of the state before the chunk, until its end

    def merged(self, v: Tensor) -> Tensor:
        """[B, K, H, P, ...] as [B, K, G, H / G * P, ...]."""
        groups = self.B_BKGTN.shape[2]
        return v.reshape(*v.shape[:2], groups, v.shape[2] // groups * v.shape[3], v.shape[4])

    def parted(self, v: Tensor) -> Tensor:
        """The way back."""
        return v.view(*self.x_BKHPT.shape[:4], v.shape[-1])

    def with_group(self, v_BKHit: Tensor) -> Tensor:
        """[B, K, H, i, t] as [B, K, G, H / G, i, t]."""
        return v_BKHit.unflatten(2, (self.B_BKGTN.shape[2], -1))

    def weights(self) -> Tensor:
        """How much of drive_i is in y_t, [B, K, H, i, t]."""
        scores_BKGit = self.B_BKGTN @ self.C_BKGTN.mT
        weights = self.with_group(self.decay_BKHit) * scores_BKGit.unsqueeze(3)
        return weights.view_as(self.decay_BKHit)

    def drive_until_end(self) -> Tensor:
        """What is left of drive at the end of its chunk, [B, K, G, H / G * P, T]."""
        return self.merged(self.drive_BKHPT * self.to_end_BKHT.unsqueeze(3))

    def read(self, h_BKHPN: Tensor) -> Tensor:
        """What the states before the chunks are in y."""
        y = self.parted(self.merged(h_BKHPN) @ self.C_BKGTN.mT)
        return y.mul_(self.from_start_BKHT.unsqueeze(3))


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
    """y [B, L, H, P] in x's dtype, the final state [B, H, P, N], the saved states
    [B, K, H, P, N]; B and C are [B, L, G, N]."""
    scan = _scan(x, dt, A, B, C, D, dt_bias, dt_softplus, seq_idx)
    y_BLHP = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    saved_BKHPN = saved(x, A, B, chunk_size)
    h_BHPN = _fresh_state(initial_state, x, B)
    for block in _blocks(x, chunk_size):
        part = _part(scan, block)
        states = saved_BKHPN[block.rows, block.chunks]
        written = part.parted(part.drive_until_end() @ part.B_BKGTN)
        _carry(h_BHPN[block.rows], part, written, states)
        y = (part.drive_BKHPT @ part.weights()).add_(part.read(states))
        if scan.D_H is not None:
            y.addcmul_(part.x_BKHPT, scan.D_H[:, None, None])
        block.write_heads(y_BLHP, y)
    return y_BLHP, h_BHPN, saved_BKHPN


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    saved_BKHPN: Tensor,
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
    """Gradients of x, dt, A, B, C, D, dt_bias, initial_state, the last [B, H, P, N] in the dtype
    of the state; those of absent D, dt_bias are empty.

    The gradient of d_t A is that of every product the decay of step t is a factor of: what is
    written before t and read at t or later, the states before and after the chunk included.
    """
    scan, dtype = _scan(x, dt, A, B, C, D, dt_bias, dt_softplus, seq_idx), state_dtype(x)
    dx, ddt, dB, dC = (torch.empty(v.shape, dtype=v.dtype, device=v.device) for v in (x, dt, B, C))
    dA_H, dD_H, dbias_H = (torch.zeros_like(scan.A_H) for _ in range(3))
    g_BHPN = _fresh_state(grad_final, x, B)
    for block in reversed(_blocks(x, chunk_size)):
        part, h = _part(scan, block), saved_BKHPN[block.rows, block.chunks]
        weights, carried = part.weights(), part.read(h)
        dy = block.of_heads(grad_y, dtype)

        dy_start = part.merged(dy * part.from_start_BKHT.unsqueeze(3))
        g = torch.empty_like(h)
        _carry(g_BHPN[block.rows], part, part.parted(dy_start @ part.C_BKGTN), g, back=True)
        kept = part.parted(part.merged(g) @ part.B_BKGTN.mT).mul_(part.to_end_BKHT.unsqueeze(3))
        ddrive = (dy @ weights.mT).add_(kept)

        dweights = part.drive_BKHPT.mT @ dy
        pairs = weights.mul_(dweights)  # what drive_i and y_t are to the loss together
        dscores = part.with_group(dweights.mul_(part.decay_BKHit)).sum(3)
        block.write_groups(dC, (dscores.mT @ part.B_BKGTN).add_(dy_start.mT @ part.merged(h)))
        block.write_groups(
            dB, (dscores @ part.C_BKGTN).add_(part.drive_until_end().mT @ part.merged(g))
        )
        ddecay = _between(pairs, (dy * carried).sum(3), (part.drive_BKHPT * kept).sum(3))
        ddecay += (part.whole_BKH11 * (h * g).sum((3, 4), keepdim=True)).squeeze(4)
        # where nothing is left to decay the sums leave their rounding errors
        ddecay.masked_fill_(part.d_BKHT * scan.A_H[:, None] <= _nothing(dtype), 0.0)

        dA_H += (ddecay * part.d_BKHT).sum((0, 1, 3))
        dd = (part.x_BKHPT * ddrive).sum(3).addcmul_(ddecay, scan.A_H[:, None])
        if dt_softplus:
            dd = torch.ops.aten.softplus_backward(dd, part.biased_BKHT, 1, 20)
        dbias_H += dd.sum((0, 1, 3))
        ddrive.mul_(part.d_BKHT.unsqueeze(3))
        if scan.D_H is not None:
            dD_H += (dy * part.x_BKHPT).sum((0, 1, 3, 4))
            ddrive.addcmul_(dy, scan.D_H[:, None, None])
        block.write_heads(dx, ddrive)
        block.write_groups(ddt, dd)
    dD, dbias = (
        x.new_empty(0) if v is None else grad.to(v.dtype)
        for v, grad in ((D, dD_H), (dt_bias, dbias_H))
    )
    return dx, ddt, dA_H.to(A.dtype), dB, dC, dD, dbias, g_BHPN


def saved(x: Tensor, A: Tensor, B: Tensor, chunk_size: int) -> Tensor:
    """The states that `forward` saves for `backward`, without numbers: [B, K, H, P, N]."""
    batch, length, heads, head_dim = x.shape
    chunks = (length + chunk_size - 1) // chunk_size
    return x.new_empty(batch, chunks, heads, head_dim, B.shape[3], dtype=state_dtype(x))


def _carry(h_BHPN: Tensor, part: _Part, added: Tensor, states: Tensor, back: bool = False) -> None:
    """h <- whole h + added, chunk by chunk; writes what h was before each, and leaves it in h."""
    order = range(added.shape[1])
    for k in reversed(order) if back else order:
        states[:, k] = h_BHPN
        torch.addcmul(added[:, k], part.whole_BKH11[:, k], h_BHPN, out=h_BHPN)


def _between(pairs_BKHit: Tensor, read_BKHT: Tensor, kept_BKHT: Tensor) -> Tensor:
    """Sums over what is written before t and read at t or later, [B, K, H, T].

    Args:
        pairs_BKHit: of inputs i and outputs t.
        read_BKHT: of the state before the chunk and outputs t.
        kept_BKHT: of inputs t and the state after the chunk.
    """
    # an input that is read in its own step is not decayed; cancelled, it would cost digits
    pairs_BKHit.diagonal(dim1=-2, dim2=-1).zero_()
    read = read_BKHT.add_(pairs_BKHit.sum(-2)).sub_(pairs_BKHit.sum(-1))
    before = F.pad(kept_BKHT[..., :-1], (1, 0)).cumsum(-1)
    return read.flip(-1).cumsum(-1).flip(-1).add_(before)


# --- cutting ------------------------------------------------------------------------------------


def _scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    seq_idx: Tensor | None,
) -> _Scan:
    dtype, document = state_dtype(x), None
    if seq_idx is not None:
        document = F.pad(seq_idx[:, 1:] != seq_idx[:, :-1], (1, 0)).cumsum(1)
    D, bias = (None if v is None else v.to(dtype) for v in (D, bias))
    return _Scan(x, dt, B, C, document, A.to(dtype), D, bias, softplus)


def _part(scan: _Scan, block: _Block) -> _Part:
    dtype = scan.A_H.dtype
    x = block.of_heads(scan.x, dtype)
    d = biased = block.of_groups(scan.dt, dtype)
    if scan.bias_H is not None:
        d = biased = biased + scan.bias_H[:, None]
    if scan.softplus:
        d = F.softplus(biased)
    # of a decay to nothing the exponent does not matter: kept small, so are the errors of sums
    sums = (d * scan.A_H[:, None]).clamp_(min=_nothing(dtype)).cumsum(-1)
    within = sums.unsqueeze(3) - sums.unsqueeze(4)
    from_start, to_end = sums.clone(), sums[..., -1:] - sums
    steps = torch.arange(x.shape[-1], device=x.device)
    never = steps < steps[:, None]
    if scan.document_BL is not None:
        document = block.of(scan.document_BL)[:, :, None]
        before = block.of(F.pad(scan.document_BL, (1, 0))[:, :-1])[:, :, None, :1]
        never = never | (document.unsqueeze(3) != document.unsqueeze(4))
        from_start.masked_fill_(document != before, -math.inf)
        to_end.masked_fill_(document != document[..., -1:], -math.inf)
    decay = within.masked_fill_(never, -math.inf).exp_()
    from_start, to_end = from_start.exp_(), to_end.exp_()
    return _Part(
        x,
        biased,
        d,
        x * d.unsqueeze(3),
        block.of_groups(scan.B, dtype),
        block.of_groups(scan.C, dtype),
        decay,
        from_start,
        to_end,
        from_start[..., -1, None, None],
    )


def _nothing(dtype: torch.dtype) -> float:
    """An exponent at which, and below which, exp is 0."""
    limits = torch.finfo(dtype)
    return math.log(limits.smallest_normal * limits.eps) - 1


def _fresh_state(h_BHPN: Tensor | None, x: Tensor, B: Tensor) -> Tensor:
    """A copy to be written to, in the dtype of the state; zero if there is none."""
    batch, _, heads, head_dim = x.shape
    state = x.new_zeros(batch, heads, head_dim, B.shape[3], dtype=state_dtype(x))
    return state if h_BHPN is None else state.copy_(h_BHPN)


def _blocks(x: Tensor, chunk_size: int) -> list[_Block]:
    """Whole chunks first, as many at once as fit the scratch arrays; then what is left over."""
    batch, length, heads, _ = x.shape
    chunks = length // chunk_size
    room = (SCRATCH_CPU if x.device.type == "cpu" else SCRATCH_GPU) // max(1, heads)
    at_once = max(1, room // min(length + 1, chunk_size) ** 2)
    rows = max(1, min(batch, at_once))
    some = max(1, at_once // rows)
    spans = [slice(k, min(k + some, chunks)) for k in range(0, chunks, some)]
    cuts = [(s, slice(s.start * chunk_size, s.stop * chunk_size)) for s in spans]
    if length % chunk_size:
        cuts.append((slice(chunks, chunks + 1), slice(chunks * chunk_size, length)))
    return [_Block(slice(b, b + rows), *cut) for b in range(0, batch, rows) for cut in cuts]
