"""The formulas of docs/scan.md, evaluated as they stand there and compared with autograd.

One sequence: u, delta, z [L, D], B, C [L, N], A [D, N], states [D, N].
"""

from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from scangolf.ops.reference import selective_scan_sequential

L, D, N = 37, 5, 4
Tensors = dict[str, Tensor]


def problem(documents: bool, length: int = L, channels: int = D, state: int = N) -> Tensors:
    generator = torch.Generator().manual_seed(0)

    def normal(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator, dtype=torch.float64)

    keep = torch.ones(length, dtype=torch.float64)
    if documents:
        keep[[3, 4, length // 2]] = 0
    return {
        "u": normal(length, channels),
        "delta": normal(length, channels) - 2,
        "A": -torch.arange(1.0, state + 1, dtype=torch.float64).repeat(channels, 1),
        "B": normal(length, state),
        "C": normal(length, state),
        "D": normal(channels),
        "z": normal(length, channels),
        "delta_bias": normal(channels),
        "initial_state": normal(channels, state),
        "grad_y": normal(length, channels),
        "grad_final": normal(channels, state),
        "keep": keep,  # r_t of the page
    }


def by_autograd(p: Tensors) -> Tensors:
    """y, the last state, and the gradients of the inputs, of the recurrence step by step."""
    rows = ("u", "delta", "B", "C", "z", "initial_state")
    names = (*rows, "A", "D", "delta_bias")
    inputs = {k: p[k].unsqueeze(0) if k in rows else p[k] for k in names}
    inputs = {k: v.clone().requires_grad_() for k, v in inputs.items()}
    documents = (1 - p["keep"]).cumsum(0).int()
    y, final = selective_scan_sequential(
        **inputs,  # type: ignore[arg-type]
        delta_softplus=True,
        return_final_state=True,
        seq_idx=documents[None],
    )
    grads = torch.autograd.grad(
        (y, final), list(inputs.values()), (p["grad_y"][None], p["grad_final"][None])
    )
    found = {k: g[0] if k in rows else g for k, g in zip(inputs, grads, strict=True)}
    return {"y": y[0], "final": final[0]} | found


def forward(p: Tensors) -> Tensors:
    """Section 1. `h` has the state before the first step at its front: h[t] is after t steps."""
    d = F.softplus(p["delta"] + p["delta_bias"])
    x = d * p["u"]
    a = p["keep"][:, None, None] * torch.exp(d[:, :, None] * p["A"])
    h = [p["initial_state"]]
    for t in range(len(d)):
        h.append(a[t] * h[t] + x[t][:, None] * p["B"][t])
    h = torch.stack(h)
    o = (p["C"][:, None] * h[1:]).sum(-1) + p["D"] * p["u"]
    return {"d": d, "x": x, "a": a, "h": h, "o": o, "y": o * F.silu(p["z"])}


def adjoints(p: Tensors, f: Tensors) -> Tensors:
    """Section 2: the gradient of o, the adjoints g, and g' (after), one more at the end."""
    s = torch.sigmoid(p["z"])
    do = p["grad_y"] * p["z"] * s
    after = [p["grad_final"]]
    g: list[Tensor] = []
    for t in reversed(range(len(do))):
        g.append(p["C"][t] * do[t][:, None] + after[-1])
        after.append(f["a"][t] * g[-1])
    g.reverse()
    after.reverse()
    dz = p["grad_y"] * f["o"] * s * (1 + p["z"] * (1 - s))
    return {"do": do, "dz": dz, "g": torch.stack(g), "after": torch.stack(after)}


def exponent_gradients(f: Tensors, b: Tensors) -> Tensor:
    """w_t = a_t g_t h_{t-1}, the definition."""
    return f["a"] * b["g"] * f["h"][:-1]


@pytest.mark.parametrize("documents", [False, True])
def test_the_recurrence_and_its_adjoint(documents: bool) -> None:
    p = problem(documents)
    want, f = by_autograd(p), forward(p)
    b = adjoints(p, f)
    w = exponent_gradients(f, b)
    g, do, d, h = b["g"], b["do"], f["d"], f["h"]
    dx = (p["B"][:, None] * g).sum(-1)
    dd = p["u"] * dx + (p["A"] * w).sum(-1)
    ddelta = dd * torch.sigmoid(p["delta"] + p["delta_bias"])
    got = {
        "y": f["y"],
        "final": h[-1],
        "z": b["dz"],
        "D": (do * p["u"]).sum(0),
        "C": (do[:, :, None] * h[1:]).sum(1),
        "B": (f["x"][:, :, None] * g).sum(1),
        "u": d * dx + p["D"] * do,
        "delta": ddelta,
        "delta_bias": ddelta.sum(0),
        "A": (d[:, :, None] * w).sum(0),
        "initial_state": f["a"][0] * g[0],
    }
    assert got.keys() == want.keys()
    for name, value in want.items():
        torch.testing.assert_close(got[name], value, rtol=1e-10, atol=1e-12, msg=name)


@pytest.mark.parametrize("documents", [False, True])
def test_the_gradient_of_the_exponent_needs_no_history(documents: bool) -> None:
    """Section 3: w_t = w_{t+1} + C_t do_t h'_t - x_t B_t g'_t, from w_{L+1} = g'_L h_L."""
    p = problem(documents)
    f = forward(p)
    b = adjoints(p, f)
    exact = exponent_gradients(f, b)
    decayed = f["a"] * f["h"][:-1]  # h'
    after = b["after"][1:]  # g'
    w = after[-1] * f["h"][-1]
    for t in reversed(range(L)):
        w = w + p["C"][t] * b["do"][t][:, None] * decayed[t]
        w = w - f["x"][t][:, None] * p["B"][t] * after[t]
        torch.testing.assert_close(w, exact[t], rtol=1e-10, atol=1e-12)
        if p["keep"][t] == 0:
            assert torch.all(exact[t] == 0)


@pytest.mark.parametrize("documents", [False, True])
@pytest.mark.parametrize("span", [1, 8, 10, L])
def test_two_sweeps_share_sums_only(documents: bool, span: int) -> None:
    p = problem(documents)
    f, want = forward(p), by_autograd(p)
    W, dA = two_sweeps(p, span)
    exact = (p["A"] * exponent_gradients(f, adjoints(p, f))).sum(-1)
    torch.testing.assert_close(W, exact, rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(dA, want["A"], rtol=1e-9, atol=1e-11)


def two_sweeps(p: Tensors, span: int) -> tuple[Tensor, Tensor]:
    """Sections 3 to 5: W_t = sum_n A w_t, and dA, with sums that start afresh in every span."""
    A, B, C, u = p["A"], p["B"], p["C"], p["u"]
    length = len(u)
    d = F.softplus(p["delta"] + p["delta_bias"])
    x, do = d * u, p["grad_y"] * F.silu(p["z"])
    a = p["keep"][:, None, None] * torch.exp(d[:, :, None] * A)

    h, dA, P = p["initial_state"], torch.zeros_like(A), torch.zeros_like(u)
    S, ends = torch.zeros_like(d[0]), {}
    for t in range(length):  # along time
        S = d[t] if t % span == 0 else S + d[t]
        decayed = a[t] * h
        seen = C[t] * decayed
        P[t] = do[t] * (A * seen).sum(-1)
        dA += (S * do[t])[:, None] * seen
        h = decayed + x[t][:, None] * B[t]
        if t % span == span - 1 or t == length - 1:
            ends[t] = h, S

    after, W, all_W = p["grad_final"], S, torch.zeros_like(u)
    for t in reversed(range(length)):  # against time
        if t in ends:
            h, S = ends[t]
            w = after * h
            W = (A * w).sum(-1)
            dA += S[:, None] * w
        seen = B[t] * after
        W = W + P[t] - x[t] * (A * seen).sum(-1)
        if p["keep"][t] == 0:
            W = torch.zeros_like(W)
        dA -= (S * x[t])[:, None] * seen
        all_W[t], S = W, S - d[t]
        after = a[t] * (C[t] * do[t][:, None] + after)
    return all_W, dA


def test_sums_over_spans_keep_their_digits() -> None:
    """Section 5: float32 sums over a whole sequence lose digits that sums over spans keep."""
    p = problem(False, length=2048, channels=16, state=8)
    p["delta"] -= 1
    single = {k: v.float() for k, v in p.items()}
    as_read = {k: v.double() for k, v in single.items()}
    W, dA = two_sweeps(as_read, 64)
    errors = {}
    for span in (64, 2048):
        got = two_sweeps(single, span)
        errors[span] = [
            ((x - y).norm() / y.norm()).item() for x, y in zip(got, (W, dA), strict=True)
        ]
    assert errors[64][0] < 2e-6
    assert errors[64][1] < 1e-4
    assert errors[2048][1] > 3 * errors[64][1]


@pytest.mark.parametrize("documents", [False, True])
def test_chunks_summaries_and_carry(documents: bool) -> None:
    """Section 6: what a chunk ends with and how much of what entered it is left, both ways."""
    p = problem(documents)
    f = forward(p)
    b = adjoints(p, f)
    d, A = f["d"], p["A"]
    h, after = p["initial_state"], p["grad_final"]
    edges = [0, 10, 11, 25, L]
    spans = list(pairwise(edges))
    penalty = torch.log(p["keep"])  # 0, or minus infinity at a restart

    def passed(first: int, last: int) -> Tensor:
        """exp(A sum of d over steps first .. last - 1), 0 if one of them is a restart."""
        exponent = d[first:last].sum(0)[:, None] * A + penalty[first:last].sum()
        return torch.exp(exponent)

    for first, last in spans:
        end = sum(passed(t + 1, last) * f["x"][t][:, None] * p["B"][t] for t in range(first, last))
        h = passed(first, last) * h + end
        torch.testing.assert_close(h, f["h"][last], rtol=1e-10, atol=1e-12)
    for first, last in reversed(spans):
        start = sum(
            passed(first, t + 1) * b["do"][t][:, None] * p["C"][t] for t in range(first, last)
        )
        after = passed(first, last) * after + start
        torch.testing.assert_close(after, b["after"][first], rtol=1e-10, atol=1e-12)


def test_what_is_rounded_off_goes_into_the_next_term():
    """Section 4: sums of the stored P, and of what is left, are off by one rounding of a term."""
    P = torch.randn(256, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    stored, left = [], torch.zeros((), dtype=torch.float64)
    for term in P:
        exact = term + left
        stored.append(exact.bfloat16().double())
        left = exact - stored[-1]
    off = (torch.stack(stored).flip(0).cumsum(0) + left - P.flip(0).cumsum(0)).flip(0).abs()
    half_step = 2.0**-8 * P.abs().max() * 1.01  # of bfloat16 at the largest term
    assert off.max() <= half_step
    plain = (P.bfloat16().double() - P).flip(0).cumsum(0).abs().max()
    assert plain > 2 * off.max()
