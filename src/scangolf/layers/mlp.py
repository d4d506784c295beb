"""The feed-forward half of a block: squared ReLU (So et al. 2021, Primer)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.linear import Linear, OutProjection
from scangolf.ops.squared_relu import fused_takes, squared_relu_mlp


class MLP(nn.Module):
    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.up = Linear(config.d_model, config.mlp_width)
        self.down = OutProjection(config.mlp_width, config.d_model)

    def forward(self, x_BLD: Tensor) -> Tensor:
        if fused_takes(x_BLD, self.up.weight):
            dtype = x_BLD.dtype
            return squared_relu_mlp(x_BLD, self.up.weight.to(dtype), self.down.scaled_weight(dtype))
        # By the layers' own products, where the compiler fuses and calibration can see them.
        return self.down(F.relu(self.up(x_BLD)).square())
