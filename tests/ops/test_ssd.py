"""The SSD scan: against the float64 recurrence, its properties, and as a torch operator."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from scan_cases import as_float64, documents, relative_error
from ssd_cases import OPTIONAL, SEQUENCES, make_ssd_inputs, ssd_outputs_and_gradients
from torch import Tensor, library

from scangolf.ops import ssd, ssd_chunked, ssd_scan
from scangolf.ops.reference import ssd_scan_sequential

LENGTHS = (1, 63, 100, 257)
TOLERANCE = {  # of outputs, of gradients
    torch.float64: (1e-12, 1e-12),
    torch.float32: (1e-5, 1e-4),
    torch.bfloat16: (5e-3, 1.5e-2),
}
NAMES = ("x", "dt", "A", "B", "C", "D", "dt_bias")  # of the operator: the gate is outside of it


def assert_matches_sequential(inputs: dict[str, Any], chunk_size: int = 16, **options: Any) -> None:
    got = ssd_outputs_and_gradients(ssd_scan, inputs, chunk_size=chunk_size, **options)
    want = ssd_outputs_and_gradients(ssd_scan_sequential, as_float64(inputs), **options)
    for name, value in got.items():
        limit = TOLERANCE[inputs["x"].dtype][name not in ("y", "final")]
        if want[name].norm() == 0:  # a document begins between the first state and the last
            assert value.norm() == 0, name
        else:
            assert relative_error(value, want[name]) < limit, name
        if name in inputs:
            assert value.dtype == inputs[name].dtype, name


def assert_equal_results(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=1e-10, atol=1e-12)


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("groups", [None, 1, 2])
def test_float64(length, chunk_size, groups):
    assert_matches_sequential(make_ssd_inputs(length=length, groups=groups), chunk_size)


@pytest.mark.parametrize("chunk_size", [16, 64])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("groups", "head_dim", "state"), [(1, 5, 16), (2, 16, 3), (4, 16, 16)])
def test_smaller_dtypes(length, chunk_size, dtype, groups, head_dim, state):
    inputs = make_ssd_inputs(
        length=length, groups=groups, head_dim=head_dim, state=state, dtype=dtype
    )
    assert_matches_sequential(inputs, chunk_size)
    assert ssd_scan(**inputs).dtype == dtype


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", LENGTHS)
def test_documents(length, dtype):
    """Some begin at the borders of chunks, in the middle, and right after each other."""
    starts = [s for s in (5, 15, 16, 17, 40, 64, 90, 200) if s < length - 1]
    inputs = make_ssd_inputs(length=length, head_dim=16, dtype=dtype)
    assert_matches_sequential(inputs, seq_idx=documents(2, length, *starts))
    assert_matches_sequential(inputs, 64, seq_idx=documents(2, length, *starts).long())


@pytest.mark.parametrize("optional", [(), *((name,) for name in OPTIONAL)], ids=str)
def test_some_options(optional):
    assert_matches_sequential(make_ssd_inputs(optional=optional))


def test_without_softplus():
    """Steps of either sign: states grow, too."""
    x = make_ssd_inputs()
    with torch.no_grad():
        for name in ("dt", "dt_bias"):
            x[name] -= x[name].mean()
            x[name] /= 10
    assert_matches_sequential(x, dt_softplus=False)


@pytest.mark.parametrize("chunk_size", [1, 7, 300])
def test_any_size_of_chunk(chunk_size):
    assert_matches_sequential(make_ssd_inputs(batch=3), chunk_size)


def test_large_head_and_state():
    inputs = make_ssd_inputs(length=40, heads=2, head_dim=256, state=256, dtype=torch.float32)
    assert_matches_sequential(inputs)


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_blocks_of_rows_and_chunks(monkeypatch, rows):
    """What does not fit the scratch arrays is computed in blocks; 4 heads, chunks of 16 steps."""
    monkeypatch.setattr(ssd_chunked, "SCRATCH_CPU", rows * 4 * 16 * 16)
    assert_matches_sequential(make_ssd_inputs(batch=3), seq_idx=documents(3, 100, 20, 32, 70))


def test_dtypes_may_be_mixed():
    x = make_ssd_inputs(dtype=torch.float32)
    x |= {k: x[k].detach().bfloat16().requires_grad_() for k in ("x", "z", "B", "A", "D")}
    assert_matches_sequential(x)


def test_non_contiguous_inputs():
    x = make_ssd_inputs()
    strided = {
        k: v.detach().movedim(0, -1).contiguous().movedim(-1, 0).requires_grad_()
        for k, v in x.items()
    }
    assert not strided["x"].is_contiguous()
    got, want = (ssd_outputs_and_gradients(ssd_scan, inputs) for inputs in (strided, x))
    assert_equal_results(got, want)


# --- decays -------------------------------------------------------------------------------------


def test_strong_decay():
    """A d is about -1000: exp(1000) is infinite in float32."""
    x = make_ssd_inputs(dtype=torch.float32, head_dim=16)
    with torch.no_grad():
        x["A"][:2], x["dt"][...], x["dt_bias"][...] = -1e3, 1.0, 0.0
    assert_matches_sequential(x)
    assert_matches_sequential(x, 64, seq_idx=documents(2, 100, 20, 32))


def test_steps_that_forget_everything_keep_the_others_precise():
    """One step in eight decays by exp(-5000): sums of such exponents have errors of thousandths."""
    x = make_ssd_inputs(dtype=torch.float32, head_dim=16, optional=())
    with torch.no_grad():
        x["A"][...] = -1.0
        x["dt"][:, ::8] = 5000.0
        x["x"][:, ::8] /= 5000.0
    got = ssd_outputs_and_gradients(ssd_scan, x)
    want = ssd_outputs_and_gradients(ssd_scan_sequential, as_float64(x))
    assert all(relative_error(got[name], want[name]) < 3e-5 for name in want)


def test_long_memory():
    x = make_ssd_inputs(length=1000, head_dim=8, dtype=torch.float32)
    with torch.no_grad():
        x["A"][:2] = -1e-3
    assert_matches_sequential(x, 64)


# --- properties ---------------------------------------------------------------------------------


def test_documents_equal_each_alone():
    x = make_ssd_inputs(batch=1, optional=("D", "z", "dt_bias"))
    bounds = [0, 31, 32, 64, 97, 100]
    y = ssd_scan(**x, dt_softplus=True, seq_idx=documents(1, 100, *bounds[1:-1]))
    for start, stop in pairwise(bounds):
        alone = {k: v[:, start:stop] if k in SEQUENCES else v for k, v in x.items()}
        want = ssd_scan(**alone, dt_softplus=True)
        torch.testing.assert_close(y[:, start:stop], want, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("cut", [1, 64, 70])
def test_two_halves_with_the_state_carried_equal_one_run(cut):
    def in_halves(initial_state, return_final_state, **x):
        first = {k: v[:, :cut] if k in SEQUENCES else v for k, v in x.items()}
        second = {k: v[:, cut:] if k in SEQUENCES else v for k, v in x.items()}
        y1, middle = ssd_scan(**first, initial_state=initial_state, return_final_state=True)
        y2, final = ssd_scan(**second, initial_state=middle, return_final_state=True)
        return torch.cat([y1, y2], dim=1), final

    x = make_ssd_inputs()
    assert_equal_results(*(ssd_outputs_and_gradients(scan, x) for scan in (in_halves, ssd_scan)))


def test_the_size_of_chunks_changes_nothing():
    x = make_ssd_inputs(length=257)
    got, want = (ssd_outputs_and_gradients(ssd_scan, x, chunk_size=size) for size in (16, 64))
    assert_equal_results(got, want)


def test_an_empty_sequence_keeps_the_state():
    x = make_ssd_inputs(length=0)
    y, final = ssd_scan(**x, return_final_state=True)
    assert y.shape == (2, 0, 4, 5)
    torch.testing.assert_close(final, x["initial_state"])
    assert torch.equal(
        ssd_outputs_and_gradients(ssd_scan, x)["A"], torch.zeros(4, dtype=torch.float64)
    )


@pytest.mark.parametrize("empty", ["batch", "heads", "head_dim", "state"])
def test_nothing_to_scan(empty):
    options: dict[str, Any] = {empty: 0}
    results = ssd_outputs_and_gradients(ssd_scan, make_ssd_inputs(groups=1, **options))
    assert all(v.isfinite().all() for v in results.values())


def test_two_backward_passes_are_equal_to_the_bit():
    x = make_ssd_inputs(dtype=torch.float32, head_dim=16)
    a, b = (ssd_outputs_and_gradients(ssd_scan, x) for _ in range(2))
    assert all(torch.equal(a[name], b[name]) for name in a)


def test_saved_memory_is_one_state_a_chunk():
    x = make_ssd_inputs(batch=1, length=500, dtype=torch.float32, optional=("D", "dt_bias"))
    mine = {v.data_ptr() for v in x.values()}
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in mine:
            saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        ssd_scan(**x, dt_softplus=True, chunk_size=64)
    assert sum(saved) == 8 * 4 * 5 * 3


# --- as a torch operator ------------------------------------------------------------------------


@pytest.mark.parametrize(("length", "fast"), [(1, False), (5, False), (21, True)])
def test_gradcheck(length, fast):
    inputs = make_ssd_inputs(length=length, heads=2, head_dim=3, state=2)
    seq_idx = documents(2, length, *(s for s in (2, 8, 11) if s < length))

    def scan(*values: Tensor):
        named: dict[str, Any] = dict(zip(inputs, values, strict=True))
        return ssd_scan(
            **named, dt_softplus=True, chunk_size=4, return_final_state=True, seq_idx=seq_idx
        )

    assert torch.autograd.gradcheck(scan, tuple(inputs.values()), fast_mode=fast)


@pytest.mark.parametrize("optional", [OPTIONAL, ()], ids=["all options", "no option"])
@pytest.mark.parametrize("length", [1, 37])  # of length one: copies are views where not asked for
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_opcheck(optional, length, dtype):
    x = make_ssd_inputs(length=length, dtype=dtype, optional=optional)
    seq_idx = documents(2, length, 7) if optional else None
    tensors = [x.get(name) for name in NAMES]
    scan_args = (*tensors, True, 16, x.get("initial_state"), seq_idx, "reference")
    library.opcheck(ssd._scan, scan_args)
    y, final, saved = (v.detach() for v in ssd._scan(*scan_args))
    tensors = [v if v is None else v.detach() for v in tensors]
    for grad_final in (final, None):
        back_args = (y, grad_final, saved, *tensors, True, 16, seq_idx, "reference")
        library.opcheck(ssd._scan_backward, back_args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def scan(**x):
        return ssd_scan(**x, chunk_size=16)

    torch.compiler.reset()
    compiled = torch.compile(scan, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (40, 65):
        x = make_ssd_inputs(length=length)
        got, want = (ssd_outputs_and_gradients(f, x) for f in (compiled, scan))
        assert_equal_results(got, want)


def test_autocast_leaves_the_state_in_float32():
    x = make_ssd_inputs(dtype=torch.float32)
    want = ssd_outputs_and_gradients(ssd_scan, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = ssd_outputs_and_gradients(ssd_scan, x)
    assert all(torch.equal(got[name], want[name]) for name in want)


# --- mistakes -----------------------------------------------------------------------------------

MISTAKES = [
    ({"x": torch.zeros(2, 5)}, r"\(2, 5\): expected \[batch, length, heads, head_dim\]"),
    ({"dt": torch.zeros(2, 5, 1)}, r"dt has shape \(2, 5, 1\): expected \(2, 5, 4\)"),
    ({"A": torch.zeros(4, 3)}, r"A has shape \(4, 3\): expected \(4,\)"),
    ({"B": torch.zeros(5, 3)}, r"B has shape \(5, 3\): expected \[batch, length, state\]"),
    ({"B": torch.zeros(2, 5, 3, 3)}, "B has 3 groups: expected a divisor of the 4 heads of x"),
    ({"C": torch.zeros(2, 5, 3)}, r"C has shape \(2, 5, 3\): expected \(2, 5, 2, 3\)"),
    ({"D": torch.zeros(1)}, r"D has shape \(1,\): expected \(4,\)"),
    ({"z": torch.zeros(2, 5, 4, 5).int()}, "z has dtype torch.int32: expected a floating dtype"),
    ({"A": torch.zeros(4).double()}, "A has dtype torch.float64, x has torch.float32"),
    ({"initial_state": torch.zeros(2, 4, 3, 5)}, r"initial_state has shape \(2, 4, 3, 5\): ex"),
    ({"seq_idx": torch.zeros(2, 5)}, "seq_idx has dtype torch.float32: expected torch.int32"),
    ({"seq_idx": torch.zeros(2, 4).int()}, r"seq_idx has shape \(2, 4\): expected \(2, 5\)"),
    ({"x": torch.zeros(2, 5, 4, 5, device="meta")}, "dt is on cpu: expected meta, where x is"),
    ({"chunk_size": 0}, "chunk_size is 0: expected 1 or more"),
    ({"backend": "gpu"}, "backend is 'gpu': expected 'auto', 'cuda', 'triton' or 'reference'"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_told_in_one_line(change, message):
    x = make_ssd_inputs(length=5, dtype=torch.float32)
    with pytest.raises(ValueError, match=message) as error:
        ssd_scan(**(x | change))
    assert "\n" not in str(error.value)
