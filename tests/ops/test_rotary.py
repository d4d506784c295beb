"""Norm, rotation and gain: torch operations, kernels and operator against complex numbers.

The truth takes the pairs of a head as complex numbers, which a rotation multiplies. The kernels are
called directly: on a machine without a GPU they run in Triton's interpreter.
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

from scangolf.ops import rotary
from scangolf.ops.gated_norm import epsilon
from scangolf.ops.rotary import norm_rotate

SHAPES = [(2, 7, 4, 16), (1, 1, 1, 2), (2, 33, 3, 10), (1, 70, 8, 64)]


def angles(length: int, head_dim: int) -> Tensor:
    frequency = 100.0 ** -(torch.arange(0, head_dim, 2).double() / head_dim)
    return torch.outer(torch.arange(length).double(), frequency)


def make_inputs(*shape: int, dtype: torch.dtype, gain: bool = True) -> dict[str, Tensor]:
    x = {"x_BLHP": normal(*shape, dtype=dtype)}
    if gain:
        x["gain_H"] = normal(shape[2], dtype=torch.promote_types(dtype, torch.float32), seed=2)
    return x


def wanted(x: dict[str, Tensor]) -> dict[str, Tensor]:
    eps = torch.finfo(torch.promote_types(x["x_BLHP"].dtype, torch.float32)).eps

    def truth(x_BLHP: Tensor, gain_H: Tensor | None = None) -> Tensor:
        length, _, head_dim = x_BLHP.shape[1:]
        n = x_BLHP / (x_BLHP.square().mean(-1, keepdim=True) + eps).sqrt()
        pairs = torch.complex(*n.chunk(2, -1))
        turned = pairs * torch.exp(-1j * angles(length, head_dim))[:, None]
        y = torch.cat([turned.real, turned.imag], -1)
        return y if gain_H is None else y * gain_H[:, None]

    return with_gradients(truth, {k: v.double() for k, v in x.items()})


def tables(x_BLHP: Tensor) -> tuple[Tensor, Tensor]:
    angle = angles(x_BLHP.shape[1], x_BLHP.shape[3])
    wide = torch.promote_types(x_BLHP.dtype, torch.float32)
    return angle.cos().to(x_BLHP.device, wide), angle.sin().to(x_BLHP.device, wide)


def operator(x_BLHP: Tensor, gain_H: Tensor | None = None) -> Tensor:
    return norm_rotate(x_BLHP, *tables(x_BLHP), gain_H)


def kernels(x: dict[str, Tensor]) -> dict[str, Tensor]:
    pytest.importorskip("triton")
    from scangolf.ops import rotary_triton

    x_there, gain = x["x_BLHP"].to(DEVICE), x.get("gain_H")
    inputs = (x_there, *tables(x_there), None if gain is None else gain.to(DEVICE))
    y = rotary_triton.forward(*inputs, epsilon(x_there))
    dx, d_gain = rotary_triton.backward(weights(y), *inputs, epsilon(x_there))
    got = {"y": y.cpu(), "x_BLHP": dx.cpu(), "gain_H": d_gain.cpu()}
    return {k: v for k, v in got.items() if k in ("y", *x)}


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:], ids=str)
def test_kernels(shape, gain, dtype):
    x = make_inputs(*shape, dtype=dtype, gain=gain)
    assert_close(kernels(x), wanted(x), x)


def test_kernels_give_the_same_bits_every_time():
    x = make_inputs(2, 70, 3, 16, dtype=torch.bfloat16)
    first, second = kernels(x), kernels(x)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("shape", SHAPES[:1] + SHAPES[2:], ids=str)
def test_function(shape, gain, dtype):
    x = make_inputs(*shape, dtype=dtype, gain=gain)
    got = with_gradients(operator, {k: v.to(DEVICE) for k, v in x.items()})
    assert_close({k: v.cpu() for k, v in got.items()}, wanted(x), x)


def test_a_head_of_one_pair_by_hand():
    def exact(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)

    x, cos, sin = exact(3, 4).view(1, 1, 1, 2), exact(0.6)[None], exact(0.8)[None]
    y = norm_rotate(x, cos, sin, exact(10))
    r = 12.5**-0.5  # of the mean square; 3 * 0.6 + 4 * 0.8 and 4 * 0.6 - 3 * 0.8
    torch.testing.assert_close(y.flatten(), exact(50 * r, 0))


def test_products_of_queries_and_keys_depend_on_their_distance_only():
    q, k = (normal(1, 1, 1, 16, dtype=torch.float64, seed=s).expand(1, 20, 1, 16) for s in (1, 2))
    scores = operator(q)[0, :, 0] @ operator(k)[0, :, 0].T
    for distance in (0, 3, 11):
        same = scores.diagonal(-distance)
        torch.testing.assert_close(same, same[:1].expand_as(same), rtol=1e-12, atol=1e-12)


def test_transposed_input():
    x = normal(2, 4, 7, 16, dtype=torch.float64)
    got, want = operator(x.transpose(1, 2)), operator(x.transpose(1, 2).contiguous())
    assert got.is_contiguous()
    assert torch.equal(got, want)


def test_nothing():
    got = with_gradients(operator, make_inputs(2, 0, 3, 6, dtype=torch.float32))
    assert (got["gain_H"] == 0).all()
    assert got["x_BLHP"].shape == (2, 0, 3, 6)


def test_gradcheck():
    x = make_inputs(2, 3, 2, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(operator, tuple(v.requires_grad_() for v in x.values()))


@pytest.mark.parametrize("gain", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(dtype, gain):
    x = make_inputs(1, 3, 2, 4, dtype=dtype, gain=gain)
    x = {k: v.to(DEVICE).requires_grad_() for k, v in x.items()}
    inputs = (x["x_BLHP"], *tables(x["x_BLHP"]), x.get("gain_H"))
    library.opcheck(rotary._rotate, inputs)
    inputs = tuple(None if v is None else v.detach() for v in inputs)
    library.opcheck(rotary._rotate_backward, (inputs[0], *inputs))


def test_compiles_as_one_graph():
    torch.compiler.reset()
    compiled = torch.compile(operator, backend="aot_eager", fullgraph=True)
    for length in (4, 7):
        x = make_inputs(1, length, 2, 6, dtype=torch.float64)
        got, want = (with_gradients(f, x) for f in (compiled, operator))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 4, 2, 5), (4, 2), (4, 2), None), "x has heads of 5: expected an even number"),
        (((1, 4, 2, 6), (4, 2), (4, 3), None), r"cos has shape \(4, 2\): expected \(4, 3\)"),
        (((1, 4, 2, 6), (4, 3), (3, 3), None), r"sin has shape \(3, 3\): expected \(4, 3\)"),
        (((1, 4, 2, 6), (4, 3), (4, 3), (3,)), r"gain has shape \(3,\): expected \(2,\)"),
    ],
)
def test_mistakes_are_told_in_one_line(shapes, message):
    x, cos, sin, gain = (None if s is None else torch.zeros(s) for s in shapes)
    assert x is not None
    assert cos is not None
    assert sin is not None
    with pytest.raises(ValueError, match=message) as error:
        norm_rotate(x, cos, sin, gain)
    assert "\n" not in str(error.value)
