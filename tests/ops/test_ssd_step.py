"""One decoding step of the SSD scan, against the scan and the recurrence."""

from typing import Any

import pytest
import torch
from scan_cases import as_float64, relative_error
from ssd_cases import OPTIONAL, SEQUENCES, make_ssd_inputs
from torch import Tensor

from scangolf.ops import ssd_scan, ssd_state_update
from scangolf.ops.reference import ssd_scan_sequential


def step_inputs(**options: Any) -> dict[str, Any]:
    """As `make_ssd_inputs` with a state, without time."""
    options["optional"] = (*options.get("optional", OPTIONAL), "initial_state")
    x = make_ssd_inputs(length=1, **options)
    x = {k: v[:, 0] if k in SEQUENCES else v for k, v in x.items()}
    x["state"] = x.pop("initial_state")
    return {k: v.detach().requires_grad_() for k, v in x.items()}


def truth(x: dict[str, Any], softplus: bool) -> tuple[Tensor, Tensor]:
    """A sequence of length one through the recurrence in float64."""
    x = {k: v.unsqueeze(1) if k in SEQUENCES else v for k, v in as_float64(x).items()}
    x["initial_state"] = x.pop("state")
    y, state = ssd_scan_sequential(**x, dt_softplus=softplus, return_final_state=True)
    return y[:, 0], state


@pytest.mark.parametrize("groups", [None, 1, 2])
def test_single_steps_equal_the_scan(groups):
    x = {k: v.detach() for k, v in make_ssd_inputs(length=40, groups=groups).items()}
    want_y, want_state = ssd_scan(**x, dt_softplus=True, return_final_state=True)
    state = x.pop("initial_state")
    for t in range(40):
        now = {k: v[:, t] if k in SEQUENCES else v for k, v in x.items()}
        y, state = ssd_state_update(state, **now, dt_softplus=True)
        torch.testing.assert_close(y, want_y[:, t], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("softplus", [False, True], ids=["raw", "softplus"])
@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("dt_bias",), OPTIONAL], ids=str)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float64, 1e-14), (torch.float32, 3e-6), (torch.bfloat16, 4e-3)]
)
def test_against_the_recurrence(dtype, limit, optional, softplus):
    x = step_inputs(head_dim=16, state=16, optional=optional, dtype=dtype)
    before = {k: v.detach().clone() for k, v in x.items()}
    y, state = ssd_state_update(**x, dt_softplus=softplus)
    want_y, want_state = truth(x, softplus)
    assert (y.dtype, state.dtype) == (dtype, torch.promote_types(dtype, torch.float32))
    assert relative_error(y, want_y) < limit
    assert relative_error(state, want_state) < min(limit, 3e-6)
    assert all(torch.equal(x[k], before[k]) for k in x)


def test_gradients_flow():
    x = step_inputs()

    def step(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return ssd_state_update(**dict(zip(x, tensors, strict=True)), dt_softplus=True)

    assert torch.autograd.gradcheck(step, tuple(x.values()))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": torch.zeros(1, 4, 5, 3)}, r"state has shape \(1, 4, 5, 3\): expected \(2, 4,"),
        ({"x": torch.zeros(2, 1, 4, 5)}, r"expected \[batch, heads, head_dim\]"),
        ({"B": torch.zeros(2, 3, 3)}, "B has 3 groups: expected a divisor of the 4 heads of x"),
        ({"B": torch.zeros(3)}, r"B has shape \(3,\): expected \[batch, state\]"),
        ({"dt": torch.zeros(2, 4).double()}, "float64 goes with float64 only"),
    ],
)
def test_mistakes_are_told_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        ssd_state_update(**(step_inputs(dtype=torch.float32) | change))
    assert "\n" not in str(error.value)
