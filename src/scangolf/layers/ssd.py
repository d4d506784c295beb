"""The layer of Mamba-2 (Dao & Gu 2024, arXiv:2405.21060, section 7) on `scangolf.ops.ssd`.

Shapes: B batch, L length, D model width, H heads, P head size, E = H P inner width, N state,
G groups of heads, W = 2 G N width of B and C, K taps of the convolution less one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scangolf.config import ModelConfig
from scangolf.layers.conv import CausalConv
from scangolf.layers.dynamics import init_A_log, init_dt_bias
from scangolf.layers.linear import Linear, OutProjection
from scangolf.layers.mixer import Mixer
from scangolf.ops.gated_norm import gated_rms_norm
from scangolf.ops.ssd import ssd_scan
from scangolf.ops.ssd_step import ssd_state_update


class SSDState(NamedTuple):
    x_BKE: Tensor
    BC_BKW: Tensor
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
        H, W = E // s.head_dim, 2 * s.n_groups * s.d_state
        self.head_dim, self.n_groups = s.head_dim, s.n_groups
        self.sizes = (E, E, W, H)  # of z, x, B and C, dt
        self.in_proj = Linear(config.d_model, sum(self.sizes))
        self.in_proj.dt_rows = range(sum(self.sizes) - H, sum(self.sizes))
        # Two convolutions, so that their outputs, and the gradients of these, need no copies.
        self.x_conv, self.BC_conv = (
            CausalConv(width, s.d_conv, weight_group="dynamics", bias_group="dynamics")
            for width in (E, W)
        )
        self.A_log = nn.Parameter(torch.empty(H))
        self.D = nn.Parameter(torch.empty(H))
        self.dt_bias = nn.Parameter(torch.empty(H))
        self.out_proj: Linear = OutProjection(E, config.d_model)

    def init_weights(self, generator: torch.Generator) -> None:
        init_A_log(self.A_log, generator)
        nn.init.ones_(self.D)
        init_dt_bias(self.dt_bias, generator)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> SSDState:
        H, N = self.A_log.shape[0], self.sizes[2] // (2 * self.n_groups)
        h_BHPN = self.A_log.new_zeros(batch, H, self.head_dim, N, device=device)
        x_BKE, BC_BKW = (c.init_state(batch, device, dtype) for c in (self.x_conv, self.BC_conv))
        return SSDState(x_BKE, BC_BKW, h_BHPN)

    def forward(
        self, x_BLD: Tensor, state: SSDState | None = None
    ) -> tuple[Tensor, SSDState | None]:
        z_BLE, x_BLE, BC_BLW, dt_BLH = self._projections(x_BLD)
        if state is None:
            inputs = self._scan_inputs(self.x_conv.silu(x_BLE), self.BC_conv.silu(BC_BLW), dt_BLH)
            return self._project(ssd_scan(**inputs), z_BLE), None
        convolved = (self.x_conv.silu(x_BLE, state.x_BKE), self.BC_conv.silu(BC_BLW, state.BC_BKW))
        inputs = self._scan_inputs(*convolved, dt_BLH)
        y_BLHP, h_BHPN = ssd_scan(**inputs, initial_state=state.h_BHPN, return_final_state=True)
        x_BKE = self.x_conv.after(x_BLE, state.x_BKE)
        BC_BKW = self.BC_conv.after(BC_BLW, state.BC_BKW)
        return self._project(y_BLHP, z_BLE), SSDState(x_BKE, BC_BKW, h_BHPN)

    def step(self, x_BD: Tensor, state: SSDState) -> tuple[Tensor, SSDState]:
        z_BE, x_BE, BC_BW, dt_BH = self._projections(x_BD)
        x_B1E, x_BKE = self.x_conv(x_BE[:, None], state.x_BKE)
        BC_B1W, BC_BKW = self.BC_conv(BC_BW[:, None], state.BC_BKW)
        inputs = self._scan_inputs(F.silu(x_B1E[:, 0]), F.silu(BC_B1W[:, 0]), dt_BH)
        y_BHP, h_BHPN = ssd_state_update(state.h_BHPN, **inputs)
        return self._project(y_BHP, z_BE), SSDState(x_BKE, BC_BKW, h_BHPN)

    def _projections(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """z, x, B and C, dt; the last two, small, from one product."""
        E, _, W, H = self.sizes
        z, x, rest = self.in_proj.parts(x, (E, E, W + H))
        BC, dt = rest.split((W, H), dim=-1)
        return z, x, BC, dt

    def _scan_inputs(self, x: Tensor, BC: Tensor, dt: Tensor) -> dict[str, Any]:
        """The scan's arguments, for a sequence [B, L, ...] or a single position [B, ...]."""
        B, C = BC.chunk(2, dim=-1)
        return {
            "x": x.unflatten(-1, (-1, self.head_dim)),
            "dt": dt,
            "A": -torch.exp(self.A_log),
            "B": B.unflatten(-1, (self.n_groups, -1)),
            "C": C.unflatten(-1, (self.n_groups, -1)),
            "D": self.D,
            "dt_bias": self.dt_bias,
            "dt_softplus": True,
        }

    def _project(self, y: Tensor, z: Tensor) -> Tensor:
        """Heads [..., H, P], gated and normalised together, to the model's width."""
        return self.out_proj(gated_rms_norm(y.flatten(-2), z))
