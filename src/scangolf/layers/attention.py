"""Causal grouped-query attention with rotary positions and normalised queries and keys.

Shapes: B batch, L length, S cached + new keys, D model width, H query heads, K key/value heads,
P head size, W = P / 2 pairs of a head.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from scangolf.config import ModelConfig
from scangolf.layers.linear import Linear, OutProjection
from scangolf.layers.mixer import Mixer
from scangolf.ops.rotary import norm_rotate

ROTARY_ROWS = 8192
"""Positions whose rotation is tabulated; later ones are computed when they come."""

ANY_LENGTH = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""All but cuDNN, which plans for tens of ms at every new length, and decoding has one a token."""


class AttentionState(NamedTuple):
    k_BKSP: Tensor
    v_BKSP: Tensor
    position: int
    """How many tokens came before: the cache may hold fewer, the last `window` of them."""


class Attention(Mixer):
    """Queries and keys are RMS-normalised per head and rotated (Su et al. 2021); each query head
    has a learned gain. With a state, every position sees the last `window` tokens."""

    groups = {"q_gain": "vector"}

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        a = config.attention
        self.n_heads, self.n_kv_heads = a.n_heads, a.n_kv_heads
        self.head_dim = config.d_model // a.n_heads
        self.window = a.window
        self.initial_gain = a.qk_gain
        self.q_proj = Linear(config.d_model, config.d_model)
        self.k_proj = Linear(config.d_model, a.n_kv_heads * self.head_dim)
        self.v_proj = Linear(config.d_model, a.n_kv_heads * self.head_dim)
        self.out_proj: Linear = OutProjection(config.d_model, config.d_model)
        self.q_gain = nn.Parameter(torch.empty(a.n_heads))
        frequency = a.rope_base ** -(torch.arange(0, self.head_dim, 2) / self.head_dim)
        self.frequency: Tensor
        self.cos: Tensor
        self.sin: Tensor
        self.register_buffer("frequency", frequency, persistent=False)
        angle = torch.outer(torch.arange(ROTARY_ROWS, dtype=torch.float32), frequency)
        self.register_buffer("cos", angle.cos(), persistent=False)
        self.register_buffer("sin", angle.sin(), persistent=False)

    def init_weights(self, generator: torch.Generator) -> None:
        nn.init.constant_(self.q_gain, self.initial_gain)

    def init_state(self, batch: int, device: torch.device, dtype: torch.dtype) -> AttentionState:
        empty = torch.empty(batch, self.n_kv_heads, 0, self.head_dim, device=device, dtype=dtype)
        return AttentionState(empty, empty, 0)

    def forward(
        self, x_BLD: Tensor, state: AttentionState | None = None
    ) -> tuple[Tensor, AttentionState | None]:
        B, L, _ = x_BLD.shape
        start = 0 if state is None else state.position
        cos_LW, sin_LW = self._rotation(start, L)

        q_BLHP = self.q_proj(x_BLD).view(B, L, self.n_heads, self.head_dim)
        k_BLKP = self.k_proj(x_BLD).view(B, L, self.n_kv_heads, self.head_dim)
        v_BLKP = self.v_proj(x_BLD).view(B, L, self.n_kv_heads, self.head_dim)
        q_BLHP = norm_rotate(q_BLHP, cos_LW, sin_LW, self.q_gain)
        k_BLKP = norm_rotate(k_BLKP, cos_LW, sin_LW)

        q_BHLP, k_BKSP, v_BKSP = (t.transpose(1, 2) for t in (q_BLHP, k_BLKP, v_BLKP))
        if state is None:
            y_BHLP = F.scaled_dot_product_attention(
                q_BHLP, k_BKSP, v_BKSP, is_causal=True, enable_gqa=True
            )
        else:
            k_BKSP = torch.cat([state.k_BKSP, k_BKSP], dim=2)
            v_BKSP = torch.cat([state.v_BKSP, v_BKSP], dim=2)
            visible_LS = self._visible(L, k_BKSP.shape[2], x_BLD.device)
            with sdpa_kernel(ANY_LENGTH):
                y_BHLP = F.scaled_dot_product_attention(
                    q_BHLP, k_BKSP, v_BKSP, attn_mask=visible_LS, enable_gqa=True
                )
            keep = slice(-self.window, None)
            state = AttentionState(k_BKSP[:, :, keep], v_BKSP[:, :, keep], start + L)
        return self.out_proj(y_BHLP.transpose(1, 2).reshape(B, L, -1)), state

    def _visible(self, L: int, S: int, device: torch.device) -> Tensor:
        """Which of S keys each of the last L positions sees: its own and the window - 1 before."""
        key_S = torch.arange(S, device=device)
        query_L1 = torch.arange(S - L, S, device=device)[:, None]
        return (key_S <= query_L1) & (key_S > query_L1 - self.window)

    def _rotation(self, start: int, length: int) -> tuple[Tensor, Tensor]:
        if start + length <= self.cos.shape[0]:
            rows = slice(start, start + length)
            return self.cos[rows], self.sin[rows]
        position = torch.arange(start, start + length, device=self.cos.device)
        angle = torch.outer(position.float(), self.frequency)
        return angle.cos(), angle.sin()
