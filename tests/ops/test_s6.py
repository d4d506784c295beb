"""The selective-scan operator: against the float64 recurrence, and as a torch operator."""

import time
from itertools import pairwise
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
from torch.utils._python_dispatch import TorchDispatchMode

from scangolf.ops import s6, s6_chunked, selective_scan, selective_state_update
from scangolf.ops.reference import selective_scan_sequential

SEQUENCES = ("u", "delta", "B", "C", "z")
LENGTHS = (1, 7, 32, 63, 65)  # a tile is 32 steps


@pytest.fixture(params=[1, 3], ids=["whole", "folded"])
def pieces(request, monkeypatch) -> int:
    """The sequence in one piece, as on the CPU, and folded into three, as on other devices."""
    monkeypatch.setattr(s6_chunked, "_pieces", lambda device: request.param)
    return request.param


def assert_matches_sequential(
    inputs: dict[str, Any], tolerance: float, gradient_tolerance: float, **options: Any
) -> None:
    got = outputs_and_gradients(selective_scan, inputs, **options)
    want = outputs_and_gradients(selective_scan_sequential, as_float64(inputs), **options)
    for name, value in got.items():
        limit = tolerance if name in ("y", "final") else gradient_tolerance
        assert relative_error(value, want[name]) < limit, name
        if name in inputs:
            assert value.dtype == inputs[name].dtype, name


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_float64(length, groups, pieces):
    assert_matches_sequential(make_inputs(length=length, groups=groups), 1e-12, 1e-12)


@pytest.mark.parametrize("length", LENGTHS)
def test_float64_with_documents(length, pieces):
    starts = [s for s in (5, 21, 22, 32, 43, 63) if s < length]
    inputs = make_inputs(length=length, groups=2)
    assert_matches_sequential(inputs, 1e-12, 1e-12, seq_idx=documents(2, length, *starts))


@pytest.mark.parametrize("optional", [(), *((name,) for name in OPTIONAL)], ids=str)
def test_float64_with_some_options(optional, pieces):
    assert_matches_sequential(make_inputs(optional=optional), 1e-12, 1e-12)


def test_more_rows_than_fit_the_scratch(monkeypatch, pieces):
    monkeypatch.setattr(s6_chunked, "SCRATCH_CPU", 2 * 3 * 32 * 18)
    assert_matches_sequential(make_inputs(batch=5), 1e-12, 1e-12)


@pytest.mark.parametrize("length", [65, 300])
def test_float32(length, pieces):
    inputs = make_inputs(length=length, channels=16, state=8, dtype=torch.float32)
    assert_matches_sequential(inputs, 1e-5, 1e-4)
    assert_matches_sequential(inputs, 1e-5, 1e-4, seq_idx=documents(2, length, 20, 32))


def test_long_memory_in_float32():
    """Decays near one over a thousand steps, and a strong decay that makes exp underflow."""
    inputs = make_inputs(length=1000, channels=8, state=4, dtype=torch.float32)
    with torch.no_grad():
        inputs["A"][:, 0], inputs["A"][:, 1] = -1e-3, -1e4
    assert_matches_sequential(inputs, 1e-5, 1e-4)


def test_bfloat16():
    inputs = make_inputs(length=130, channels=16, state=8, dtype=torch.bfloat16)
    assert_matches_sequential(inputs, 4e-3, 1e-2)
    assert selective_scan(**inputs).dtype == torch.bfloat16


def test_without_softplus():
    x = make_inputs(optional=())
    x["delta"] = x["delta"].detach().abs().requires_grad_()
    scans: tuple[Any, ...] = (selective_scan, selective_scan_sequential)
    got, want = (torch.autograd.grad(scan(**x).square().sum(), list(x.values())) for scan in scans)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(("length", "fast"), [(1, False), (7, False), (63, True), (65, True)])
def test_gradcheck(length, fast, pieces):
    inputs = make_inputs(batch=2, length=length, channels=4, state=2, groups=2)
    seq_idx = documents(2, length, *(s for s in (3, 20, 32) if s < length))

    def scan(*values: Tensor):
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        return selective_scan(
            **named, delta_softplus=True, return_final_state=True, seq_idx=seq_idx
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=fast)


def test_non_contiguous_inputs():
    x = make_inputs(length=40)
    strided = {
        k: v.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()
        for k, v in x.items()
    }
    assert not strided["u"].is_contiguous()
    got = outputs_and_gradients(selective_scan, strided)
    want = outputs_and_gradients(selective_scan, x)
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


