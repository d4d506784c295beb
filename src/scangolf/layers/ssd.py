"""The layer of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 7) on `scangolf.ops.ssd`.

Shapes: B batch, L length, D model width, H heads, P head size, E = H P inner width, N state,
G groups of heads, U = E + 2 G N channels of the convolution, K its taps less one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.conv import CausalConv
from scangolf.layers.dynamics import init_A_log, init_dt_bias
from scangolf.layers.linear import Linear
from scangolf.layers.mixer import Mixer
from scangolf.layers.norm import rms_norm
from scangolf.ops.ssd import ssd_scan
from scangolf.ops.ssd_step import ssd_state_update


class SSDState(NamedTuple):
    conv_BKU: Tensor
    h_BHPN: Tensor


class SSD(Mixer):
    """One projection for z, x, B, C and dt; one convolution over x, B and C; RMS norm of y silu(z).

    What sets the memory of a head (A_log, D, the bias of dt, the convolution) is in the optimiser
    group `dynamics`.
    """

    groups = dict.fromkeys(("A_log", "D", "dt_bias"), "dynamics")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        s = config.ssd
        E = s.expand * config.d_model
        H, U = E // s.head_dim, E + 2 * s.n_groups * s.d_state
        self.head_dim, self.n_groups, self.d_state = s.head_dim, s.n_groups, s.d_state
        self.projected = (E, U, H)
        self.convolved = (E, s.n_groups * s.d_state, s.n_groups * s.d_state)
        self.in_proj = Linear(config.d_model, sum(self.projected))
        self.conv = CausalConv(U, s.d_conv, weight_group="dynamics", bias_group="dynamics")
        self.A_log = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.out_proj = Linear(E, config.d_model, zero=True)

    def init_weights(self, generator: torch.Generator) -> None:
        init_A_log(self.A_log, generator)
        nn.init.ones_(self.D)
        init_dt_bias(self.dt_bias, generator)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> SSDState:
        H = self.A_log.shape[0]
        h_BHPN = self.A_log.new_zeros(batch, H, self.head_dim, self.d_state, device=device)
        return SSDState(self.conv.init_state(batch, device, dtype), h_BHPN)

    def forward(
        self, x_BLD: Tensor, state: SSDState | None = None
    ) -> tuple[Tensor, SSDState | None]:
        z_BLE, u_BLU, dt_BLH = self.in_proj(x_BLD).split(self.projected, dim=-1)
        past_BKU = None if state is None else state.conv_BKU
        inputs = self._scan_inputs(z_BLE, self.conv.silu(u_BLU, past_BKU), dt_BLH)
        if state is None:
            return self._project(ssd_scan(**inputs)), None
        y_BLHP, h_BHPN = ssd_scan(**inputs, initial_state=state.h_BHPN, return_final_state=True)
        return self._project(y_BLHP), SSDState(self.conv.after(u_BLU, state.conv_BKU), h_BHPN)

    def step(self, x_BD: Tensor, state: SSDState) -> tuple[Tensor, SSDState]:
        z_BE, u_BU, dt_BH = self.in_proj(x_BD).split(self.projected, dim=-1)
        u_B1U, conv_BKU = self.conv(u_BU[:, None], state.conv_BKU)
        inputs = self._scan_inputs(z_BE, F.silu(u_B1U[:, 0]), dt_BH)
        y_BHP, h_BHPN = ssd_state_update(state.h_BHPN, **inputs)
        return self._project(y_BHP), SSDState(conv_BKU, h_BHPN)

    def _scan_inputs(self, z: Tensor, u: Tensor, dt: Tensor) -> dict[str, Any]:
        """The scan's arguments, for a sequence [B, L, ...] or a single position [B, ...]."""
        x, B, C = u.split(self.convolved, dim=-1)
        return {
            "x": x.unflatten(-1, (-1, self.head_dim)),
            "dt": dt,
            "A": -torch.exp(self.A_log),
            "B": B.unflatten(-1, (self.n_groups, -1)),
            "C": C.unflatten(-1, (self.n_groups, -1)),
            "D": self.D,
            "z": z.unflatten(-1, (-1, self.head_dim)),
            "dt_bias": self.dt_bias,
            "dt_softplus": True,
        }

    def _project(self, y: Tensor) -> Tensor:
        """Heads [..., H, P], gated by the scan, to the model's width."""
        return self.out_proj(rms_norm(y.flatten(-2)))
