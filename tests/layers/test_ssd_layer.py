"""The Mamba-2 layer against its formulas, position by position in float64."""

import torch
import torch.nn.functional as F
from mixer_cases import CONFIG, filled

from scangolf.layers.ssd import SSD


def test_ssd_position_by_position() -> None:
    """Six heads of 8 over 48 channels, two groups of 5 states: Dao & Gu 2024, section 7."""
    mixer = filled(SSD(CONFIG))
    x_BLD = torch.randn(1, 7, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    projected = x_BLD[0] @ mixer.in_proj.weight.T
    z_LE, u_LU, dt_LH = projected[:, :48], projected[:, 48:116], projected[:, 116:]
    convolved = (mixer.x_conv(u_LU[None, :, :48]), mixer.BC_conv(u_LU[None, :, 48:]))
    u_LU = F.silu(torch.cat([y_1LW[0] for y_1LW, _ in convolved], dim=1))
    dt_LH = F.softplus(dt_LH + mixer.dt_bias)
    h_HPN = torch.zeros(6, 8, 5, dtype=torch.float64)
    for t in range(7):
        y_HP = torch.zeros(6, 8, dtype=torch.float64)
        for h in range(6):
            x_P = u_LU[t, 8 * h : 8 * h + 8]
            B_N = u_LU[t, 48 + 5 * (h // 3) :][:5]
            C_N = u_LU[t, 58 + 5 * (h // 3) :][:5]
            decay = torch.exp(-dt_LH[t, h] * mixer.A_log[h].exp())
            h_HPN[h] = decay * h_HPN[h] + dt_LH[t, h] * torch.outer(x_P, B_N)
            y_HP[h] = h_HPN[h] @ C_N + mixer.D[h] * x_P
        y_E = y_HP.flatten() * F.silu(z_LE[t])
        y_E = y_E / y_E.square().mean().sqrt()
        expected = mixer.out_gain * (mixer.out_proj.weight @ y_E)
        torch.testing.assert_close(found[0, t], expected, atol=1e-10, rtol=1e-10)


def test_dynamics_start_in_their_ranges() -> None:
    mixer = SSD(CONFIG)
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        mixer.init_weights(generator)
        A, dt = mixer.A_log.exp(), F.softplus(mixer.dt_bias.double())
        assert ((A >= 1) & (A <= 16)).all()
        assert ((dt >= 0.000999) & (dt <= 0.1001)).all()
        assert torch.equal(mixer.D, torch.ones(6))
