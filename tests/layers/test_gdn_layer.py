"""Gated DeltaNet against its formulas, position by position in float64, and its size."""

import pytest
import torch
import torch.nn.functional as F
from mixer_cases import CONFIG, filled

from scangolf.config import ModelConfig
from scangolf.layers.gdn import GDN
from scangolf.layers.ssd import SSD


def test_gdn_position_by_position() -> None:
    """Three heads, keys of 4 and values of 6: Yang et al. 2024, equation 10 and figure 1."""
    mixer = filled(GDN(CONFIG))
    x_BLD = torch.randn(1, 7, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    projected = x_BLD[0] @ mixer.in_proj.weight.T
    u_LU, gate_LE = F.silu(mixer.conv(projected[None, :, :42])[0][0]), projected[:, 42:]
    a_LH, b_LH = (x_BLD[0] @ mixer.ab_proj.weight.T).split(3, -1)
    S_HPN = torch.zeros(3, 6, 4, dtype=torch.float64)  # transposed, as the paper has it
    eye = torch.eye(4, dtype=torch.float64)
    for t in range(7):
        y_HP = torch.zeros(3, 6, dtype=torch.float64)
        for h in range(3):
            q_N, k_N = u_LU[t, 4 * h :][:4], u_LU[t, 12 + 4 * h :][:4]
            v_P = u_LU[t, 24 + 6 * h :][:6]
            q_N, k_N = q_N / q_N.norm() / 2, k_N / k_N.norm()
            step = F.softplus(a_LH[t, h] + mixer.dt_bias[h])
            alpha, beta = torch.exp(-mixer.A_log[h].exp() * step), torch.sigmoid(b_LH[t, h])
            forgotten = alpha * S_HPN[h] @ (eye - beta * torch.outer(k_N, k_N))
            S_HPN[h] = forgotten + beta * torch.outer(v_P, k_N)
            o_P = S_HPN[h] @ q_N
            y_HP[h] = o_P / o_P.square().mean().sqrt()
        y_E = y_HP.flatten() * F.silu(gate_LE[t])
        expected = mixer.out_gain * (mixer.out_proj.weight @ y_E)
        torch.testing.assert_close(found[0, t], expected, atol=1e-6, rtol=1e-6)


def test_gdn_is_about_as_large_as_ssd() -> None:
    sizes = (
        sum(p.numel() for p in kind(ModelConfig(d_model=512)).parameters()) for kind in (GDN, SSD)
    )
    assert next(sizes) == pytest.approx(next(sizes), rel=0.05)
