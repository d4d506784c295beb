"""Which backend runs an SSD scan: on machines as they may be, without their GPUs."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from scangolf.ops import ssd_backends, ssd_scan
from scangolf.ops.ssd_backends import Backend, choose_backend, why_not


@pytest.fixture
def asked(monkeypatch) -> list[str | None]:
    """A machine with a GPU. Its kernels answer with the first of these, None unless changed."""
    answers: list[str | None] = [None]

    def answer(x: Tensor, A: Tensor, B: Tensor) -> str | None:
        answers.append("asked")
        return answers[0]

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ssd_backends, "_kernels", lambda name: SimpleNamespace(why_not=answer))
    return answers


def inputs(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, length: int = 5) -> Any:
    with FakeTensorMode():
        return tuple(
            torch.empty(*shape, device=device, dtype=dtype)
            for shape in ((2, length, 4, 8), (4,), (2, length, 1, 16))
        )


def test_auto_takes_the_fastest_that_can(asked):
    assert choose_backend("auto", *inputs()) == "cuda"
    asked[0] = "they take states of 16"
    assert choose_backend("auto", *inputs()) == "reference"
    assert asked[1:] == ["asked"] * 3  # cuda; then both


def test_one_that_was_named_is_taken_or_refused(asked):
    assert choose_backend("triton", *inputs()) == "triton"
    assert choose_backend("reference", *inputs()) == "reference"
    asked[0] = "they take states of 128 at most"
    message = "backend is 'triton', whose kernels cannot run: they take states of 128 at most"
    with pytest.raises(ValueError, match=message) as error:
        choose_backend("triton", *inputs())
    assert "\n" not in str(error.value)


def test_float64_takes_the_reference(asked):
    x = inputs(dtype=torch.float64)
    assert choose_backend("auto", *x) == "reference"
    with pytest.raises(ValueError, match="they compute in float32, x is float64"):
        choose_backend("triton", *x)
    assert asked == [None]


def test_a_cpu_takes_the_reference(asked):
    assert choose_backend("auto", *inputs("cpu")) == "reference"
    assert asked == [None]


@pytest.mark.parametrize("backend", ["auto", "triton"])
def test_nothing_to_scan_takes_the_reference(asked, backend):
    assert choose_backend(backend, *inputs(length=0)) == "reference"
    assert asked == [None]


def test_what_is_not_installed(monkeypatch):
    def missing(name: str) -> Any:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(ssd_backends, "_kernels", missing)
    assert choose_backend("auto", *inputs()) == "reference"
    assert why_not("triton", *inputs()) == "they need triton, which is not installed"


@pytest.mark.parametrize("backend", get_args(Backend))
def test_fake_tensors_of_a_gpu_that_is_not_there(monkeypatch, backend: Backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        x, dt, A, B = (
            torch.empty(*s, device="cuda") for s in ((2, 5, 4, 8), (2, 5, 4), (4,), (2, 5, 16))
        )
        y, final = ssd_scan(x, dt, A, B, B, return_final_state=True, backend=backend)
    assert (y.device.type, y.shape, final.shape) == ("cuda", (2, 5, 4, 8), (2, 4, 8, 16))
