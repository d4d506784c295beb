"""The Triton kernels of the SSD scan against the float64 recurrence, through the operator.

On a machine without a GPU they run in Triton's interpreter, which rounds bfloat16 towards zero:
there 16-bit numbers are float16's.
"""

from typing import Any

import pytest
import torch
from scan_cases import documents, relative_error
from torch import Tensor, library

from scangolf.ops.reference import ssd_scan_sequential

pytest.importorskip("triton")
from scangolf.ops import ssd
from scangolf.ops.ssd import ssd_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL_DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16
LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 1.5e-2), torch.float16: (1e-3, 3e-3)}
ROWS = ("x", "B", "C", "z")
OPTIONAL = ("D", "z", "dt_bias", "initial_state")


def make_inputs(
    length: int,
    heads: int = 2,
    head_dim: int = 16,
    state: int = 16,
    groups: int = 1,
    dtype: torch.dtype = torch.float32,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {
        "x": normal(2, length, heads, head_dim),
        "dt": normal(2, length, heads) - 1,
        "A": -normal(heads).exp(),
        "B": normal(2, length, groups, state),
        "C": normal(2, length, groups, state),
        "D": normal(heads),
        "z": normal(2, length, heads, head_dim),
        "dt_bias": normal(heads),
        "initial_state": normal(2, heads, head_dim, state),
    }
    return {
        k: v.to(DEVICE, dtype if k in ROWS else torch.float32).requires_grad_()
        for k, v in inputs.items()
        if k not in without
    }


def outputs_and_gradients(
    scan: Any, inputs: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    y, final = scan(**inputs, dt_softplus=True, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(v.shape, generator=generator).to(v) for v in (y, final))
    grads = torch.autograd.grad((y, final), list(inputs.values()), tuple(weights))
    return {"y": y, "final": final} | dict(zip(inputs, grads, strict=True))


def check(inputs: dict[str, Tensor], chunk_size: int = 16, seq_idx: Tensor | None = None) -> None:
    """Whatever memory held before is NaN: what is not written shows.

    Decays are exponentials of differences of float32 sums over a chunk. In chunks of 100 the sums
    reach -254, where neighbouring numbers are 1.5e-5 apart, and so far off can a decay be.
    """
    _ = [torch.full((1 << 16,), torch.nan, device=DEVICE) for _ in range(8)]
    got = outputs_and_gradients(
        ssd_scan, inputs, chunk_size=chunk_size, seq_idx=seq_idx, backend="triton"
    )
    exact = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    want = outputs_and_gradients(ssd_scan_sequential, exact, seq_idx=seq_idx)
    limits = LIMITS[inputs["x"].dtype]
    if inputs["x"].dtype == torch.float32 and chunk_size >= 100:
        limits = (2e-5, limits[1])
    for name, value in got.items():
        limit = limits[name not in ("y", "final")]
        assert relative_error(value, want[name]) < limit, name


@pytest.mark.parametrize("dtype", [torch.float32, SMALL_DTYPE], ids=str)
@pytest.mark.parametrize("length", [1, 16, 63])
def test_against_float64(length, dtype):
    check(make_inputs(length, dtype=dtype))


@pytest.mark.parametrize("chunk_size", [32, 100])
def test_sizes_that_are_no_powers_of_two(chunk_size):
    check(make_inputs(70, heads=4, head_dim=5, state=3, groups=2), chunk_size)
    check(make_inputs(40, heads=3, head_dim=20, state=40), chunk_size)


@pytest.mark.parametrize("starts", [(1,), (16, 31), (5, 6, 47)])
def test_documents(starts):
    seq_idx = documents(2, 50, *starts).to(DEVICE)
    check(make_inputs(50, groups=2, dtype=SMALL_DTYPE), seq_idx=seq_idx)


@pytest.mark.parametrize("name", OPTIONAL)
def test_without(name):
    check(make_inputs(20, without=(name,)))


def test_strong_decays_stay_finite():
    inputs = make_inputs(40)
    with torch.no_grad():
        inputs["A"][0] = -1e4
    check(inputs)


def test_strided_inputs_and_the_same_bits_every_time():
    inputs = make_inputs(40, groups=2)
    wide = torch.cat([inputs[k].detach().flatten(2) for k in ROWS], dim=2)
    parts = wide.split([inputs[k][0, 0].numel() for k in ROWS], dim=2)
    strided = {
        k: part.view(*part.shape[:2], *inputs[k].shape[2:]).requires_grad_()
        for k, part in zip(ROWS, parts, strict=True)
    }
    options = {"chunk_size": 16, "backend": "triton"}
    got, again, want = (
        outputs_and_gradients(ssd_scan, inputs | x, **options) for x in (strided, strided, {})
    )
    for name in want:
        assert torch.equal(got[name], again[name]), name
        assert torch.equal(got[name], want[name]), name


def test_opcheck():
    x = make_inputs(20, groups=2, without=("z",))
    args = (*(x[k] for k in list(x)[:-1]), True, 16, x["initial_state"], None, "triton")
    library.opcheck(ssd._scan, args)
