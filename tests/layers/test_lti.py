"""The scan that does not select, against its own filter written out."""

import torch
import torch.nn.functional as F
from mixer_cases import CONFIG, filled

from scangolf.layers.lti import LTI


def test_lti_is_a_convolution() -> None:
    """Time-invariant: y = K * u + D u with K_j = sum_n C_n exp(j d A_n) d B_n, in each channel."""
    mixer = filled(LTI(CONFIG))
    x_BLD = torch.randn(1, 9, 24, dtype=torch.float64)
    found, _ = mixer(x_BLD)

    x_LE, z_LE = (x_BLD[0] @ mixer.in_proj.weight.T).chunk(2, -1)
    u_LE = F.silu(mixer.conv(x_LE[None])[0][0])
    delta_E = F.softplus(mixer.delta_bias)
    A_EN = -mixer.A_log.exp()
    K_LE = torch.stack(
        [((j * delta_E[:, None] * A_EN).exp() @ (mixer.B * mixer.C)) * delta_E for j in range(9)]
    )
    for t in range(9):
        y_E = sum((K_LE[t - s] * u_LE[s] for s in range(t + 1)), mixer.D * u_LE[t])
        expected = mixer.out_proj.gain * ((y_E * F.silu(z_LE[t])) @ mixer.out_proj.weight.T)
        torch.testing.assert_close(found[0, t], expected)


def test_its_constants_take_no_room() -> None:
    u_BLE = torch.randn(3, 5, 48)
    inputs = LTI(CONFIG).scan_inputs(u_BLE, u_BLE)
    assert all(inputs[name].stride()[:2] == (0, 0) for name in ("delta", "B", "C"))
