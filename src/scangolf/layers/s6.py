"""The selective-scan layer (Gu & Dao 2023, Mamba, section 3.4) on `scangolf.selective_scan`.

Shapes: B batch, L length, D model width, E inner width, N state, R rank of delta.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.conv import CausalConv
from scangolf.layers.dynamics import init_dt_bias
from scangolf.layers.linear import Linear, OutProjection
from scangolf.layers.mixer import Mixer
from scangolf.ops.s6 import selective_scan
from scangolf.ops.s6_step import selective_state_update


class S6State(NamedTuple):
    conv_BKE: Tensor
    h_BEN: Tensor


class ScanMixer(Mixer):
    """Input projection, causal convolution, SiLU, scan gated by z, output projection.

    Subclasses add the projections that produce delta, B and C, and return all that the scan
    takes from `scan_inputs`.
    """

    def __init__(self, config: ModelConfig, *, conv_weight_group: str, conv_bias_group: str):
        super().__init__()
        self.d_state = config.s6.d_state
        E = config.s6.expand * config.d_model
        self.sizes = (E, E)  # of x and z
        self.in_proj = Linear(config.d_model, sum(self.sizes))
        self.conv = CausalConv(
            E, config.s6.d_conv, weight_group=conv_weight_group, bias_group=conv_bias_group
        )
        self.A_log = nn.Parameter(torch.empty(E, self.d_state))
        self.D = nn.Parameter(torch.empty(E))
        self.out_proj = OutProjection(E, config.d_model)

    def init_weights(self, generator: torch.Generator) -> None:
        with torch.no_grad():
            self.A_log.copy_(torch.arange(1, self.d_state + 1).float().log())
            self.D.fill_(1.0)

    def scan_inputs(self, u: Tensor, z: Tensor) -> dict[str, Any]:
        """The scan's arguments, for a sequence [B, L, E] or a single position [B, E]."""
        raise NotImplementedError

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> S6State:
        h_BEN = self.A_log.new_zeros(batch, *self.A_log.shape, device=device)
        return S6State(self.conv.init_state(batch, device, dtype), h_BEN)

    def forward(self, x_BLD: Tensor, state: S6State | None = None) -> tuple[Tensor, S6State | None]:
        x_BLE, z_BLE = self.in_proj.parts(x_BLD, self.sizes)
        u_BLE = self.conv.silu(x_BLE, None if state is None else state.conv_BKE)
        inputs = self.scan_inputs(u_BLE, z_BLE)
        if state is None:
            y_BLE = selective_scan(**inputs, delta_softplus=True)
            return self.out_proj(y_BLE), None
        y_BLE, h_BEN = selective_scan(
            **inputs, delta_softplus=True, initial_state=state.h_BEN, return_final_state=True
        )
        return self.out_proj(y_BLE), S6State(self.conv.after(x_BLE, state.conv_BKE), h_BEN)

    def step(self, x_BD: Tensor, state: S6State) -> tuple[Tensor, S6State]:
        x_BE, z_BE = self.in_proj.parts(x_BD, self.sizes)
        x_B1E, conv_BKE = self.conv(x_BE[:, None], state.conv_BKE)
        inputs = self.scan_inputs(F.silu(x_B1E[:, 0]), z_BE)
        y_BE, h_BEN = selective_state_update(state.h_BEN, **inputs, delta_softplus=True)
        return self.out_proj(y_BE), S6State(conv_BKE, h_BEN)


class S6(ScanMixer):
    """delta through a matrix of low rank; one projection for delta, B and C.

    What sets the memory of a channel (A_log, D, the bias of delta, the convolution) is in the
    optimiser group `dynamics`. delta starts log-uniform in [dt_min, dt_max].
    """

    groups = {"A_log": "dynamics", "D": "dynamics", "delta_bias": "dynamics"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config, conv_weight_group="dynamics", conv_bias_group="dynamics")
        s = config.s6
        E = s.expand * config.d_model
        self.dt_rank, self.dt_min, self.dt_max = s.dt_rank, s.dt_min, s.dt_max
        self.x_proj = Linear(E, s.dt_rank + 2 * s.d_state)
        self.x_proj.dt_rows = range(s.dt_rank)
        self.dt_proj = Linear(s.dt_rank, E)
        self.dt_proj.dt_rows = range(E)
        self.delta_bias = nn.Parameter(torch.empty(E))

    def init_weights(self, generator: torch.Generator) -> None:
        super().init_weights(generator)
        init_dt_bias(self.delta_bias, generator, self.dt_min, self.dt_max)

    def scan_inputs(self, u: Tensor, z: Tensor) -> dict[str, Any]:
        delta, B, C = self.x_proj(u).split([self.dt_rank, self.d_state, self.d_state], dim=-1)
        return {
            "u": u,
            "delta": self.dt_proj(delta),
            "A": -torch.exp(self.A_log),
            "B": B,
            "C": C,
            "D": self.D,
            "z": z,
            "delta_bias": self.delta_bias,
        }
