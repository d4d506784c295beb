"""Attention and an SSM side by side on the same input, as the heads of Hymba are.

Hymba (Dong et al. 2024, arXiv:2411.13676, section 2.1), with an output projection for each half
and without meta tokens.

Shapes: B batch, L length, D model width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.attention import Attention, AttentionState
from scangolf.layers.linear import Linear
from scangolf.layers.mixer import Mixer
from scangolf.layers.norm import rms_norm
from scangolf.layers.ssd import SSD, SSDState


class ParallelState(NamedTuple):
    attention: AttentionState
    ssm: SSDState


class Parallel(Mixer):
    """The mean of both outputs, each RMS-normalised and scaled per channel."""

    groups = {"attention_scale": "vector", "ssm_scale": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.attention = Attention(config)
        self.ssm = SSD(config)
        self.attention_scale = nn.Parameter(torch.empty(config.d_model))
        self.ssm_scale = nn.Parameter(torch.empty(config.d_model))
        # A block starts as the identity by its scales: behind a norm, output projections that
        # start at zero would write at full strength after one step.
        for half in (self.attention, self.ssm):
            half.out_proj = Linear(half.out_proj.weight.shape[1], config.d_model)

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.zeros_(self.attention_scale)
        nn.init.zeros_(self.ssm_scale)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> ParallelState:
        return ParallelState(
            self.attention.init_state(batch, device, dtype),
            self.ssm.init_state(batch, device, dtype),
        )

    def forward(
        self, x_BLD: Tensor, state: ParallelState | None = None
    ) -> tuple[Tensor, ParallelState | None]:
        attended, attention = self.attention(x_BLD, None if state is None else state.attention)
        scanned, ssm = self.ssm(x_BLD, None if state is None else state.ssm)
        after = None if state is None else ParallelState(attention, ssm)
        return self._mean(attended, scanned), after

    def step(self, x_BD: Tensor, state: ParallelState) -> tuple[Tensor, ParallelState]:
        attended, attention = self.attention.step(x_BD, state.attention)
        scanned, ssm = self.ssm.step(x_BD, state.ssm)
        return self._mean(attended, scanned), ParallelState(attention, ssm)

    @property
    def out_gain(self) -> Tensor:
        return torch.cat([self.attention_scale, self.ssm_scale])

    def _mean(self, attended: Tensor, scanned: Tensor) -> Tensor:
        a, s = self.attention_scale.to(attended.dtype), self.ssm_scale.to(scanned.dtype)
        return 0.5 * (a * rms_norm(attended) + s * rms_norm(scanned))
