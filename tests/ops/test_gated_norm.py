"""The gated RMS norm: torch operations, kernels and operator against its formula in float64.

The kernels are called directly: on a machine without a GPU they run in Triton's interpreter.
"""

import pytest
import torch
from fused_cases import (
    DEVICE,
    TOLERANCE,
    assert_close,
    normal,
    weights,
    with_gradients,
)
from torch import Tensor, library

from scangolf.ops import gated_norm
from scangolf.ops.gated_norm import gated_rms_norm

SHAPES = [(3, 7, 64), (1, 5), (2, 3), (4, 1000), (70, 33)]


def make_inputs(*shape: int, dtype: torch.dtype) -> dict[str, Tensor]:
    return {"x": normal(*shape, dtype=dtype), "z": normal(*shape, dtype=dtype, seed=2)}


def wanted(x: dict[str, Tensor]) -> dict[str, Tensor]:
    """As the formula is written, with autograd's own gradients."""
    eps = torch.finfo(torch.promote_types(x["x"].dtype, torch.float32)).eps

    def truth(x: Tensor, z: Tensor) -> Tensor:
        p = x * z / (1 + torch.exp(-z))
        return p / (p.square().mean(-1, keepdim=True) + eps).sqrt()

    return with_gradients(truth, {k: v.double() for k, v in x.items()})


def kernels(x: dict[str, Tensor]) -> dict[str, Tensor]:
    pytest.importorskip("triton")
    from scangolf.ops import gated_norm_triton

    eps, (x_there, z_there) = gated_norm.epsilon(x["x"]), (v.to(DEVICE) for v in x.values())
    y = gated_norm_triton.forward(x_there, z_there, eps)
    dx, dz = gated_norm_triton.backward(weights(y), x_there, z_there, eps)
    return {"y": y.cpu(), "x": dx.cpu(), "z": dz.cpu()}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_kernels(shape, dtype):
    x = make_inputs(*shape, dtype=dtype)
    assert_close(kernels(x), wanted(x), x)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_function(shape, dtype):
    x = make_inputs(*shape, dtype=dtype)
    got = with_gradients(gated_rms_norm, {k: v.to(DEVICE) for k, v in x.items()})
    assert_close({k: v.cpu() for k, v in got.items()}, wanted(x), x)


def test_small_numbers_are_not_blown_up():
    """Where the mean square is far below eps, y is p / sqrt(eps)."""
    x, z = torch.full((1, 8), 1e-6), torch.full((1, 8), 2.0)
    p = 1e-6 * 2 / (1 + torch.e**-2)
    want = p / (p * p + torch.finfo(torch.float32).eps) ** 0.5
    torch.testing.assert_close(gated_rms_norm(x, z), torch.full((1, 8), want))


def test_a_closed_gate_gives_zeros_and_no_gradient_that_is_not_a_number():
    x = {"x": torch.ones(2, 8), "z": torch.full((2, 8), -1e4)}
    for name, value in with_gradients(gated_rms_norm, x).items():
        assert (value == 0).all(), name


def test_strided_inputs():
    wide = normal(2, 5, 24, dtype=torch.float64)
    x, _, z = wide.chunk(3, -1)
    got, want = gated_rms_norm(x, z), gated_rms_norm(x.contiguous(), z.contiguous())
    assert got.is_contiguous()
    assert torch.equal(got, want)


def test_nothing():
    got = with_gradients(gated_rms_norm, make_inputs(2, 0, 6, dtype=torch.float32))
    assert all(v.shape == (2, 0, 6) for v in got.values())


def test_gradcheck():
    x = make_inputs(3, 5, dtype=torch.float64)
    assert torch.autograd.gradcheck(gated_rms_norm, tuple(v.requires_grad_() for v in x.values()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    x = make_inputs(3, 5, dtype=dtype)
    inputs = tuple(v.to(DEVICE).requires_grad_() for v in x.values())
    library.opcheck(gated_norm._norm, inputs)
    inputs = tuple(v.detach() for v in inputs)
    library.opcheck(gated_norm._norm_backward, (inputs[0], *inputs))


def test_compiles_as_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(gated_rms_norm, backend="aot_eager", fullgraph=True)
    for length in (4, 7):
        x = make_inputs(length, 5, dtype=torch.float64)
        got, want = (with_gradients(f, x) for f in (compiled, gated_rms_norm))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("x", "z", "message"),
    [
        (torch.ones(2).long(), torch.ones(2), "x has dtype torch.int64: expected a floating dtype"),
        (torch.ones(2), torch.ones(3), r"z is torch.float32 of shape \(3,\) on cpu: expected .*2"),
        (torch.ones(2), torch.ones(2).double(), "z is torch.float64 .* expected torch.float32"),
    ],
)
def test_mistakes_are_told_in_one_line(x, z, message):
    with pytest.raises(ValueError, match=message) as error:
        gated_rms_norm(x, z)
    assert "\n" not in str(error.value)
