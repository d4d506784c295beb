"""Gated DeltaNet (Yang, Kautz & Hatamizadeh 2024, arXiv:2412.06464, section 3.4).

Shapes: B batch, L length, D model width, H heads, N key size, P value size, U = H (2 N + P)
channels of the convolution, K its taps less one.
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
from scangolf.layers.norm import rms_norm
from scangolf.ops.gdn import gated_delta_rule
from scangolf.ops.gdn_step import gated_delta_step


class GDNState(NamedTuple):
    conv_BKU: Tensor
    S_BHNP: Tensor


class GDN(Mixer):
    """Writes values under keys into a matrix a head that decays, replacing what the key held.

    Queries, keys and values pass a convolution and SiLU; queries and keys are L2-normalised. The
    decay is exp(-exp(A_log) softplus(a + dt_bias)), the share replaced sigmoid(b), a and b linear
    in the input. Each head's output is RMS-normalised and gated by SiLU.

    What sets the memory of a head (A_log, dt_bias, the convolution) is in the optimiser group
    `dynamics`.
    """

    groups = dict.fromkeys(("A_log", "dt_bias"), "dynamics")

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        g = config.gdn
        self.key_dim, self.value_dim = g.key_dim, g.value_dim
        keys, values = g.n_heads * g.key_dim, g.n_heads * g.value_dim
        self.projected = (2 * keys + values, values)
        self.convolved = (keys, keys, values)
        self.in_proj = Linear(config.d_model, sum(self.projected))
        # Apart from in_proj: matrix products are fastest where widths are multiples of 8.
        self.ab_proj = Linear(config.d_model, 2 * g.n_heads)
        self.ab_proj.dt_rows = range(2 * g.n_heads)
        self.conv = CausalConv(
            sum(self.convolved), g.d_conv, weight_group="dynamics", bias_group="dynamics"
        )
        self.A_log = nn.Parameter(torch.empty(g.n_heads))
        self.dt_bias = nn.Parameter(torch.empty(g.n_heads))
        self.out_proj = OutProjection(values, config.d_model)

    def init_weights(self, generator: torch.Generator) -> None:
        init_A_log(self.A_log, generator)
        init_dt_bias(self.dt_bias, generator)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> GDNState:
        H = self.A_log.shape[0]
        S_BHNP = self.A_log.new_zeros(batch, H, self.key_dim, self.value_dim, device=device)
        return GDNState(self.conv.init_state(batch, device, dtype), S_BHNP)

    def forward(
        self, x_BLD: Tensor, state: GDNState | None = None
    ) -> tuple[Tensor, GDNState | None]:
        u_BLU, gate_BLE = self.in_proj(x_BLD).split(self.projected, dim=-1)
        past_BKU = None if state is None else state.conv_BKU
        inputs = self._rule_inputs(x_BLD, self.conv.silu(u_BLU, past_BKU))
        if state is None:
            return self._project(gated_delta_rule(**inputs), gate_BLE), None
        o_BLHP, S_BHNP = gated_delta_rule(
            **inputs, initial_state=state.S_BHNP, return_final_state=True
        )
        state = GDNState(self.conv.after(u_BLU, state.conv_BKU), S_BHNP)
        return self._project(o_BLHP, gate_BLE), state

    def step(self, x_BD: Tensor, state: GDNState) -> tuple[Tensor, GDNState]:
        u_BU, gate_BE = self.in_proj(x_BD).split(self.projected, dim=-1)
        u_B1U, conv_BKU = self.conv(u_BU[:, None], state.conv_BKU)
        inputs = self._rule_inputs(x_BD, F.silu(u_B1U[:, 0]))
        o_BHP, S_BHNP = gated_delta_step(state.S_BHNP, **inputs)
        return self._project(o_BHP, gate_BE), GDNState(conv_BKU, S_BHNP)

    def _rule_inputs(self, x: Tensor, u: Tensor) -> dict[str, Any]:
        """The rule's arguments, for a sequence [B, L, ...] or a single position [B, ...]."""
        q, k, v = u.split(self.convolved, dim=-1)
        a, b = self.ab_proj(x).chunk(2, dim=-1)
        # An RMS norm over N numbers is sqrt(N) times the L2 norm's; queries are scaled by it again.
        return {
            "q": rms_norm(q.unflatten(-1, (-1, self.key_dim))) / self.key_dim,
            "k": rms_norm(k.unflatten(-1, (-1, self.key_dim))) / self.key_dim**0.5,
            "v": v.unflatten(-1, (-1, self.value_dim)),
            "g": -torch.exp(self.A_log) * F.softplus(a + self.dt_bias),  # in float32, as these are
            "beta": torch.sigmoid(b),
        }

    def _project(self, o: Tensor, gate: Tensor) -> Tensor:
        """Heads [..., H, P], normalised one by one and gated, to the model's width."""
        return self.out_proj(rms_norm(o).flatten(-2) * F.silu(gate))
