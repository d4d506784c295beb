"""The sequential recurrence against closed forms and a loop in numpy."""

from typing import Any

import numpy as np
import torch
from scan_cases import make_inputs

from scangolf.ops.reference import selective_scan_sequential


def test_constant_inputs_give_a_geometric_series():
    d, a, b, c, u, length = 0.3, -0.7, 1.1, 0.9, 2.0, 50
    full = torch.full((1, length, 1), 1.0, dtype=torch.float64)
    y: Any = selective_scan_sequential(
        full * u, full * d, torch.full((1, 1), a, dtype=torch.float64), full * b, full * c
    )
    q = np.exp(d * a)
    steps = np.arange(1, length + 1)
    want = c * d * b * u * (1 - q**steps) / (1 - q)
    np.testing.assert_allclose(y[0, :, 0].numpy(), want, rtol=1e-13)


def test_an_initial_state_decays_by_the_sum_of_delta():
    x = make_inputs(length=20, optional=("initial_state",))
    x["u"] = torch.zeros_like(x["u"])
    delta = x["delta"].abs()
    _, final = selective_scan_sequential(**(x | {"delta": delta}), return_final_state=True)
    want = torch.exp(delta.sum(1)[:, :, None] * x["A"]) * x["initial_state"]
    torch.testing.assert_close(final, want, rtol=1e-12, atol=0)


def test_against_a_loop_in_numpy():
    x = make_inputs(batch=2, length=9, channels=4, state=3, groups=2)
    y, final = selective_scan_sequential(**x, delta_softplus=True, return_final_state=True)
    n = {k: v.detach().numpy() for k, v in x.items()}
    d = np.log1p(np.exp(n["delta"] + n["delta_bias"]))
    B, C = (np.repeat(n[k], 2, axis=2) for k in "BC")  # two channels a group
    h, want = n["initial_state"], np.empty_like(n["u"])
    for t in range(9):
        h = np.exp(d[:, t, :, None] * n["A"]) * h + (d * n["u"])[:, t, :, None] * B[:, t]
        want[:, t] = (C[:, t] * h).sum(-1) + n["D"] * n["u"][:, t]
    want *= n["z"] / (1 + np.exp(-n["z"]))
    np.testing.assert_allclose(y.detach().numpy(), want, rtol=1e-12)
    np.testing.assert_allclose(final.detach().numpy(), h, rtol=1e-12)


def test_the_state_restarts_where_the_document_changes():
    x = make_inputs(batch=1, length=10, optional=("initial_state",))
    seq_idx = torch.tensor([[5] * 4 + [2] * 6])
    y = selective_scan_sequential(**x, seq_idx=seq_idx)
    second = {k: v if k == "A" else v[:, 4:] for k, v in x.items() if k != "initial_state"}
    first = {k: v if k in ("A", "initial_state") else v[:, :4] for k, v in x.items()}
    parts: list[Any] = [selective_scan_sequential(**p) for p in (first, second)]
    torch.testing.assert_close(y, torch.cat(parts, dim=1), rtol=1e-12, atol=1e-14)
