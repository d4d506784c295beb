"""Causal depthwise convolution over time: each channel sees its own last few values.

Shapes: B batch, L length, E channels, K taps.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.ops.conv import causal_conv_silu


class CausalConv(nn.Module):
    """y_t = bias + sum_k weight[k] x_{t-K+1+k}, for every channel.

    Sequences take `silu`, one operator; single positions take `forward`, K shifted products. Both
    work in [batch, length, channels], and nothing has to be transposed. The parameters have
    nn.Conv1d's shapes.
    """

    def __init__(self, channels: int, taps: int, *, weight_group: str, bias_group: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, 1, taps))
        self.bias = nn.Parameter(torch.empty(channels))
        self.groups = {"weight": weight_group, "bias": bias_group}

    def init_weights(self, generator: torch.Generator) -> None:
        bound = self.weight.shape[-1] ** -0.5
        for parameter in self.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> Tensor:
        """The K - 1 values before the first position: zeros."""
        channels, _, taps = self.weight.shape
        return torch.zeros(batch, taps - 1, channels, device=device, dtype=dtype)

    def forward(self, x_BLE: Tensor, past_BKE: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Returns the output and the last K - 1 inputs, with which the next call continues."""
        L = x_BLE.shape[1]
        taps = self.weight.shape[-1]
        if past_BKE is None:
            padded = F.pad(x_BLE, (0, 0, taps - 1, 0))
        else:
            padded = torch.cat([past_BKE, x_BLE], dim=1)
        weight_EK = self.weight[:, 0]
        y_BLE = self.bias + padded[:, :L] * weight_EK[:, 0]  # float32, and rounded once
        for k in range(1, taps):
            y_BLE = torch.addcmul(y_BLE, padded[:, k : k + L].to(y_BLE.dtype), weight_EK[:, k])
        return y_BLE.to(x_BLE.dtype), padded[:, L:]

    def silu(self, x_BLE: Tensor, past_BKE: Tensor | None = None) -> Tensor:
        """SiLU of the output."""
        return causal_conv_silu(x_BLE, self.weight[:, 0], self.bias, initial=past_BKE)

    def after(self, x_BLE: Tensor, past_BKE: Tensor) -> Tensor:
        """The last K - 1 inputs, as `forward` returns them."""
        recent_BKE = x_BLE[:, max(x_BLE.shape[1] - past_BKE.shape[1], 0) :]
        return torch.cat([past_BKE, recent_BKE], dim=1)[:, recent_BKE.shape[1] :]
