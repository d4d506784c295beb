"""Which backend runs: on machines as they may be, without their GPUs."""

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

from scangolf.ops import s6_backends, selective_scan
from scangolf.ops.s6_backends import Backend, choose_backend, saved_shape, why_not


class Machine:
    """Says what its kernels take; remembers what was asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cuda: str | None, triton: str | None):
        self.asked: list[str] = []
        self.answers = {"cuda": cuda, "triton": triton}
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(s6_backends, "_kernels", self.kernels)

    def kernels(self, backend: str) -> Any:
        def answer(u: Tensor, A: Tensor, B: Tensor) -> str | None:
            self.asked.append(backend)
            return self.answers[backend]

        return SimpleNamespace(why_not=answer, saved_shape=lambda u, A, B: (backend,))


def inputs(device: str = "cuda", dtype: torch.dtype = torch.bfloat16, length: int = 5) -> Any:
    with FakeTensorMode():
        return tuple(
            torch.empty(*shape, device=device, dtype=dtype)
            for shape in ((2, length, 8), (8, 20), (2, length, 1, 20))
        )


@pytest.mark.parametrize(
    ("cuda", "triton", "chosen"),
    [
        (None, None, "cuda"),
        ("they need an NVIDIA GPU", None, "triton"),
        ("they need an NVIDIA GPU", "they need compute capability 7.0", "reference"),
    ],
)
def test_auto_takes_the_first_that_can(monkeypatch, cuda, triton, chosen):
    Machine(monkeypatch, cuda, triton)
    assert choose_backend("auto", *inputs()) == chosen


def test_float64_takes_the_reference(monkeypatch):
    machine = Machine(monkeypatch, None, None)
    x = inputs(dtype=torch.float64)
    assert choose_backend("auto", *x) == "reference"
    for name in ("cuda", "triton"):
        with pytest.raises(ValueError, match="they compute in float32, u is float64"):
            choose_backend(name, *x)
    assert machine.asked == []


def test_a_cpu_takes_the_reference(monkeypatch):
    machine = Machine(monkeypatch, None, None)
    assert choose_backend("auto", *inputs("cpu")) == "reference"
    assert machine.asked == []


def test_one_that_was_named_is_taken_or_refused(monkeypatch):
    Machine(monkeypatch, "they take a multiple of 8 channels, not 6", None)
    assert choose_backend("triton", *inputs()) == "triton"
    assert choose_backend("reference", *inputs()) == "reference"
    message = "backend is 'cuda', whose kernels cannot run: they take a multiple of 8 channels"
    with pytest.raises(ValueError, match=message) as error:
        choose_backend("cuda", *inputs())
    assert "\n" not in str(error.value)


def test_what_is_not_installed(monkeypatch):
    def missing(backend: str) -> Any:
        raise ModuleNotFoundError("No module named 'triton'", name="triton")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(s6_backends, "_kernels", missing)
    assert choose_backend("auto", *inputs()) == "reference"
    assert why_not("triton", *inputs()) == "they need triton, which is not installed"


@pytest.mark.parametrize("backend", get_args(Backend))
def test_fake_tensors_of_a_gpu_that_is_not_there(monkeypatch, backend: Backend):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with FakeTensorMode():
        u, A, B = (torch.empty(*s, device="cuda") for s in ((2, 5, 8), (8, 20), (2, 5, 20)))
        y, final = selective_scan(u, u, A, B, B, return_final_state=True, backend=backend)
    assert (y.device.type, y.shape, final.shape) == ("cuda", (2, 5, 8), (2, 8, 20))


@pytest.mark.parametrize("backend", ["auto", "cuda", "triton"])
def test_nothing_to_scan_takes_the_reference(monkeypatch, backend):
    machine = Machine(monkeypatch, None, None)
    assert choose_backend(backend, *inputs(length=0)) == "reference"
    assert machine.asked == []


def symbolic(mode: FakeTensorMode, *shape: int) -> Tensor:
    context = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * len(shape))
    sizes = mode.from_tensor(torch.empty(shape), symbolic_context=context).shape
    with mode:
        return torch.empty(sizes, device="cuda")


@pytest.mark.parametrize("state", [3, 16, 48])
@pytest.mark.parametrize("backend", ["cuda", "triton"])
def test_shapes_may_be_symbols(monkeypatch, backend, state):
    """Length and batch stay symbols; the result is that of numbers."""
    module = pytest.importorskip(f"scangolf.ops.s6_{backend}")
    monkeypatch.setattr(s6_backends, "choose_backend", lambda *_: backend)
    if backend == "cuda":
        gpu = SimpleNamespace(multi_processor_count=132, shared_memory_per_block_optin=232_448)
        monkeypatch.setattr(module, "_gpu", lambda device: gpu)
    shapes = (3, 4000, 256), (256, state), (3, 4000, 2, state)
    mode = FakeTensorMode(shape_env=ShapeEnv())
    symbols = [symbolic(mode, *shape) for shape in shapes]
    with mode:
        numbers = [torch.empty(shape, device="cuda") for shape in shapes]
        got, want = saved_shape(backend, *symbols), saved_shape(backend, *numbers)
    assert isinstance(got[0], torch.SymInt)
    assert tuple(map(int, got)) == want
