"""The selective scan in plain torch operations, for any device: the backend "reference".

The recurrence stands in ops/reference.py. The sequence is gone through in tiles of T steps. What
needs no order (decays, inputs, sums over state or channels) is one operation for a whole tile; only
the recurrence itself goes step by step, one fused multiply-add for all rows, channels and states.
The forward pass saves the state before every tile, the backward pass computes a tile's states again
from it: memory is one state a tile, and scratch arrays whose size does not depend on the length.

Where launches are what costs (any device but the CPU), a sequence is folded into FOLD pieces that
run side by side. The decay of a piece is exp(A sum d), so the states between the pieces follow
from what each piece, started at zero, ends with.

Shapes: B batch, L length, D channels, N state, G groups, P channels of a group (D = G P),
F pieces of a sequence, T steps of a tile, K tiles. The state is kept as [G, N, P], channels
innermost: every inner loop is long and contiguous.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops.reference import state_dtype

TILE = 32  # steps of a tile
FOLD = 32  # pieces of a sequence that run side by side, on any device but the CPU
SCRATCH_CPU = 1 << 20  # elements of a scratch array: here, what stays in the cache
SCRATCH_GPU = 1 << 25
LOG2_E = math.log2(math.e)


class _Scan(NamedTuple):
    """What a scan reads (or, in the backward pass, the gradients of it, to be written to)."""

    u: Tensor  # these six are [B, L, ...], or [B, F, L / F, ...] once they are cut into pieces
    delta: Tensor
    B: Tensor  # [..., G, N]
    C: Tensor
    z: Tensor | None
    keep: Tensor | None  # 0 where the state restarts, else 1
    A_GNP: Tensor
    D_D: Tensor | None
    bias_D: Tensor | None
    softplus: bool

    def each(self, view: Callable[[Tensor], Tensor]) -> "_Scan":
        """The scan of some rows or steps: `view` is applied to everything that has them."""
        u, delta, B, C, z, keep = (None if x is None else view(x) for x in self[:6])
        return _Scan(u, delta, B, C, z, keep, *self[6:])  # type: ignore[arg-type]

    def rows(self, b: slice) -> "_Scan":
        return self.each(lambda x: x[b])

    def tile(self, t: slice) -> "_Scan":
        """A tile of the pieces, in the dtype of the state."""
        return self.each(lambda x: x[:, :, t].to(self.A_GNP.dtype))

    def by_group(self, x_BFTD: Tensor) -> Tensor:
        """[B, F, T, D] as [B, F, T, G, 1, P]."""
        groups, _, p = self.A_GNP.shape
        return x_BFTD.reshape(*x_BFTD.shape[:3], groups, 1, p)

    def biased(self) -> Tensor:
        return self.delta if self.bias_D is None else self.delta + self.bias_D

    def step_sizes(self, biased: Tensor) -> Tensor:
        return F.softplus(biased) if self.softplus else biased


class _Span(NamedTuple):
    """A run of steps, cut into pieces of equal length, and of the states saved for its tiles."""

    steps: slice
    tiles: slice
    pieces: int

    def of(self, x: Tensor) -> Tensor:
        """[B, L, ...] as [B, F, L / F, ...], a view."""
        return x[:, self.steps].unflatten(1, (self.pieces, -1))

    def of_saved(self, borders: Tensor) -> Tensor:
        """[B, K, ...] as [B, F, K / F, ...], a view."""
        return borders[:, self.tiles].unflatten(1, (self.pieces, -1))


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
) -> tuple[Tensor, Tensor, Tensor]:
    """y [B, L, D] in u's dtype, the final state [B, D, N], the saved states [B, K, G, N, P]."""
    x = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx)
    y_BLD = torch.empty(u.shape, dtype=u.dtype, device=u.device)
    borders_BKGNP = x.A_GNP.new_empty(saved_shape(u, A, B))
    h_BGNP = _grouped(initial_state, x)
    for span in _spans(u.shape[1], _pieces(u.device)):
        part = x.each(span.of)
        y, borders = span.of(y_BLD), span.of_saved(borders_BKGNP)
        h_BFGNP = _chain(h_BGNP, part, _run(part)) if span.pieces > 1 else h_BGNP[:, None].clone()
        for b in _blocks(part):
            _forward_rows(part.rows(b), h_BFGNP[b], y[b], borders[b])
        h_BGNP = h_BFGNP[:, -1]
    return y_BLD, _ungrouped(h_BGNP), borders_BKGNP


