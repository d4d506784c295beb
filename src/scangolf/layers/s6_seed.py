"""The selective-scan layer as the published 3:1 hybrid had it, defects included.

Kept to measure against, for preset `seed` only; `layers/s6.py` is the layer to use. Its defects:
the convolution's weight is in no optimiser group and never trains; A_log, being 2-D, goes to
Muon, which orthogonalises it; delta has no initialisation of its own, so it starts near 0.69 and
with A from -1 to -16 the state forgets within about one token; delta comes from a full E x E
matrix, 7.3 million parameters over seven layers.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from scangolf.config import ModelConfig
from scangolf.layers.linear import Linear
from scangolf.layers.s6 import ScanMixer


class S6Seed(ScanMixer):
    groups = {"A_log": "matrix", "D": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, conv_weight_group="frozen", conv_bias_group="vector")
        E = config.s6.expand * config.d_model
        self.dt_proj = Linear(E, E, bias=True)
        self.B_proj = Linear(E, self.d_state)
        self.C_proj = Linear(E, self.d_state)

    def scan_inputs(self, u: Tensor, z: Tensor) -> dict[str, Any]:
        return {
            "u": u,
            "delta": self.dt_proj(u),
            "A": -torch.exp(self.A_log),
            "B": self.B_proj(u),
            "C": self.C_proj(u),
            "D": self.D,
            "z": z,
        }
