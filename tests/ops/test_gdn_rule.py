"""The gated delta rule: against the float64 recurrence, closed forms and its own properties."""

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from gdn_cases import (
    LENGTHS,
    SEQUENCES,
    TOLERANCE,
    assert_equal_results,
    assert_matches_sequential,
    make_inputs,
    outputs_and_gradients,
)
from scan_cases import documents, relative_error
from torch import Tensor

from scangolf.ops import gated_delta_rule, gated_delta_step
from scangolf.ops.gdn_reference import gated_delta_rule_sequential

# --- numbers ------------------------------------------------------------------------------------


def test_the_recurrence_against_a_loop_in_numpy():
    x = make_inputs(batch=1, length=9, heads=1)
    o, final = gated_delta_rule_sequential(**x, return_final_state=True)
    q, k, v, g, beta = (x[name].detach().numpy()[0, :, 0] for name in SEQUENCES)
    state, want = x["initial_state"].detach().numpy()[0, 0], []
    for t in range(9):  # section 3.1: exp(g) (I - beta k k^T) S + beta k v^T
        state = np.exp(g[t]) * (np.eye(5) - beta[t] * np.outer(k[t], k[t])) @ state
        state = state + beta[t] * np.outer(k[t], v[t])
        want.append(q[t] @ state)
    np.testing.assert_allclose(o[0, :, 0].detach().numpy(), want, rtol=1e-11)
    np.testing.assert_allclose(final[0, 0].detach().numpy(), state, rtol=1e-11)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(("key_dim", "value_dim"), [(5, 7), (5, 16), (16, 7), (16, 16)])
@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_every_length(length, chunk_size, key_dim, value_dim, dtype):
    x = make_inputs(length=length, key_dim=key_dim, value_dim=value_dim, dtype=dtype)
    assert_matches_sequential(x, dtype, chunk_size=chunk_size)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("chunk_size", [1, 16, 64])
@pytest.mark.parametrize("length", LENGTHS)
def test_documents(length, chunk_size, dtype):
    """They begin inside chunks, at their borders, and one right after another."""
    starts = [s for s in (5, 16, 31, 32, 33, 64, 98, 255) if s < length - 1]
    seq_idx = documents(2, length, *starts)
    x = make_inputs(length=length, dtype=dtype)
    assert_matches_sequential(x, dtype, seq_idx, chunk_size=chunk_size)


def test_without_a_state_before():
    assert_matches_sequential(make_inputs(initial=False), torch.float64)


def test_gradients_of_the_output_or_of_the_state_alone():
    x = make_inputs(length=40)
    for i in range(2):
        got, want = (
            torch.autograd.grad(
                rule(**x, return_final_state=True)[i].square().sum(), list(x.values()),
                allow_unused=True, materialize_grads=True,
            )
            for rule in (partial(gated_delta_rule, chunk_size=16), gated_delta_rule_sequential)
        )  # fmt: skip
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_long_memory_in_float32():
    """Decays of one and near one over a thousand steps."""
    x = make_inputs(length=1000, key_dim=16, dtype=torch.float32)
    with torch.no_grad():
        x["g"] *= 1e-3
        x["g"][:, :, 0] = 0
    assert_matches_sequential(x, torch.float32)


@pytest.mark.parametrize("strong", [-1000.0, -1e30, -torch.inf])
def test_a_strong_decay_costs_the_steps_after_it_nothing(strong):
    x = make_inputs(length=130, dtype=torch.float32)
    with torch.no_grad():
        x["g"][:, 10::20] = strong
        x["g"][0, 40:43] = strong
        x["g"][1, 64] = strong
    assert_matches_sequential(x, torch.float32)
    got = outputs_and_gradients(gated_delta_rule, x)
    assert got["g"][:, 10::20].count_nonzero() == 0


def test_nothing_but_strong_decays():
    x = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        x["g"].fill_(-1000)
    assert_matches_sequential(x, torch.float32)


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_the_ends_of_beta(beta):
    x = make_inputs(dtype=torch.float32)
    with torch.no_grad():
        x["beta"].fill_(beta)
    assert_matches_sequential(x, torch.float32)


def test_the_same_key_again_and_again():
    """The triangular system is then as full as it can be."""
    x = make_inputs(dtype=torch.float32, key_dim=16)
    with torch.no_grad():
        x["k"].copy_(x["k"][:, :1].clone())
        x["beta"].fill_(1)
        x["g"].zero_()
    assert_matches_sequential(x, torch.float32)


def test_dtypes_may_be_mixed():
    x = make_inputs(length=40, dtype=torch.float32)
    x |= {k: x[k].detach().bfloat16().requires_grad_() for k in ("q", "v", "g", "initial_state")}
    assert_matches_sequential(x, torch.bfloat16)
    assert gated_delta_rule(**x).dtype == torch.bfloat16


@pytest.mark.parametrize(("length", "fast"), [(1, False), (7, False), (37, True)])
def test_gradcheck(length, fast):
    x = make_inputs(batch=2, length=length, heads=2, key_dim=3, value_dim=2)
    seq_idx = documents(2, length, *(s for s in (3, 16, 30) if s < length))

    def rule(*values: Tensor):
        named: dict[str, Any] = dict(zip(x, values, strict=True))
        return gated_delta_rule(**named, chunk_size=4, return_final_state=True, seq_idx=seq_idx)

    assert torch.autograd.gradcheck(rule, tuple(x.values()), fast_mode=fast)


