"""One decoding step of the selective scan: the kernel and the operator against the recurrence.

The kernel is called directly: on a machine without a GPU it runs in Triton's interpreter.
"""

from typing import Any

import pytest
import torch
from scan_cases import OPTIONAL, as_float64, make_inputs, relative_error
from torch import Tensor, library

from scangolf.ops import s6_step, selective_state_update
from scangolf.ops.reference import selective_scan_sequential

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("state", "u", "delta", "A", "B", "C", "D", "z", "delta_bias")
# the interpreter cuts off what does not fit a bfloat16
TOLERANCE = {torch.float32: 3e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def step_inputs(**options: Any) -> dict[str, Any]:
    """As `make_inputs` with a state, without time and gradients."""
    options["optional"] = (*options.get("optional", OPTIONAL), "initial_state")
    x = make_inputs(length=1, **options)
    x = {k: v[:, 0] if k in ("u", "delta", "B", "C", "z") else v for k, v in x.items()}
    x["state"] = x.pop("initial_state")
    return {k: v.detach() for k, v in x.items()}


def truth(x: dict[str, Any], softplus: bool = True) -> tuple[Tensor, Tensor]:
    """A sequence of length one through the recurrence in float64."""
    x = as_float64(x)
    for name in x.keys() & {"u", "delta", "B", "C", "z"}:
        x[name] = x[name].unsqueeze(1)
    x["initial_state"] = x.pop("state")
    y, state = selective_scan_sequential(**x, delta_softplus=softplus, return_final_state=True)
    return y[:, 0], state


def kernel(x: dict[str, Any], softplus: bool = True) -> tuple[Tensor, Tensor]:
    pytest.importorskip("triton")
    from scangolf.ops.s6_triton_step import step

    tensors: Any = [x[name].to(DEVICE) if name in x else None for name in NAMES]
    if x["B"].dim() == 2:
        tensors[4:6] = (v.unsqueeze(1) for v in tensors[4:6])
    y, state = step(*[*tensors, softplus])
    return y.cpu(), state.cpu()


def assert_kernel_matches(x: dict[str, Any], softplus: bool = True) -> None:
    before = {k: v.clone() for k, v in x.items()}
    y, state = kernel(x, softplus)
    want_y, want_state = truth(x, softplus)
    assert y.dtype == x["u"].dtype
    assert state.dtype == torch.float32
    assert relative_error(y, want_y) < TOLERANCE[y.dtype]
    assert relative_error(state, want_state) < 3e-6
    assert all(torch.equal(x[k], before[k]) for k in x)


@pytest.fixture
def _poisoned_memory(monkeypatch):
    """What the kernel does not write is NaN."""
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *a, **o: empty(*a, **o).fill_(float("nan")))


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize(
    ("channels", "state", "groups"),
    [(1, 1, None), (63, 16, None), (80, 3, 2), (1000, 16, 5), (12, 130, 3)],
)
def test_kernel(channels, state, groups, dtype):
    x = step_inputs(batch=3, channels=channels, state=state, groups=groups, dtype=dtype)
    assert_kernel_matches(x)


@pytest.mark.usefixtures("_poisoned_memory")
@pytest.mark.parametrize("softplus", [False, True], ids=["raw", "softplus"])
@pytest.mark.parametrize("optional", [(), ("D",), ("z",), ("delta_bias",)], ids=str)
def test_kernel_with_some_options(optional, softplus):
    assert_kernel_matches(step_inputs(optional=optional, dtype=torch.float32), softplus)


def test_kernel_keeps_small_steps_precise():
    x = step_inputs(channels=64, optional=(), dtype=torch.float32)
    x["delta"] -= 10
    x["state"].zero_()
    assert_kernel_matches(x)


def test_kernel_with_mixed_dtypes_and_strides():
    """As in a layer: bfloat16 slices of projections, float32 parameters, a float32 state."""
    x = step_inputs(batch=3, channels=40, state=5, dtype=torch.float32)
    x |= {k: x[k].bfloat16() for k in ("u", "delta", "B", "C", "z")}
    x["u"], x["z"] = torch.cat([x["u"], x["z"]], -1).chunk(2, -1)
    _, x["B"], x["C"] = torch.cat([x["B"][:, :2], x["B"], x["C"]], -1).split([2, 5, 5], -1)
    x["delta"] = x["delta"].mT.contiguous().mT
    x["state"], x["A"] = x["state"].mT.contiguous().mT, x["A"].mT.contiguous().mT
    assert_kernel_matches(x)


def test_kernel_of_nothing():
    y, state = kernel(step_inputs(batch=0, dtype=torch.float32))
    assert y.shape == (0, 6)
    assert state.shape == (0, 6, 3)


@pytest.mark.parametrize("optional", [OPTIONAL, ()], ids=["all options", "no option"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
def test_opcheck(optional, dtype):
    if DEVICE == "cuda" and dtype == torch.float64:
        pytest.skip("the kernel computes in float32")
    x = step_inputs(groups=2, optional=optional, dtype=dtype)
    tensors = [x[name].to(DEVICE) if name in x else None for name in NAMES]
    library.opcheck(s6_step._step, (*tensors, True))


def test_public_function_takes_the_operator_without_gradients(monkeypatch):
    """On a GPU; elsewhere it is told that kernels take its tensors."""
    monkeypatch.setattr(s6_step, "kernels_take", lambda x: True)
    plain = s6_step._plain_step
    calls = []
    monkeypatch.setattr(s6_step, "_step", lambda *a: calls.append(1) or plain(*a))
    x = {k: v.requires_grad_() for k, v in step_inputs(groups=2, dtype=torch.float32).items()}
    y, state = selective_state_update(**x, delta_softplus=True)
    assert not calls
    assert y.requires_grad
    assert state.requires_grad
    with torch.no_grad():
        again, _ = selective_state_update(**x, delta_softplus=True)
    assert calls
    assert torch.equal(y, again)


def test_gradients_flow_on_the_plain_path():
    x = {k: v.requires_grad_() for k, v in step_inputs().items()}

    def step(*tensors: Tensor) -> tuple[Tensor, Tensor]:
        return selective_state_update(**dict(zip(x, tensors, strict=True)), delta_softplus=True)

    assert torch.autograd.gradcheck(step, tuple(x.values()))


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_public_function_on_a_gpu():
    x = step_inputs(channels=100, state=16, groups=2, dtype=torch.bfloat16)
    y, state = selective_state_update(**{k: v.cuda() for k, v in x.items()}, delta_softplus=True)
    want_y, want_state = truth(x)
    assert relative_error(y.cpu(), want_y) < 4e-3
    assert relative_error(state.cpu(), want_state) < 3e-6
