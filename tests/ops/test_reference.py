"""The sequential recurrences against closed forms, a loop in numpy, and each other."""

from typing import Any

import numpy as np
import torch
from scan_cases import documents, make_inputs
from ssd_cases import make_ssd_inputs

from scangolf.ops.reference import selective_scan_sequential, ssd_scan_sequential


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


def test_the_ssd_scan_is_a_selective_scan_with_one_decay_a_head():
    """Its channels are the rows of the heads' states."""
    x = make_ssd_inputs(length=20, heads=4, head_dim=5, state=3)
    options: Any = {"return_final_state": True, "seq_idx": documents(2, 20, 7, 8)}
    want_y, want_final = ssd_scan_sequential(**x, dt_softplus=True, **options)
    y, final = selective_scan_sequential(
        x["x"].flatten(2),
        x["dt"].repeat_interleave(5, dim=2),
        x["A"].repeat_interleave(5)[:, None].expand(-1, 3),
        x["B"],
        x["C"],
        x["D"].repeat_interleave(5),
        x["z"].flatten(2),
        x["dt_bias"].repeat_interleave(5),
        delta_softplus=True,
        initial_state=x["initial_state"].flatten(1, 2),
        **options,
    )
    torch.testing.assert_close(y.view_as(want_y), want_y, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(final.view_as(want_final), want_final, rtol=1e-12, atol=1e-14)
