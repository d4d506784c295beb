"""The CUDA kernels of the selective scan on an NVIDIA GPU, against the reference in float64."""

from functools import cache
from typing import Any, NamedTuple

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
from torch.utils.checkpoint import checkpoint

from scangolf.ops import s6, selective_scan
from scangolf.ops.s6_backends import choose_backend

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.version.cuda is None, reason="needs an NVIDIA GPU"
)

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
LIMITS = {F32: (1e-5, 1e-4), BF16: (4e-3, 1e-2), F16: (1e-3, 2e-3)}
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
STARTS = (1, 5, 64, 127, 128, 255, 500, 512, 513, 900)  # of documents


class Case(NamedTuple):
    length: int
    channels: int = 64
    state: int = 16
    groups: int | None = None
    batch: int = 2
    documents: bool = False
    optional: tuple[str, ...] = OPTIONAL

    @property
    def options(self) -> dict[str, Any]:
        if not self.documents:
            return {}
        return {"seq_idx": documents(self.batch, self.length, *STARTS).cuda()}


CASES = [
    (Case(1, 8), (F32, BF16, F16)),
    (Case(63, 200), (F32, BF16, F16)),
    (Case(1000, 200, documents=True), (F32, BF16, F16)),
    (Case(1337, 1024, batch=1), (F32, BF16)),
    (Case(4097), (F32, BF16, F16)),
    (Case(63, 1024, batch=32), (F32, BF16)),  # channels enough for a warp to keep whole states
    (Case(63, 1024, groups=2, batch=12, documents=True), (BF16,)),
    (Case(1000, 8, state=3, documents=True), (F32,)),
    (Case(1000, 80, groups=2), (F32, BF16)),
    (Case(1337, 64, state=20, groups=2), (F32, F16)),
    (Case(1000, 256, state=16, groups=4, documents=True), (F32,)),
    (Case(1337, 64, state=64, groups=2, documents=True), (F32, BF16)),
    (Case(63, 32, state=256), (F32, BF16)),
]
SMALL = Case(300, 64, groups=2, documents=True)


def inputs(case: Case, dtype: torch.dtype = F32, seed: int = 0) -> dict[str, Tensor]:
    """Numbers that bfloat16 has, so that every dtype gets the same."""
    batch, length = case.batch, case.length
    x = make_inputs(
        batch, length, case.channels, case.state, case.groups, BF16, case.optional, seed
    )
    return {k: v.detach().to("cuda", dtype).requires_grad_() for k, v in x.items()}


def scan(**x: Any) -> Any:
    return selective_scan(**x, backend="cuda")


def reference(**x: Any) -> Any:
    return selective_scan(**x, backend="reference")


@cache
def truth(case: Case) -> dict[str, Tensor]:
    return outputs_and_gradients(reference, as_float64(inputs(case)), **case.options)


def assert_close(
    got: dict[str, Tensor], want: dict[str, Tensor], limits: tuple[float, float]
) -> None:
    for name, value in got.items():
        assert relative_error(value, want[name]) < limits[name not in ("y", "final")], name


def assert_equal(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert [name for name in want if not torch.equal(got[name], want[name])] == []


@pytest.fixture(autouse=True)
def _poisoned_memory() -> None:
    """What the kernels do not write is NaN, in large blocks of memory and in small ones."""
    torch.cuda.empty_cache()
    sizes = [1 << 28] + 64 * [1 << 16]
    _ = [torch.full((size,), torch.nan, device="cuda") for size in sizes]


# --- numbers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "dtype"), [(case, dtype) for case, dtypes in CASES for dtype in dtypes], ids=str
)
def test_against_float64_and_twice_the_same_bits(case, dtype):
    x = inputs(case, dtype)
    got, again = (outputs_and_gradients(scan, x, **case.options) for _ in range(2))
    assert_close(got, truth(case), LIMITS[dtype])
    assert {got[name].dtype for name in x} == {got["y"].dtype} == {dtype}
    assert_equal(again, got)


@pytest.mark.parametrize(
    "optional", [(), *(tuple(o for o in OPTIONAL if o != out) for out in OPTIONAL)], ids=str
)
def test_without_some_options(optional):
    case = Case(300, optional=optional)
    assert_close(outputs_and_gradients(scan, inputs(case)), truth(case), LIMITS[F32])


def test_without_softplus():
    x = inputs(Case(300, optional=("D", "z")))
    x["delta"] = x["delta"].detach().abs().requires_grad_()

    def linear(delta_softplus, return_final_state, **x):
        return scan(**x, return_final_state=True)

    def linear_reference(delta_softplus, return_final_state, **x):
        return reference(**x, return_final_state=True)

    want = outputs_and_gradients(linear_reference, as_float64(x))
    assert_close(outputs_and_gradients(linear, x), want, LIMITS[F32])