# --- properties ---------------------------------------------------------------------------------


def test_documents_equal_each_alone():
    x = make_inputs(batch=1, length=100, optional=("D", "z", "delta_bias"))
    bounds = [0, 31, 32, 64, 97, 100]
    y = selective_scan(**x, delta_softplus=True, seq_idx=documents(1, 100, *bounds[1:-1]))
    for start, stop in pairwise(bounds):
        alone = {k: v[:, start:stop] if k in SEQUENCES else v for k, v in x.items()}
        want = selective_scan(**alone, delta_softplus=True)
        torch.testing.assert_close(y[:, start:stop], want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cut", [1, 32, 37])
def test_two_halves_with_the_state_carried_equal_one_run(cut):
    def in_halves(initial_state, return_final_state, **x):
        first = {k: v[:, :cut] if k in SEQUENCES else v for k, v in x.items()}
        second = {k: v[:, cut:] if k in SEQUENCES else v for k, v in x.items()}
        y1, middle = selective_scan(**first, initial_state=initial_state, return_final_state=True)
        y2, final = selective_scan(**second, initial_state=middle, return_final_state=True)
        return torch.cat([y1, y2], dim=1), final

    x = make_inputs(length=70)
    got, want = (outputs_and_gradients(scan, x) for scan in (in_halves, selective_scan))
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("groups", [None, 2])
def test_single_steps_equal_the_scan(groups):
    x = {k: v.detach() for k, v in make_inputs(length=40, groups=groups).items()}
    want_y, want_state = selective_scan(**x, delta_softplus=True, return_final_state=True)
    state = x.pop("initial_state")
    for t in range(40):
        now = {k: v[:, t] if k in SEQUENCES else v for k, v in x.items()}
        y, state = selective_state_update(state, **now, delta_softplus=True)
        torch.testing.assert_close(y, want_y[:, t], rtol=1e-11, atol=1e-13)
    torch.testing.assert_close(state, want_state, rtol=1e-12, atol=1e-14)


def test_an_empty_sequence_keeps_the_state():
    x = make_inputs(length=0)
    y, final = selective_scan(**x, return_final_state=True)
    assert y.shape == (2, 0, 6)
    torch.testing.assert_close(final, x["initial_state"])


@pytest.mark.parametrize(("batch", "channels"), [(0, 6), (2, 0), (0, 0)])
def test_no_sequences_or_no_channels(batch, channels):
    x = make_inputs(batch=batch, channels=channels)
    found = outputs_and_gradients(selective_scan, x)
    assert found["y"].shape == (batch, x["u"].shape[1], channels)
    # Nothing depends on B and C then.
    assert not found["B"].any()
    assert not found["C"].any()


def test_two_backward_passes_are_equal_to_the_bit():
    x = make_inputs(length=100, channels=16, state=8, dtype=torch.float32)
    a, b = (outputs_and_gradients(selective_scan, x) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


# --- memory and cost ----------------------------------------------------------------------------


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, Tensor):
                self.elements = max(self.elements, x.numel())
        return result


def test_saved_memory_is_one_state_a_tile():
    x = make_inputs(batch=1, length=512, channels=8, state=16, dtype=torch.float32)
    mine = {v.data_ptr() for v in x.values()}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in mine:
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        selective_scan(**x, delta_softplus=True)
    assert sum(saved) == 512 // s6_chunked.TILE * 8 * 16


@pytest.mark.parametrize("length", [512, 2048])
def test_nothing_of_length_times_state_is_made(length):
    x = make_inputs(batch=1, length=length, channels=8, state=64, dtype=torch.float32)
    x["B"], x["C"] = x["B"].unsqueeze(2), x["C"].unsqueeze(2)
    inputs: Any = [x[k].detach() for k in ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")]
    with LargestTensor() as seen:
        y, _, saved = s6_chunked.forward(*[*inputs, True, None, None])
        s6_chunked.backward(*[y, None, saved, *inputs, True, None])
    weights = length * 64  # B, C: an input
    tile = 3 * s6_chunked.TILE * 8 * 64
    assert seen.elements <= max(weights, tile)


def test_cost_per_token_does_not_grow_with_length():
    def seconds(length: int) -> float:
        x = make_inputs(batch=1, length=length, channels=64, state=8, dtype=torch.float32)
        times = []
        for _ in range(5):
            start = time.perf_counter()
            selective_scan(**x, delta_softplus=True).sum().backward()
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(4096) / 4096 < 2 * seconds(512) / 512


# --- as a torch operator ------------------------------------------------------------------------


@pytest.mark.parametrize("optional", [OPTIONAL, ()], ids=["all options", "no option"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(optional, dtype):
    x = make_inputs(length=37, groups=2, dtype=dtype, optional=optional)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    seq_idx = documents(2, 37, 7) if optional else None
    tensors = [x.get(name) for name in names]
    scan_args = (*tensors, True, x.get("initial_state"), seq_idx, "reference")
    library.opcheck(s6._scan, scan_args)
    y, final, saved = (v.detach() for v in s6._scan(*scan_args))
    tensors = [v if v is None else v.detach() for v in tensors]
    back_args = (y, final, saved, *tensors, True, seq_idx, "reference")
    library.opcheck(s6._scan_backward, back_args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def scan(**x):
        return selective_scan(**x)

    torch.compiler.reset()
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (40, 65):
        x = make_inputs(length=length)
        got, want = (outputs_and_gradients(f, x) for f in (compiled, selective_scan))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


def test_autocast_leaves_the_state_in_float32():
    x = make_inputs(length=70, channels=16, state=8, dtype=torch.float32)
    want = outputs_and_gradients(selective_scan, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = outputs_and_gradients(selective_scan, x)
    assert all(torch.equal(got[name], want[name]) for name in want)


def test_dtypes_may_be_mixed():
    x = make_inputs(length=40, dtype=torch.float32)
    x |= {k: x[k].detach().bfloat16().requires_grad_() for k in ("u", "z", "B")}
    assert_matches_sequential(x, 4e-3, 1e-2)


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = [
    ({"u": torch.zeros(2, 5)}, r"u has shape \(2, 5\): expected \[batch, length, channels\]"),
    ({"delta": torch.zeros(2, 5, 1)}, r"delta has shape \(2, 5, 1\): expected \(2, 5, 6\)"),
    ({"A": torch.zeros(4, 3)}, r"A has shape \(4, 3\): expected \(6, 3\)"),
    ({"B": torch.zeros(2, 5, 4, 3)}, "B has 4 groups: expected a divisor of the 6 channels of u"),
    ({"C": torch.zeros(2, 5, 2, 3)}, r"C has shape \(2, 5, 2, 3\): expected \(2, 5, 3\)"),
    ({"D": torch.zeros(1)}, r"D has shape \(1,\): expected \(6,\)"),
    ({"z": torch.zeros(2, 5, 6).long()}, r"z has dtype torch.int64: expected a floating dtype"),
    ({"A": torch.zeros(6, 3).double()}, r"A has dtype torch.float64, u has torch.float32"),
    ({"initial_state": torch.zeros(6, 3)}, r"initial_state has shape \(6, 3\): expected"),
    ({"seq_idx": torch.zeros(2, 5)}, r"seq_idx has dtype torch.float32: expected torch.int32"),
    ({"A": torch.zeros(6, 0)}, "A has no states: expected one at least"),
    (
        {"seq_idx": torch.zeros(2, 5, dtype=torch.int32, device="meta")},
        "seq_idx is on meta: expected cpu",
    ),
    ({"seq_idx": torch.zeros(2, 4).int()}, r"seq_idx has shape \(2, 4\): expected \(2, 5\)"),
    ({"u": torch.zeros(2, 5, 6, device="meta")}, "delta is on cpu: expected meta, where u is"),
    ({"backend": "gpu"}, "backend is 'gpu': expected 'auto', 'cuda', 'triton' or 'reference'"),
    ({"backend": "cuda"}, "backend is 'cuda', whose kernels cannot run: they need an NVIDIA GPU"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_told_in_one_line(change, message):
    x = make_inputs(length=5, dtype=torch.float32)
    with pytest.raises(ValueError, match=message) as error:
        selective_scan(**(x | change))
    assert "\n" not in str(error.value)


def test_the_kernels_compute_in_float32_only():
    with pytest.raises(ValueError, match="they compute in float32, u is float64"):
        selective_scan(**make_inputs(length=5), backend="triton")


def test_mistakes_of_a_step():
    x = make_inputs(length=5, dtype=torch.float32, optional=())
    now = {k: v if k == "A" else v[:, 0] for k, v in x.items()}
    with pytest.raises(ValueError, match=r"state has shape \(1, 6, 3\): expected \(2, 6, 3\)"):
        selective_state_update(torch.zeros(1, 6, 3), **now)
