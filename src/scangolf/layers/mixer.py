"""What every sequence mixer offers, so that a block need not know which one it holds.

Shapes: B batch, L length, D model width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

State = Any
"""What a mixer remembers between calls: a tuple of tensors that only the mixer itself reads."""


class Mixer(nn.Module):
    """Maps x_BLD to y_BLD, where position t of the output depends on positions up to t only."""

    def forward(self, x_BLD: Tensor, state: State | None = None) -> tuple[Tensor, State | None]:
        """Mixes a whole sequence.

        With a `state` the sequence continues the one the state was left by, and the state after
        it is returned; without one the sequence starts fresh and None is returned.
        """
        raise NotImplementedError

    def step(self, x_BD: Tensor, state: State) -> tuple[Tensor, State]:
        """Mixes one position: what decoding calls a token."""
        y_BLD, state = self(x_BD[:, None], state)
        return y_BLD[:, 0], state

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> State:
        """The state before the first position."""
        raise NotImplementedError

    @property
    def out_gain(self) -> Tensor:
        """What scales the channels of the output, for reports."""
        return self.out_proj.gain  # type: ignore[union-attr,return-value]