def test_non_contiguous_inputs():
    x = make_inputs(length=40)
    strided = {
        k: v.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()
        for k, v in x.items()
    }
    assert not strided["q"].is_contiguous()
    assert_equal_results(*(outputs_and_gradients(gated_delta_rule, i) for i in (strided, x)))


# --- properties ---------------------------------------------------------------------------------


def test_orthonormal_keys_store_and_retrieve_exactly():
    """Without decay and with beta 1, S^T k_i = v_i: first all are stored, then all are read."""
    keys = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64)).Q
    values = torch.randn(8, 7, dtype=torch.float64)
    write = torch.tensor([1.0] * 8 + [0.0] * 8, dtype=torch.float64)
    k, v = keys.repeat(2, 1)[None, :, None], values.repeat(2, 1)[None, :, None]
    g, beta = torch.zeros_like(write)[None, :, None], write[None, :, None]
    for chunk_size in (4, 64):
        o, final = gated_delta_rule(k, k, v, g, beta, chunk_size, return_final_state=True)
        torch.testing.assert_close(o, v, rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(final[0, 0], keys.mT @ values, rtol=1e-12, atol=1e-14)


def test_a_value_under_the_same_key_is_replaced():
    x = make_inputs(length=20)
    with torch.no_grad():
        x["k"].copy_(x["k"][:, :1].clone())
        x["beta"].fill_(1)
    o = gated_delta_rule(**(x | {"q": x["k"]}))
    torch.testing.assert_close(o, x["v"], rtol=1e-11, atol=1e-13)


def test_documents_equal_each_alone():
    x = make_inputs(batch=1, length=100, initial=False)
    bounds = [0, 31, 32, 64, 97, 100]
    o = gated_delta_rule(**x, seq_idx=documents(1, 100, *bounds[1:-1]))
    for start, stop in pairwise(bounds):
        want = gated_delta_rule(**{k: v[:, start:stop] for k, v in x.items()})
        torch.testing.assert_close(o[:, start:stop], want, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("cut", [1, 64, 70])
def test_two_halves_with_the_state_carried_equal_one_run(cut):
    def in_halves(initial_state, return_final_state, **x):
        first, second = ({k: v[:, s] for k, v in x.items()} for s in (slice(cut), slice(cut, None)))
        o1, middle = gated_delta_rule(**first, initial_state=initial_state, return_final_state=True)
        o2, final = gated_delta_rule(**second, initial_state=middle, return_final_state=True)
        return torch.cat([o1, o2], dim=1), final

    x = make_inputs()
    assert_equal_results(
        *(outputs_and_gradients(rule, x) for rule in (in_halves, gated_delta_rule))
    )


def test_an_empty_sequence_keeps_the_state():
    x = make_inputs(length=0)
    o, final = gated_delta_rule(**x, return_final_state=True)
    assert o.shape == (2, 0, 3, 7)
    torch.testing.assert_close(final, x["initial_state"])
    assert final.data_ptr() != x["initial_state"].data_ptr()
    (grad,) = torch.autograd.grad(final.sum(), x["initial_state"])
    assert (grad == 1).all()


def test_no_sequences():
    x = make_inputs(batch=0)
    got = outputs_and_gradients(gated_delta_rule, x)
    assert got["o"].shape == (0, 100, 3, 7)
    assert got["final"].shape == (0, 3, 5, 7)


def test_two_backward_passes_are_equal_to_the_bit():
    x = make_inputs(dtype=torch.float32)
    a, b = (outputs_and_gradients(gated_delta_rule, x) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_saved_memory_is_one_state_a_chunk():
    x = make_inputs(length=500)
    mine = {v.data_ptr() for v in x.values()}
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in mine:
            saved.append(tuple(tensor.shape))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        gated_delta_rule(**x, chunk_size=64)
    assert saved == [(2, 8, 3, 5, 7)]


# --- one step -----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
def test_single_steps_equal_the_rule(dtype):
    x = {k: v.detach() for k, v in make_inputs(length=40, dtype=dtype).items()}
    want_o, want_state = gated_delta_rule(**x, return_final_state=True)
    state, outputs = x.pop("initial_state"), []
    for t in range(40):
        before = state.clone()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            o, new_state = gated_delta_step(state, **{k: v[:, t] for k, v in x.items()})
        assert torch.equal(state, before)
        state = new_state
        outputs.append(o)
    o = torch.stack(outputs, dim=1)
    assert o.dtype == dtype
    assert state.dtype == want_state.dtype
    assert relative_error(o, want_o) < TOLERANCE[dtype][0]
    assert relative_error(state, want_state) < min(1e-5, TOLERANCE[dtype][0])


def test_gradients_flow_through_a_step():
    x = make_inputs(length=1, heads=2)
    now = [x["initial_state"], *(x[name][:, 0] for name in SEQUENCES)]
    assert torch.autograd.gradcheck(gated_delta_step, [v.detach().requires_grad_() for v in now])
