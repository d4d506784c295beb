"""The MLP as one operator: torch operations, kernels and operator against float64.

The kernels are called directly: on a machine without a GPU they run in Triton's interpreter, whose
tensor descriptors do not know bfloat16. A GPU needs compute capability 9 for them.
"""

import pytest
import torch
from fused_cases import DEVICE, TOLERANCE, assert_close, normal, weights, with_gradients
from scan_cases import relative_error
from torch import Tensor, library

from scangolf.ops import squared_relu
from scangolf.ops.squared_relu import squared_relu_mlp

SHAPES = [(3, 7, 64, 96), (1, 8, 16), (20, 3, 5), (37, 40, 264)]
KERNEL_DTYPES = [torch.float16, torch.bfloat16][: 2 if DEVICE == "cuda" else 1]
KERNEL_SHAPES = [(1, 8, 8), (37, 64, 128), (300, 72, 264), (128, 128, 256)]


def make_inputs(*shape: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Of [..., D, H]: numbers of about one everywhere, as in a model."""
    *rows, D, H = shape
    return {
        "x": normal(*rows, D, dtype=dtype),
        "up": normal(H, D, dtype=dtype, seed=2) / D**0.5,
        "down": normal(D, H, dtype=dtype, seed=3) / H**0.5,
    }


def truth(x: Tensor, up: Tensor, down: Tensor) -> Tensor:
    u = torch.einsum("...d,hd->...h", x, up)
    return torch.einsum("...h,dh->...d", torch.where(u > 0, u * u, 0.0), down)


def wanted(x: dict[str, Tensor]) -> dict[str, Tensor]:
    return with_gradients(truth, {k: v.double() for k, v in x.items()})


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", KERNEL_DTYPES, ids=str)
@pytest.mark.parametrize("shape", KERNEL_SHAPES, ids=str)
def test_kernels(shape, dtype):
    kernels = pytest.importorskip("scangolf.ops.squared_relu_triton")
    x = {k: v.to(DEVICE) for k, v in make_inputs(*shape, dtype=dtype).items()}
    if not kernels.takes(x["x"], x["up"]):
        pytest.skip("they need compute capability 9")
    exact = {k: v.double() for k, v in x.items()}
    u = exact["x"] @ exact["up"].mT
    a = kernels.hidden(x["x"], x["up"])
    assert a.dtype == dtype
    assert relative_error(a, u.relu().square()) < TOLERANCE[dtype]
    dy = weights(x["x"])
    du = kernels.hidden_backward(dy, x["down"], a)
    assert du.dtype == dtype
    assert relative_error(du, 2 * u.relu() * (dy.double() @ exact["down"])) < TOLERANCE[dtype]
    assert ((du == 0) | (u > 0)).all()


# torch says so of the first product of its backward thread, and sets the context itself.
@pytest.mark.filterwarnings("ignore:Attempting to run cuBLAS")
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_function(shape, dtype):
    x = make_inputs(*shape, dtype=dtype)
    got = with_gradients(squared_relu_mlp, {k: v.to(DEVICE) for k, v in x.items()})
    assert_close({k: v.cpu() for k, v in got.items()}, wanted(x), x)


@pytest.mark.skipif(DEVICE == "cpu", reason="on a GPU alone it takes the kernels")
def test_function_by_its_kernels():
    x = make_inputs(3, 1400, 128, 264, dtype=torch.bfloat16)
    there = {k: v.to(DEVICE) for k, v in x.items()}
    if not squared_relu.fused_takes(there["x"], there["up"]):
        pytest.skip("they need compute capability 9")
    got = with_gradients(squared_relu_mlp, there)
    assert_close({k: v.cpu() for k, v in got.items()}, wanted(x), x)


def test_nothing():
    got = with_gradients(squared_relu_mlp, make_inputs(0, 6, 4, dtype=torch.float32))
    assert got["y"].shape == got["x"].shape == (0, 6)
    assert (got["up"] == 0).all()
    assert (got["down"] == 0).all()


def test_gradcheck():
    x = make_inputs(3, 5, 7, dtype=torch.float64)
    inputs = tuple(v.requires_grad_() for v in x.values())
    assert torch.autograd.gradcheck(squared_relu_mlp, inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype):
    x = make_inputs(2, 3, 5, 7, dtype=dtype)
    inputs = tuple(v.to(DEVICE).requires_grad_() for v in x.values())
    library.opcheck(squared_relu._mlp, inputs)
    inputs = tuple(v.detach() for v in inputs)
    _, a = squared_relu._mlp(*inputs)
    library.opcheck(squared_relu._mlp_backward, (inputs[0], *inputs, a))


def test_compiles_as_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(squared_relu_mlp, backend="aot_eager", fullgraph=True)
    for length in (4, 7):
        x = make_inputs(length, 5, 6, dtype=torch.float64)
        got, want = (with_gradients(f, x) for f in (compiled, squared_relu_mlp))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.ones(2, 5).long()}, "x has dtype torch.int64: expected a floating dtype"),
        ({"up": torch.ones(7, 4)}, r"up is .* shape \(7, 4\) on cpu: expected .* shape \(7, 5\)"),
        ({"down": torch.ones(7, 5)}, r"down is .* expected torch.float32 of shape \(5, 7\)"),
        ({"down": torch.ones(5, 7).double()}, "down is torch.float64 .* expected torch.float32"),
    ],
)
def test_mistakes_are_told_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        squared_relu_mlp(**(make_inputs(2, 5, 7, dtype=torch.float32) | change))
    assert "\n" not in str(error.value)