def test_strong_and_weak_decays():
    x = inputs(Case(1337))
    with torch.no_grad():
        x["A"][:, 0], x["A"][:, 1] = -1e-3, -1e4
    want = outputs_and_gradients(reference, as_float64(x))
    assert_close(outputs_and_gradients(scan, x), want, LIMITS[F32])


def test_mixed_dtypes():
    x = inputs(SMALL)
    x |= {k: x[k].detach().to(BF16).requires_grad_() for k in ("u", "A")}
    x |= {k: x[k].detach().to(F16).requires_grad_() for k in ("z", "C", "delta_bias")}
    got = outputs_and_gradients(scan, x, **SMALL.options)
    assert_close(got, truth(SMALL), LIMITS[BF16])
    assert {k: got[k].dtype for k in x} == {k: v.dtype for k, v in x.items()}


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("shift", [0, 1, 8])
def test_slices_of_a_projection_and_transposed(dtype, shift):
    """B, u, C, z side by side, after `shift` other numbers; delta and dy with time innermost."""
    x = inputs(Case(130, batch=3), dtype)
    parts = [x["u"].new_zeros(3, 130, shift), *(x[k].detach() for k in ("B", "u", "C", "z"))]
    _, *sides = torch.cat(parts, -1).split([v.shape[-1] for v in parts], -1)
    views = (*sides, x["delta"].detach().mT.contiguous().mT)
    strided = x | {
        k: v.requires_grad_() for k, v in zip(("B", "u", "C", "z", "delta"), views, strict=True)
    }
    dy = torch.randn(3, 130, 64, device="cuda").to(dtype)
    want = dict(zip(x, gradients(x, dy), strict=True))
    got = dict(zip(x, gradients(strided, dy.mT.contiguous().mT), strict=True))
    assert_equal(got, want)


def gradients(x: dict[str, Tensor], dy: Tensor, **options: Any) -> tuple[Tensor, ...]:
    y = scan(**x, **options, delta_softplus=True)
    return torch.autograd.grad(y, list(x.values()), dy)


def test_auto_takes_any_number_of_channels():
    case = Case(63, 12, state=3, groups=2)
    assert_close(outputs_and_gradients(selective_scan, inputs(case)), truth(case), LIMITS[F32])


def test_auto_takes_these_kernels():
    x = inputs(Case(5, state=20, groups=2))
    assert choose_backend("auto", x["u"], x["A"], x["B"]) == "cuda"
    x = as_float64(x)
    assert choose_backend("auto", x["u"], x["A"], x["B"]) == "reference"
    with pytest.raises(ValueError, match="they compute in float32, u is float64"):
        scan(**x)


def test_an_empty_sequence_keeps_the_state():
    x = inputs(Case(0))
    y, final = scan(**x, return_final_state=True)
    assert y.shape == (2, 0, 64)
    assert torch.equal(final, x["initial_state"])


# --- as a torch operator ------------------------------------------------------------------------


@pytest.mark.parametrize("case", [SMALL, Case(37, state=20, optional=())], ids=str)
def test_opcheck(case):
    x = inputs(case, BF16)
    if case.groups is None:
        x |= {k: x[k].detach().unsqueeze(2).requires_grad_() for k in "BC"}
    seq_idx = case.options.get("seq_idx")
    tensors = [x.get(name) for name in NAMES]
    args = (*tensors, True, x.get("initial_state"), seq_idx, "auto")
    library.opcheck(s6._scan, args)
    y, final, saved = (v.detach() for v in s6._scan(*args))
    tensors = [v if v is None else v.detach() for v in tensors]
    library.opcheck(s6._scan_backward, (y, final, saved, *tensors, True, seq_idx, "auto"))


@pytest.mark.filterwarnings("ignore")  # inductor gives advice
@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    def doubled(u, **x):
        return selective_scan(2 * u, **x)

    torch.compiler.reset()
    compiled = torch.compile(doubled, fullgraph=True, dynamic=dynamic)
    for case in (SMALL, SMALL._replace(length=1000)):
        x = inputs(case, BF16)
        got, want = (outputs_and_gradients(f, x, **case.options) for f in (compiled, doubled))
        assert_equal(got, want)


def test_autocast_changes_nothing():
    x = inputs(SMALL)
    want = outputs_and_gradients(scan, x, **SMALL.options)
    with torch.autocast("cuda", dtype=BF16):
        got = outputs_and_gradients(scan, x, **SMALL.options)
    assert_equal(got, want)


def test_activation_checkpointing():
    def checkpointed(**x):
        return checkpoint(scan, **x, use_reentrant=False)

    x = inputs(SMALL, BF16)
    got, want = (outputs_and_gradients(f, x, **SMALL.options) for f in (checkpointed, scan))
    assert_equal(got, want)


