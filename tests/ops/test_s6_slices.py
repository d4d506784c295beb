"""States in slices, by the reference posing as kernels with a limit: against the recurrence."""

from types import ModuleType
from typing import Any

import pytest
import torch
from scan_cases import (
    OPTIONAL,
    as_float64,
    documents,
    make_inputs,
    outputs_and_gradients,
    relative_error,
)
from torch import Tensor, library

from scangolf.ops import s6, s6_backends, s6_chunked, selective_scan
from scangolf.ops.reference import selective_scan_sequential
from scangolf.ops.s6_slices import Sliced

LARGEST = 4


class Kernels(ModuleType):
    LARGEST_STATE = LARGEST

    def __init__(self) -> None:
        super().__init__("kernels")
        self.dtypes: list[torch.dtype] = []

    def why_not(self, u: Tensor, A: Tensor, B: Tensor) -> str | None:
        return None if A.shape[1] <= LARGEST else "the state is too large"

    def saved_shape(self, u: Tensor, A: Tensor, B: Tensor) -> tuple[int, ...]:
        return s6_chunked.saved_shape(u, A, B)

    def forward(self, *args: Any) -> tuple[Tensor, ...]:
        assert args[2].shape[1] <= LARGEST
        self.dtypes.append(args[0].dtype)
        return s6_chunked.forward(*args)

    def backward(self, *args: Any) -> tuple[Tensor, ...]:
        assert args[5].shape[1] <= LARGEST
        return s6_chunked.backward(*args)


@pytest.fixture
def kernels(monkeypatch) -> Kernels:
    """What "auto" takes."""
    kernels = Kernels()
    sliced = Sliced(kernels)
    monkeypatch.setattr(s6_backends, "implementation", lambda *_: sliced)
    monkeypatch.setattr(s6, "implementation", lambda *_: sliced)
    return kernels


def assert_matches(inputs: dict[str, Any], limits: tuple[float, float], **options: Any) -> None:
    got = outputs_and_gradients(selective_scan, inputs, **options)
    want = outputs_and_gradients(selective_scan_sequential, as_float64(inputs), **options)
    for name, value in got.items():
        assert relative_error(value, want[name]) < limits[name in inputs], name
        if name in inputs:
            assert value.dtype == inputs[name].dtype, name


@pytest.mark.parametrize("state", [1, 3, 4, 5, 10, 16])
@pytest.mark.parametrize("groups", [None, 2])
def test_states_of_all_sizes(kernels, state, groups):
    inputs = make_inputs(length=37, state=state, groups=groups, dtype=torch.float32)
    assert_matches(inputs, (1e-5, 1e-4), seq_idx=documents(2, 37, 5, 32))


@pytest.mark.parametrize("optional", [(), *((name,) for name in OPTIONAL)], ids=str)
def test_some_options(kernels, optional):
    inputs = make_inputs(length=9, state=10, optional=optional, dtype=torch.float32)
    assert_matches(inputs, (1e-5, 1e-4))


def test_parts_are_float32(kernels):
    inputs = make_inputs(length=40, channels=16, state=10, dtype=torch.bfloat16)
    assert_matches(inputs, (4e-3, 1e-2))
    assert kernels.dtypes == [torch.float32] * 3


def test_one_slice_goes_through_as_it_is(kernels):
    inputs = make_inputs(length=40, state=4, dtype=torch.bfloat16)
    got = outputs_and_gradients(selective_scan, inputs)
    assert kernels.dtypes == [torch.bfloat16]
    want = outputs_and_gradients(selective_scan, inputs, backend="reference")
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_opcheck(kernels):
    x = make_inputs(length=37, state=10, groups=2, dtype=torch.float32)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    args = (*(x[name] for name in names), True, x["initial_state"], None, "auto")
    library.opcheck(s6._scan, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(kernels, dynamic):
    torch.compiler.reset()
    compiled = torch.compile(
        lambda **x: selective_scan(**x), backend="aot_eager", fullgraph=True, dynamic=dynamic
    )
    for length in (40, 65):
        x = make_inputs(length=length, state=10, dtype=torch.float32)
        got, want = (outputs_and_gradients(f, x) for f in (compiled, selective_scan))
        assert all(torch.equal(got[name], want[name]) for name in want)


def test_the_kernels_are_asked_about_one_slice():
    u, A, B = torch.empty(1, 5, 6), torch.empty(6, 10), torch.empty(1, 5, 1, 10)
    assert Sliced(Kernels()).why_not(u, A, B) is None
