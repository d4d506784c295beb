"""Which backend runs a gated delta rule: on machines as they may be, without their GPUs."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scangolf.ops import gated_delta_rule, gdn_backends
from scangolf.ops.gdn_backends import Backend, choose_backend, why_not


@pytest.fixture
def asked(monkeypatch) -> list[str | None]:
    """A machine with a GPU. Its kernels answer with the first of these, None unless changed."""
    answers: list[str | None] = [None]

    def answer(q: Tensor, v: Tensor) -> str | None:
        answers.append("asked")
        return answers[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gdn_backends, "_kernels", lambda name: SimpleNamespace(why_not=answer))
    return answers


def inputs(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, length: int = 5) -> Any:
    with FakeTensorMode():
        return tuple(torch.empty(2, length, 4, n, device=device, dtype=dtype) for n in (8, 16))


def test_auto_takes_the_kernels_where_they_can(asked):
    assert choose_backend("auto", *inputs()) == "triton"
    assert choose_backend("auto", *inputs("cpu")) == "reference"
    asked[0] = "they take key_dim and value_dim of 128 at most"
    assert choose_backend("auto", *inputs()) == "reference"


def test_the_reference_is_asked_nothing(asked):
    assert choose_backend("reference", *inputs()) == "reference"
    assert asked == [None]


def test_kernels_that_were_named_are_taken_or_refused(asked):
    assert choose_backend("triton", *inputs()) == "triton"
    asked[0] = "they take key_dim and value_dim of 128 at most"
    message = "backend is 'triton', whose kernels cannot run: they take key_dim and value_dim of"
    with pytest.raises(ValueError, match=message) as error:
        choose_backend("triton", *inputs())
    assert "\n" not in str(error.value)


def test_float64_is_refused(asked):
    with pytest.raises(ValueError, match="they compute in float32, v is float64"):
        choose_backend("triton", *inputs(dtype=torch.float64))
    assert asked == [None]


def test_nothing_to_compute_takes_the_reference(asked):
    assert choose_backend("triton", *inputs(length=0)) == "reference"
    assert asked == [None]


def test_what_is_not_installed(monkeypatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(gdn_backends, "_kernels", missing)
    assert why_not("triton", *inputs()) == "they need triton, which is not installed"
    assert why_not("reference", *inputs()) is None


def test_sizes_that_do_not_fit_in_registers():
    pytest.importorskip("triton")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    q, v = torch.empty(1, 5, 2, 129, device=device), torch.empty(1, 5, 2, 16, device=device)
    message = "they take key_dim and value_dim of 128 at most"
    assert why_not("triton", q, v) == why_not("triton", v, q) == message


@pytest.mark.parametrize("backend", get_args(Backend))
def test_fake_tensors_of_a_gpu_that_is_not_there(monkeypatch, backend: Backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        k, v, g = (torch.empty(2, 5, 4, *n, device="cuda") for n in ((8,), (16,), ()))
        o, final = gated_delta_rule(k, k, v, g, g, return_final_state=True, backend=backend)
    assert (o.device.type, o.shape, final.shape) == ("cuda", (2, 5, 4, 16), (2, 4, 8, 16))
