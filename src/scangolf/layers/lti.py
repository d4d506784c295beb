"""The selective-scan layer without selection: its control, a fixed linear filter in each channel.

B, C and delta are learned constants, not functions of the input, so that the scan is linear and
time-invariant, as in S4D (Gu et al. 2022, arXiv:2206.11893). All else is layers/s6.py, sizes
included.

Shapes: B batch, L length, E inner width, N state.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.dynamics import init_dt_bias
from scangolf.layers.s6 import ScanMixer


class LTI(ScanMixer):
    """delta is the bias of delta alone; B starts at one, C normal, as in S4D.

    All of the filter is in the optimiser group `dynamics`.
    """

    groups = dict.fromkeys(("A_log", "D", "B", "C", "delta_bias"), "dynamics")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, conv_weight_group="dynamics", conv_bias_group="dynamics")
        self.dt_min, self.dt_max = config.s6.dt_min, config.s6.dt_max
        self.B = nn.Parameter(torch.empty(self.d_state))
        self.C = nn.Parameter(torch.empty(self.d_state))
        self.delta_bias = nn.Parameter(torch.empty(config.s6.expand * config.d_model))

    def init_weights(self, generator: torch.Generator) -> None:
        super().init_weights(generator)
        nn.init.ones_(self.B)
        nn.init.normal_(self.C, generator=generator)
        init_dt_bias(self.delta_bias, generator, self.dt_min, self.dt_max)

    def scan_inputs(self, u: Tensor, z: Tensor) -> dict[str, Any]:
        # One row in memory for all positions: what does not change is expanded, not repeated.
        positions = u.shape[:-1]
        return {
            "u": u,
            "delta": u.new_zeros(u.shape[-1]).expand_as(u),
            "A": -torch.exp(self.A_log),
            "B": self.B.to(u.dtype).expand(*positions, -1),
            "C": self.C.to(u.dtype).expand(*positions, -1),
            "D": self.D,
            "z": z,
            "delta_bias": self.delta_bias,
        }