def backward(
    grad_y: Tensor,
    grad_final: Tensor | None,
    borders_BKGNP: Tensor,
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
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state, by the adjoint recurrence

        g_t = C_t dy_t + exp(d_{t+1} A) g_{t+1}

    from the last step to the first. Those of absent D, z, delta_bias are empty.
    """
    x = _scan(u, delta, A, B, C, D, z, delta_bias, delta_softplus, seq_idx)
    grads = _room_for_gradients(x)
    g_BGNP = _grouped(grad_final, x)
    for span in reversed(_spans(u.shape[1], _pieces(u.device))):
        part, dpart, dy = x.each(span.of), grads.each(span.of), span.of(grad_y)
        borders = span.of_saved(borders_BKGNP)
        g_BFGNP = g_BGNP[:, None].clone()
        if span.pieces > 1:
            g_BFGNP = _chain(g_BGNP, part, _run_back(part, dy), reverse=True)
        for b in _blocks(part):
            _backward_rows(part.rows(b), dy[b], borders[b], g_BFGNP[b], dpart.rows(b))
        g_BGNP = g_BFGNP[:, 0]
    dA_DN = _ungrouped(grads.A_GNP[None])[0].to(A.dtype)
    dD, dz, dbias = (
        u.new_empty(0) if v is None or grad is None else grad.to(v.dtype)
        for v, grad in ((D, grads.D_D), (z, grads.z), (delta_bias, grads.bias_D))
    )
    return grads.u, grads.delta, dA_DN, grads.B, grads.C, dD, dz, dbias, _ungrouped(g_BGNP)


def saved_shape(u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
    """Shape of the states that `forward` saves for `backward`: [B, K, G, N, P]."""
    (batch, length, channels), groups, pieces = u.shape, B.shape[2], _pieces(u.device)
    tiles = pieces * _tiles(length // pieces) + _tiles(length % pieces)
    return batch, tiles, groups, A.shape[1], channels // groups


def _forward_rows(x: _Scan, h_BFGNP: Tensor, y: Tensor, borders: Tensor) -> None:
    """Writes y and the state before every tile; leaves the last state in h."""
    scratch = _scratch(x, 2)
    for k, t in _tile_slices(x):
        borders[:, :, k] = h_BFGNP
        tile = x.tile(t)
        d = tile.step_sizes(tile.biased())
        a, h = _tile_arrays(tile, scratch)
        _decays(a, tile, d)
        _states(h, a, tile, d * tile.u, h_BFGNP)
        h_BFGNP.copy_(h[:, :, -1])
        y_tile = _over_state(tile.C, h)
        if tile.D_D is not None:
            y_tile.addcmul_(tile.u, tile.D_D)
        y[:, :, t] = y_tile if tile.z is None else y_tile.mul_(F.silu(tile.z))


def _backward_rows(
    x: _Scan, dy_rows: Tensor, borders: Tensor, g_BFGNP: Tensor, grads: _Scan
) -> None:
    """Writes the gradients; g is that of the last state on entry, of the first state on return."""
    scratch = _scratch(x, 3)
    for k, t in reversed(_tile_slices(x)):
        tile, dy, entry = x.tile(t), dy_rows[:, :, t].to(x.A_GNP.dtype), borders[:, :, k]
        biased = tile.biased()
        d = tile.step_sizes(biased)
        drive = d * tile.u  # what B writes into the state
        a, h, g = _tile_arrays(tile, scratch)
        _decays(a, tile, d)
        _states(h, a, tile, drive, entry)

        if tile.z is not None and grads.z is not None:
            y = _over_state(tile.C, h)
            if tile.D_D is not None:
                y.addcmul_(tile.u, tile.D_D)
            grads.z[:, :, t] = torch.ops.aten.silu_backward(y.mul_(dy), tile.z)
            dy = F.silu(tile.z).mul_(dy)

        grads.C[:, :, t] = _over_channels(dy, h)
        _adjoints(g, a, tile, dy, g_BFGNP)
        grads.B[:, :, t] = _over_channels(drive, g)
        dx = _over_state(tile.B, g)  # gradient of drive

        a.mul_(g)  # a g: first what goes on to the step before ...
        g_BFGNP.copy_(a[:, :, 0])
        a[:, :, 1:].mul_(h[:, :, :-1])
        a[:, :, 0].mul_(entry)  # ... then a g h, the gradient of d A
        dd = (dx * tile.u).view_as(a[..., 0, :])
        dd = dd.add_(torch.mul(a, tile.A_GNP, out=g).sum(-2)).view_as(dx)
        grads.A_GNP.add_(a.mul_(tile.by_group(d)).sum(2).sum((0, 1)))

        if tile.softplus:
            dd = torch.ops.aten.softplus_backward(dd, biased, 1, 20)
        du = dx.mul_(d)
        if tile.D_D is not None and grads.D_D is not None:
            grads.D_D.add_((dy * tile.u).sum((0, 1, 2)))
            du.addcmul_(dy, tile.D_D)
        if grads.bias_D is not None:
            grads.bias_D.add_(dd.sum((0, 1, 2)))
        grads.u[:, :, t], grads.delta[:, :, t] = du, dd


# --- between pieces -----------------------------------------------------------------------------


def _chain(first: Tensor, x: _Scan, ends: Tensor, reverse: bool = False) -> Tensor:
    """State before each piece [B, F, G, N, P], from the first one and what the pieces end with.

    In reverse: gradient of the state after each piece, from that of the last.
    """
    d = x.step_sizes(x.biased().to(first.dtype)).sum(2, keepdim=True)
    decay = (x.by_group(d).squeeze(2) * (x.A_GNP * LOG2_E)).exp2_()
    if x.keep is not None:
        decay *= x.keep.amin(2)[..., None, None, None]
    states = torch.empty_like(ends)
    order = range(ends.shape[1])
    for f in reversed(order) if reverse else order:
        states[:, f] = first
        first = torch.addcmul(ends[:, f], decay[:, f], first)
    return states


def _run(x: _Scan) -> Tensor:
    """What each piece ends with when it starts at zero [B, F, G, N, P]."""
    ends = x.A_GNP.new_zeros(*x.u.shape[:2], *x.A_GNP.shape)
    scratch = _scratch(x, 2)
    for b in _blocks(x):
        for _, t in _tile_slices(x):
            tile = x.rows(b).tile(t)
            d = tile.step_sizes(tile.biased())
            a, h = _tile_arrays(tile, scratch)
            _decays(a, tile, d)
            _states(h, a, tile, d * tile.u, ends[b])
            ends[b] = h[:, :, -1]
    return ends


def _run_back(x: _Scan, dy_rows: Tensor) -> Tensor:
    """Gradient of each piece's first state when its last state has none [B, F, G, N, P]."""
    starts = x.A_GNP.new_zeros(*x.u.shape[:2], *x.A_GNP.shape)
    scratch = _scratch(x, 2)
    for b in _blocks(x):
        for _, t in reversed(_tile_slices(x)):
            tile, dy = x.rows(b).tile(t), dy_rows[b, :, t].to(x.A_GNP.dtype)
            a, g = _tile_arrays(tile, scratch)
            _decays(a, tile, tile.step_sizes(tile.biased()))
            _adjoints(g, a, tile, dy if tile.z is None else dy * F.silu(tile.z), starts[b])
            starts[b] = a[:, :, 0] * g[:, :, 0]
    return starts


# --- one tile: a, h, g are [B, F, T, G, N, P] ---------------------------------------------------


def _decays(a: Tensor, x: _Scan, d: Tensor) -> None:
    torch.mul(x.by_group(d), x.A_GNP * LOG2_E, out=a)  # exp2: faster than exp on CPU and GPU
    a.exp2_()
    if x.keep is not None:
        a.mul_(x.keep[..., None, None, None])


def _states(h: Tensor, a: Tensor, x: _Scan, drive: Tensor, entry: Tensor) -> None:
    torch.mul(x.B[..., None], x.by_group(drive), out=h)
    for h_t, a_t in zip(h.unbind(2), a.unbind(2), strict=True):
        entry = h_t.addcmul_(a_t, entry)


def _adjoints(g: Tensor, a: Tensor, x: _Scan, dy: Tensor, after: Tensor) -> None:
    torch.mul(x.C[..., None], x.by_group(dy), out=g)
    gs, decays = g.unbind(2), a.unbind(2)
    gs[-1].add_(after)
    for t in range(len(gs) - 2, -1, -1):
        gs[t].addcmul_(decays[t + 1], gs[t + 1])


def _over_state(C: Tensor, h: Tensor) -> Tensor:
    """sum_n C h, as [B, F, T, D]."""
    *outer, groups, n, p = h.shape
    rows = math.prod(outer) * groups
    return torch.bmm(C.reshape(rows, 1, n), h.view(rows, n, p)).view(*outer, groups * p)


def _over_channels(x: Tensor, h: Tensor) -> Tensor:
    """sum_p x h, as [B, F, T, G, N]. Row times matrix: matrix times column is ten times slower."""
    *outer, n, p = h.shape
    rows = math.prod(outer)
    return torch.bmm(x.reshape(rows, 1, p), h.view(rows, n, p).mT).view(h.shape[:-1])


# --- shapes and sizes ---------------------------------------------------------------------------


def _scan(
    u: Tensor,
    delta: Tensor,
    A_DN: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    bias: Tensor | None,
    softplus: bool,
    seq_idx: Tensor | None,
) -> _Scan:
    dtype, groups = state_dtype(u), B.shape[2]
    A_GNP = A_DN.to(dtype).unflatten(0, (groups, -1)).mT.contiguous()
    keep = None
    if seq_idx is not None:
        keep = F.pad((seq_idx[:, 1:] == seq_idx[:, :-1]).to(dtype), (1, 0), value=1.0)
    D, bias = (None if v is None else v.to(dtype) for v in (D, bias))
    return _Scan(u, delta, B, C, z, keep, A_GNP, D, bias, softplus)


def _room_for_gradients(x: _Scan) -> _Scan:
    """Of what has rows and steps: to be written; of what all rows share: zeros, to be added to."""
    grads = x._replace(keep=None)
    grads = grads.each(lambda v: torch.empty(v.shape, dtype=v.dtype, device=v.device))
    A_GNP, D, bias = (None if v is None else torch.zeros_like(v) for v in x[6:9])
    return grads._replace(A_GNP=A_GNP, D_D=D, bias_D=bias)


def _grouped(h_BDN: Tensor | None, x: _Scan) -> Tensor:
    """A state as [B, G, N, P], zero if there is none."""
    if h_BDN is None:
        return x.A_GNP.new_zeros(x.u.shape[0], *x.A_GNP.shape)
    return h_BDN.to(x.A_GNP.dtype).unflatten(1, (x.A_GNP.shape[0], -1)).mT


def _ungrouped(h_BGNP: Tensor) -> Tensor:
    return h_BGNP.mT.flatten(1, 2).clone(memory_format=torch.contiguous_format)


def _pieces(device: torch.device) -> int:
    return 1 if device.type == "cpu" else FOLD


def _tiles(length: int) -> int:
    return (length + TILE - 1) // TILE


def _spans(length: int, pieces: int) -> list[_Span]:
    """What divides into equal pieces, and the few steps that remain."""
    even = length - length % pieces
    tiles = pieces * _tiles(even // pieces)
    rest = slice(tiles, tiles + _tiles(length - even))
    spans = [_Span(slice(0, even), slice(0, tiles), pieces), _Span(slice(even, length), rest, 1)]
    return [s for s in spans if s.steps.stop > s.steps.start]


def _tile_slices(x: _Scan) -> list[tuple[int, slice]]:
    return [(k, slice(k * TILE, (k + 1) * TILE)) for k in range(_tiles(x.u.shape[2]))]


def _block_size(x: _Scan) -> int:
    """Rows computed at once: as many as fit the scratch arrays; one where a dimension is empty."""
    room = SCRATCH_CPU if x.u.device.type == "cpu" else SCRATCH_GPU
    most = room // max(1, x.u.shape[1] * TILE * x.A_GNP.numel())
    return max(1, min(x.u.shape[0], most))


def _blocks(x: _Scan) -> list[slice]:
    size = _block_size(x)
    return [slice(b, b + size) for b in range(0, x.u.shape[0], size)]


def _scratch(x: _Scan, count: int) -> Tensor:
    steps = min(TILE, x.u.shape[2])
    return x.A_GNP.new_empty(count, _block_size(x) * x.u.shape[1] * steps * x.A_GNP.numel())


def _tile_arrays(tile: _Scan, scratch: Tensor) -> list[Tensor]:
    shape = (*tile.u.shape[:3], *tile.A_GNP.shape)
    return [s[: math.prod(shape)].view(shape) for s in scratch]
