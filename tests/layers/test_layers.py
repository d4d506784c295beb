"""Layers against formulas written out position by position in float64."""

import math

import pytest
import torch
import torch.nn.functional as F
from mixer_cases import CONFIG, filled

from scangolf.layers import mlp as mlp_layer
from scangolf.layers.attention import ROTARY_ROWS, Attention
from scangolf.layers.conv import CausalConv
from scangolf.layers.mlp import MLP
from scangolf.layers.s6 import S6


def test_rotation_beyond_the_table_is_the_same_function() -> None:
    mixer = Attention(CONFIG)
    table_cos, table_sin = mixer._rotation(ROTARY_ROWS - 3, 3)
    cos, sin = mixer._rotation(ROTARY_ROWS - 3, 6)
    torch.testing.assert_close(cos[:3], table_cos)
    torch.testing.assert_close(sin[:3], table_sin)


def test_attention_position_by_position() -> None:
    mixer = filled(Attention(CONFIG))
    x_BLD = torch.randn(1, 7, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    def heads(weight: torch.Tensor, count: int) -> torch.Tensor:
        return (x_BLD[0] @ weight.T).view(7, count, 4)

    def rms(t: torch.Tensor) -> torch.Tensor:
        return t / t.square().mean(-1, keepdim=True).sqrt()

    def turned(t: torch.Tensor, position: int) -> torch.Tensor:
        angle = position * 100.0 ** -(torch.arange(0, 4, 2) / 4).double()
        z = torch.complex(t[..., :2], t[..., 2:]) * torch.exp(-1j * angle)
        return torch.cat([z.real, z.imag], -1)

    q, k = rms(heads(mixer.q_proj.weight, 6)), rms(heads(mixer.k_proj.weight, 2))
    v = heads(mixer.v_proj.weight, 2)
    for t in range(7):
        outputs = []
        for h in range(6):
            query = turned(q[t, h], t) * mixer.q_gain[h]
            scores = torch.stack(
                [query @ turned(k[s, h // 3], s) / math.sqrt(4) for s in range(t + 1)]
            )
            outputs.append(scores.softmax(0) @ v[: t + 1, h // 3])
        expected = mixer.out_gain * (torch.cat(outputs) @ mixer.out_proj.weight.T)
        torch.testing.assert_close(found[0, t], expected, atol=1e-5, rtol=1e-5)


def test_convolution_is_conv1d_and_continues() -> None:
    conv = filled(CausalConv(6, 4, weight_group="dynamics", bias_group="dynamics"))
    x_BLE = torch.randn(2, 11, 6, dtype=torch.float64)
    expected = F.conv1d(F.pad(x_BLE.mT, (3, 0)), conv.weight, conv.bias, groups=6).mT
    whole, _ = conv(x_BLE)
    torch.testing.assert_close(whole, expected)
    first, past = conv(x_BLE[:, :2])
    second, _ = conv(x_BLE[:, 2:], past)
    torch.testing.assert_close(torch.cat([first, second], 1), expected)


def test_convolution_in_16_bits_is_rounded_once() -> None:
    conv = filled(CausalConv(6, 4, weight_group="dynamics", bias_group="dynamics")).float()
    x_BLE = torch.randn(2, 11, 6).bfloat16()
    exact = F.conv1d(F.pad(x_BLE.float().mT, (3, 0)), conv.weight, conv.bias, groups=6).mT
    found, past = conv(x_BLE)
    assert (found.dtype, past.dtype) == (torch.bfloat16, torch.bfloat16)
    torch.testing.assert_close(found.float(), exact, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("taps", [1, 4])
@pytest.mark.parametrize("length", [1, 3, 11])
def test_convolution_of_a_sequence_is_that_of_its_positions(taps: int, length: int) -> None:
    conv = filled(CausalConv(6, taps, weight_group="dynamics", bias_group="dynamics"))
    x_BLE = torch.randn(2, length, 6, dtype=torch.float64)
    past_BKE = torch.randn(2, taps - 1, 6, dtype=torch.float64)
    expected, after = conv(x_BLE, past_BKE)
    torch.testing.assert_close(conv.silu(x_BLE, past_BKE), F.silu(expected))
    torch.testing.assert_close(conv.after(x_BLE, past_BKE), after)
    torch.testing.assert_close(conv.silu(x_BLE), F.silu(conv(x_BLE)[0]))


def test_s6_position_by_position() -> None:
    """The layer's formulas (Gu & Dao 2023, section 3), one channel and one state at a time."""
    mixer = filled(S6(CONFIG))
    x_BLD = torch.randn(1, 6, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    x_LE, z_LE = (x_BLD[0] @ mixer.in_proj.weight.T).chunk(2, -1)
    u_LE = F.silu(mixer.conv(x_LE[None])[0][0])
    projected = u_LE @ mixer.x_proj.weight.T
    delta_LE = F.softplus(projected[:, :4] @ mixer.dt_proj.weight.T + mixer.delta_bias)
    B_LN, C_LN = projected[:, 4:7], projected[:, 7:]
    A_EN = -mixer.A_log.exp()
    h_EN = torch.zeros(48, 3, dtype=torch.float64)
    for t in range(6):
        decay = (delta_LE[t, :, None] * A_EN).exp()
        h_EN = decay * h_EN + delta_LE[t, :, None] * B_LN[t] * u_LE[t, :, None]
        y_E = (h_EN @ C_LN[t] + mixer.D * u_LE[t]) * F.silu(z_LE[t])
        expected = mixer.out_proj.gain * (y_E @ mixer.out_proj.weight.T)
        torch.testing.assert_close(found[0, t], expected)


def test_mlp_by_its_operator_and_by_its_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = filled(MLP(CONFIG))
    x_BLD = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    u_BLH = x_BLD.detach() @ layer.up.weight.detach().T
    y_BLD = u_BLH.clamp(min=0).square() @ layer.down.weight.detach().T * layer.down.gain.detach()
    found = {}
    for fused in (True, False):
        monkeypatch.setattr(mlp_layer, "fused_takes", lambda *_, fused=fused: fused)
        y = layer(x_BLD)
        torch.testing.assert_close(y, y_BLD, rtol=1e-12, atol=1e-12)
        found[fused] = torch.autograd.grad(y.sin().sum(), [x_BLD, *layer.parameters()])
    for got, want in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)
