"""The selective scan for states larger than a backend's kernels take: in slices of the state.

The slices share nothing but sums. y is linear in the states, and so is every gradient but those of
A, B, C and the initial state, which belong to one slice each: the parts are added, or set side by
side. The skip D u goes with the first slice; the gate, a factor, with every one.

Shapes: B batch, L length, D channels, N state, G groups of channels.
"""

import math
from itertools import repeat
from types import ModuleType

import torch
from torch import Tensor


class Sliced:
    """A backend from kernels that take states up to their LARGEST_STATE; others in slices of that.

    The interface is that of the kernels' module, any state allowed. Parts are computed and added in
    float32, and what the slices save lies end to end in one tensor of one axis.
    """

    def __init__(self, kernels: ModuleType) -> None:
        self.kernels = kernels

    def why_not(self, u: Tensor, A: Tensor, B: Tensor) -> str | None:
        """What keeps the kernels from the inputs; None if nothing does."""
        return self.kernels.why_not(u, self._parts(A)[0], B)

    def saved_shape(self, u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
        shapes = self._saved_shapes(u, A, B)
        return shapes[0] if len(shapes) == 1 else (sum(map(math.prod, shapes)),)

    def forward(
        self,
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
        """y [B, L, D] in u's dtype, the final state [B, D, N], what `backward` needs."""
        if A.shape[1] <= self.kernels.LARGEST_STATE:
            return self.kernels.forward(
                u, delta, A, B, C, D, z, delta_bias, delta_softplus, initial_state, seq_idx
            )
        u32, delta, z = u.float(), delta.float(), _float(z)
        y, finals, saved = torch.empty(0), [], []
        initials = repeat(None) if initial_state is None else self._parts(initial_state)
        slices = zip(*map(self._parts, (A, B, C)), initials, strict=False)
        for i, (A_n, B_n, C_n, initial_n) in enumerate(slices):
            part, final, states = self.kernels.forward(
                u32, delta, A_n, B_n, C_n, D if i == 0 else None, z, delta_bias,
                delta_softplus, initial_n, seq_idx,
            )  # fmt: skip
            y = part if i == 0 else y.add_(part)
            finals.append(final)
            saved.append(states.flatten())
        return y.to(u.dtype), torch.cat(finals, -1), torch.cat(saved)

    def backward(
        self,
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
    ) -> tuple[Tensor, ...]:
        """Gradients of u, delta, A, B, C, D, z, delta_bias, initial_state; empty where absent."""
        if A.shape[1] <= self.kernels.LARGEST_STATE:
            return self.kernels.backward(
                grad_y, grad_final, saved, u, delta, A, B, C, D, z, delta_bias, delta_softplus,
                seq_idx,
            )  # fmt: skip
        shapes = self._saved_shapes(u, A, B)
        states = saved.split([math.prod(shape) for shape in shapes])
        rows = (u.float(), delta.float())
        gate, bias, dy = _float(z), _float(delta_bias), grad_y.float()
        sums, parts, dD = [], [], u.new_empty(0)
        finals = repeat(None) if grad_final is None else self._parts(grad_final)
        slices = zip(*map(self._parts, (A, B, C)), finals, strict=False)
        for i, (A_n, B_n, C_n, final_n) in enumerate(slices):
            du, ddelta, dA, dB, dC, skip, dz, dbias, dstate = self.kernels.backward(
                dy, final_n, states[i].view(shapes[i]), *rows, A_n, B_n, C_n,
                D if i == 0 else None, gate, bias, delta_softplus, seq_idx,
            )  # fmt: skip
            if i == 0:
                sums, dD = [du, ddelta, dz, dbias], skip
            else:
                for total, part in zip(sums, (du, ddelta, dz, dbias), strict=True):
                    total.add_(part)
            parts.append((dA, dB, dC, dstate))
        dA, dB, dC, dstate = (torch.cat(p, -1) for p in zip(*parts, strict=True))
        du, ddelta, dz, dbias = (
            u.new_empty(0) if x is None else g.to(x.dtype)
            for g, x in zip(sums, (u, delta, z, delta_bias), strict=True)
        )
        dD = u.new_empty(0) if D is None else dD
        return du, ddelta, dA, dB, dC, dD, dz, dbias, dstate

    def _saved_shapes(self, u: Tensor, A: Tensor, B: Tensor) -> list[tuple[int, ...]]:
        return [self.kernels.saved_shape(u, A_n, B) for A_n in self._parts(A)]

    def _parts(self, x: Tensor) -> tuple[Tensor, ...]:
        largest = self.kernels.LARGEST_STATE
        return (x,) if x.shape[-1] <= largest else x.split(largest, -1)


def _float(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.float()