def results(x: dict[str, Tensor], dy: Tensor, **options: Any) -> dict[str, Tensor]:
    y, final = scan(**x, **options, delta_softplus=True, return_final_state=True)
    grads = torch.autograd.grad((y, final), list(x.values()), (dy, final.detach()))
    return {"y": y, "final": final} | dict(zip(x, grads, strict=True))


def test_graph_capture_and_replay():
    x, other = inputs(SMALL, BF16), inputs(SMALL, BF16, seed=1)
    dy = torch.randn(2, 300, 64, device="cuda").to(BF16)
    options = SMALL.options
    with torch.cuda.stream(torch.cuda.Stream()):
        results(x, dy, **options)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = results(x, dy, **options)
    for values in (other, inputs(SMALL, BF16)):
        with torch.no_grad():
            for name, value in values.items():
                x[name].copy_(value)
        graph.replay()
        assert_equal(got, results(values, dy, **options))


def test_on_a_stream_of_its_own():
    """The inputs arrive late, on that stream only."""
    x, late = inputs(SMALL, BF16), inputs(SMALL, BF16, seed=1)
    dy = torch.randn(2, 300, 64, device="cuda").to(BF16)
    want = results(late, dy)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)  # cycles
        with torch.no_grad():
            for name, value in late.items():
                x[name].copy_(value)
        got = results(x, dy)
    stream.synchronize()
    assert_equal(got, want)


def test_on_the_second_gpu():
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    x = {k: v.detach().to("cuda:1").requires_grad_() for k, v in inputs(SMALL).items()}
    got = outputs_and_gradients(scan, x, seq_idx=SMALL.options["seq_idx"].to("cuda:1"))
    assert got["y"].device == torch.device("cuda:1")
    assert_close({k: v.to("cuda:0") for k, v in got.items()}, truth(SMALL), LIMITS[F32])


# --- size ---------------------------------------------------------------------------------------


def large_inputs(batch: int, length: int, channels: int) -> dict[str, Any]:
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int, dtype: torch.dtype = BF16) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda", dtype=dtype)

    x = {
        "u": normal(batch, length, channels),
        "delta": normal(batch, length, channels).sub_(3),
        "A": -torch.arange(1.0, 17.0, device="cuda").repeat(channels, 1),
        "B": normal(batch, length, 16),
        "C": normal(batch, length, 16),
        "D": normal(channels, dtype=F32),
        "z": normal(batch, length, channels),
        "delta_bias": normal(channels, dtype=F32),
    }
    return {k: v.requires_grad_() for k, v in x.items()}


def test_memory_beyond_the_inputs_is_at_most_twice_theirs():
    x = large_inputs(16, 1024, 1024)
    dy = torch.randn(16, 1024, 1024, device="cuda").to(BF16)
    gradients(x, dy)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    gradients(x, dy)
    peak = torch.cuda.max_memory_allocated() - before
    assert peak <= 2 * sum(v.nbytes for v in x.values())


def test_more_elements_than_32_bits_count():
    """The first rows, and the last from the state before them, which parts of the scan bring."""
    torch.cuda.empty_cache()
    if torch.cuda.mem_get_info()[0] < 100e9:
        pytest.skip("needs 100 GB of free memory")
    length, ends = 2_200_000, 1000
    x = large_inputs(1, length, 1024)
    assert x["u"].numel() > 1 << 31
    with torch.no_grad():
        x["A"][:, 0] = -1e-5  # remembers half a million steps
    rows = ("u", "delta", "B", "C", "z")
    y, final = scan(**x, delta_softplus=True, return_final_state=True)
    grads = torch.autograd.grad(y, [x[k] for k in rows], x["u"].detach())
    got = {"y": y.detach()} | dict(zip(rows, grads, strict=True))

    def part(steps: slice) -> dict[str, Tensor]:
        return {k: v[:, steps] if k in rows else v for k, v in x.items()}

    state = None
    with torch.no_grad():
        for steps in (slice(0, length // 2), slice(length // 2, length - ends)):
            _, state = scan(
                **part(steps), delta_softplus=True, initial_state=state, return_final_state=True
            )
    assert state is not None
    last = as_float64(part(slice(length - ends, None)) | {"initial_state": state})
    y, last_final = reference(**last, delta_softplus=True, return_final_state=True)
    grads = torch.autograd.grad(y, [last[k] for k in rows], last["u"].detach())
    want = {"y": y} | dict(zip(rows, grads, strict=True))
    assert_close({k: v[:, -ends:] for k, v in got.items()}, want, LIMITS[BF16])
    assert relative_error(final, last_final) < 3e-5  # half a million float32 steps are in it

    first = reference(**as_float64(part(slice(0, ends))), delta_softplus=True)
    assert relative_error(got["y"][:, :ends], first) < LIMITS[BF16][0]
