"""Causal convolution with SiLU: torch operations, kernels and operator against a float64 loop.

The kernels are called directly: on a machine without a GPU they run in Triton's interpreter.
"""

import math
from collections.abc import Callable
from typing import Any, cast

import pytest
import torch
from fused_cases import DEVICE, TOLERANCE
from scan_cases import relative_error
from torch import Tensor, library

from scangolf.ops import conv
from scangolf.ops.conv import causal_conv_silu

NAMES = ("x", "weight", "bias", "seq_idx", "initial")
OPTIONAL = ("bias", "initial")


def make_inputs(
    batch: int = 2,
    length: int = 11,
    channels: int = 6,
    taps: int = 4,
    dtype: torch.dtype = torch.float64,
    optional: tuple[str, ...] = OPTIONAL,
    starts: tuple[int, ...] = (),
) -> dict[str, Any]:
    """A document begins at each of `starts`, in the second sequence one step later."""
    generator = torch.Generator().manual_seed(0)
    shapes = {
        "x": (batch, length, channels),
        "weight": (channels, taps),
        "bias": (channels,),
        "initial": (batch, taps - 1, channels),
    }
    x: dict[str, Any] = {
        name: torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)
        for name, shape in shapes.items()
        if name not in OPTIONAL or name in optional
    }
    if starts:
        x["seq_idx"] = torch.zeros(batch, length, dtype=torch.int32)
        for row in range(batch):
            for i, start in enumerate(starts):  # numbers come back: 0, 1, 0, ...
                x["seq_idx"][row, start + row :] = (i + 1) % 2
    return x


def truth(x: Tensor, weight: Tensor, bias=None, seq_idx=None, initial=None) -> Tensor:
    """One position, one tap at a time."""
    (batch, length, channels), taps = x.shape, weight.shape[1]
    before = x.new_zeros(batch, taps - 1, channels) if initial is None else initial
    inputs = [*before.unbind(1), *x.unbind(1)]
    outputs = []
    for t in range(length):
        p = x.new_zeros(batch, channels) if bias is None else bias.expand(batch, channels)
        same = torch.ones(batch, 1, dtype=torch.bool, device=x.device)
        for back in range(taps):
            if seq_idx is not None and 1 <= back <= t:
                same = same & (seq_idx[:, t - back, None] == seq_idx[:, t - back + 1, None])
            seen = inputs[t + taps - 1 - back] * weight[:, taps - 1 - back]
            p = p + torch.where(same, seen, 0.0)
        outputs.append(p / (1 + torch.exp(-p)))
    return torch.stack(outputs, 1)


def with_gradients(function: Callable[..., Any], x: dict[str, Any]) -> dict[str, Tensor]:
    """y, and the gradients of a random weighting of it; the weights are bfloat16 numbers."""
    tensors = {k: v.detach().requires_grad_() for k, v in x.items() if k != "seq_idx"}
    y = function(**(x | tensors))
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(y.shape, generator=generator).bfloat16().to(y.dtype).to(y.device)
    grads = torch.autograd.grad(y, list(tensors.values()), weights, materialize_grads=True)
    return {"y": y.detach()} | dict(zip(tensors, grads, strict=True))


def in_float64(x: dict[str, Any]) -> dict[str, Any]:
    return {k: v if k == "seq_idx" else v.double() for k, v in x.items()}


def assert_matches(function: Callable[..., Any], x: dict[str, Any]) -> None:
    got, want = with_gradients(function, x), with_gradients(truth, in_float64(x))
    assert got["y"].is_contiguous()
    for name, value in got.items():
        assert value.dtype == x["x" if name == "y" else name].dtype, name
        if value.numel():
            assert relative_error(value, want[name]) < TOLERANCE[value.dtype], name


# --- kernels ------------------------------------------------------------------------------------


class Kernels(torch.autograd.Function):
    """The kernels as the operator calls them."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor:
        from scangolf.ops import conv_triton

        ctx.save_for_backward(*inputs)
        return conv_triton.forward(*inputs)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        from scangolf.ops import conv_triton

        inputs = ctx.saved_tensors
        dx, dw, d_bias, d_initial = conv_triton.backward(*grads, *inputs)
        bias, initial = (inputs[NAMES.index(name)] for name in OPTIONAL)
        optional = (None if v is None else g for v, g in ((bias, d_bias), (initial, d_initial)))
        d_bias, d_initial = optional
        return dx, dw, d_bias, None, d_initial


def kernels(**x: Any) -> Tensor:
    pytest.importorskip("triton")
    inputs = (x[name].to(DEVICE) if name in x else None for name in NAMES)
    return cast(Any, Kernels.apply(*inputs)).cpu()


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("length", [1, 2, 31, 63])
def test_kernels(length, dtype):
    assert_matches(kernels, make_inputs(length=length, channels=70, dtype=dtype))


@pytest.mark.usefixtures("poisoned_memory")
def test_kernels_on_a_long_sequence():
    x = make_inputs(1, 1000, 3, dtype=torch.float32, starts=(5, 31, 32, 33, 64, 500, 998))
    assert_matches(kernels, x)


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("optional", [(), ("bias",), ("initial",), OPTIONAL], ids=str)
@pytest.mark.parametrize("starts", [(), (1, 2, 3, 17, 31, 32, 33, 35)], ids=["one", "many"])
def test_kernels_with_some_options(optional, starts):
    assert_matches(kernels, make_inputs(2, 37, 5, 4, torch.float32, optional, starts))


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("taps", [2, 3, 5, 8])
def test_kernels_with_other_taps(taps):
    assert_matches(kernels, make_inputs(2, 36, 5, taps, torch.float32, starts=(2, 9, 30, 33)))
    assert_matches(kernels, make_inputs(1, 3, 5, taps, torch.float32))


def test_kernels_with_more_channels_than_a_program():
    assert_matches(kernels, make_inputs(2, 3, 1000, dtype=torch.float32))


def test_kernels_with_long_chunks(monkeypatch):
    conv_triton = pytest.importorskip("scangolf.ops.conv_triton")
    monkeypatch.setattr(conv_triton, "ENOUGH_PROGRAMS", 1)
    assert_matches(kernels, make_inputs(1, 150, 3, dtype=torch.float32, starts=(127, 128, 130)))


def test_kernels_with_mixed_dtypes_and_strides():
    """As in a layer: a bfloat16 slice of a projection, float32 parameters."""
    x = make_inputs(2, 9, 10, dtype=torch.float32)
    wide = torch.cat([x["x"], x["x"]], -1).bfloat16()
    x["x"] = wide.chunk(2, -1)[1]
    assert x["x"].stride(1) == 20
    got, want = with_gradients(kernels, x), with_gradients(truth, in_float64(x))
    for name, value in got.items():
        assert value.dtype == x["x" if name == "y" else name].dtype, name
        assert relative_error(value, want[name]) < TOLERANCE[value.dtype], name


def test_kernels_with_channels_that_lie_apart():
    x = make_inputs(2, 9, 10, dtype=torch.float32)
    x["x"], x["weight"] = (x[k].mT.contiguous().mT for k in ("x", "weight"))
    assert_matches(kernels, x)
    inputs = kernels(**{k: v.requires_grad_() for k, v in x.items()})
    (dx,) = torch.autograd.grad(inputs.sum(), x["x"])  # a gradient whose strides are all zero
    assert torch.isfinite(dx).all()


def test_kernels_do_not_see_other_documents():
    """Not even through a product with zero."""
    x = make_inputs(1, 8, 3, dtype=torch.float32, starts=(4,))
    x["weight"].abs_()
    x["initial"][:] = x["x"][:, :4] = math.inf
    got = kernels(**x)[:, 4:]
    x["initial"][:] = x["x"][:, :4] = 0.0
    assert torch.equal(got, kernels(**x)[:, 4:])


def test_kernels_give_the_same_bits_every_time():
    x = make_inputs(2, 70, 5, dtype=torch.bfloat16)
    first, second = (with_gradients(kernels, x) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


# --- torch operations, and the operator ---------------------------------------------------------


def by_name(**x: Any) -> Tensor:
    """The public function, on the GPU if there is one: kernels there, but not for float64."""
    moved = {k: v.to(DEVICE) for k, v in x.items()}
    names = {"x": "x_BLD", "weight": "weight_DK", "bias": "bias_D"}
    return causal_conv_silu(**{names.get(k, k): v for k, v in moved.items()}).cpu()


@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=str)
@pytest.mark.parametrize("length", [1, 2, 63, 200])
def test_function(length, dtype):
    starts = tuple(s for s in (2, 3, 10, 60) if s < length)
    assert_matches(by_name, make_inputs(length=length, dtype=dtype))
    assert_matches(by_name, make_inputs(length=length, dtype=dtype, starts=starts))
    assert_matches(by_name, make_inputs(length=length, dtype=dtype, optional=(), starts=starts))


@pytest.mark.parametrize("taps", [1, 2, 9])
def test_other_taps(taps):
    assert_matches(by_name, make_inputs(taps=taps, starts=(3, 7)))


def test_transposed_input():
    x = make_inputs()
    x["x"] = x["x"].mT.contiguous().mT
    assert_matches(by_name, x)


@pytest.mark.parametrize("starts", [(), (3,)])
def test_nothing(starts):
    x = make_inputs(length=0, starts=starts)
    got = with_gradients(by_name, x)
    assert got["y"].shape == (2, 0, 6)
    assert all((v == 0).all() for v in got.values())


def test_gradcheck():
    x = make_inputs(starts=(3, 7))
    tensors = tuple(v.requires_grad_() for k, v in x.items() if k != "seq_idx")

    def function(x_BLD, weight, bias, initial):
        return causal_conv_silu(x_BLD, weight, bias, x["seq_idx"], initial)

    assert torch.autograd.gradcheck(function, tensors)


@pytest.mark.parametrize("optional", [OPTIONAL, ()], ids=["all options", "no option"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_opcheck(optional, dtype):
    x = make_inputs(batch=1, optional=optional, dtype=dtype, starts=(3,) if optional else ())
    tensors = [x[name].to(DEVICE) if name in x else None for name in NAMES]
    wanted = [v if v is None or not v.is_floating_point() else v.requires_grad_() for v in tensors]
    library.opcheck(conv._conv, tuple(wanted))
    detached = [None if v is None else v.detach() for v in tensors]
    library.opcheck(conv._conv_backward, (detached[0], *detached))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_as_one_graph(dynamic):
    torch.compiler.reset()
    compiled = torch.compile(by_name, backend="aot_eager", fullgraph=True, dynamic=dynamic)
    for length in (40, 65):
        x = make_inputs(length=length, starts=(3,))
        got, want = (with_gradients(f, x) for f in (compiled, by_name))
        for name in want:
            torch.testing.assert_close(got[name], want[name], rtol=1e-12, atol=1e-14)


MISTAKES = [
    ({"x": torch.zeros(2, 6)}, r"x has shape \(2, 6\): expected \[batch, length, channels\]"),
    ({"weight": torch.zeros(6, 1, 4)}, r"weight has shape .*: expected \[channels, taps\]"),
    ({"weight": torch.zeros(5, 4)}, r"weight has shape \(5, 4\): expected \(6, 4\)"),
    ({"weight": torch.zeros(6, 0)}, "weight has no taps: expected one at least"),
    ({"bias": torch.zeros(6).long()}, "bias has dtype torch.int64: expected a floating dtype"),
    ({"bias": torch.zeros(6).double()}, "bias has dtype torch.float64, x has torch.float32"),
    ({"initial": torch.zeros(2, 4, 6)}, r"initial has shape \(2, 4, 6\): expected \(2, 3, 6\)"),
    ({"seq_idx": torch.zeros(2, 11)}, "seq_idx has dtype torch.float32: expected torch.int32"),
    ({"seq_idx": torch.zeros(2, 4).int()}, r"seq_idx has shape \(2, 4\): expected \(2, 11\)"),
    ({"x": torch.zeros(2, 11, 6, device="meta")}, "weight is on cpu: expected meta, where x is"),
]


@pytest.mark.parametrize(("change", "message"), MISTAKES, ids=[m for _, m in MISTAKES])
def test_mistakes_are_told_in_one_line(change, message):
    x = make_inputs(dtype=torch.float32) | change
    with pytest.raises(ValueError, match=message) as error:
        causal_conv_silu(x["x"], x["weight"], x["bias"], x.get("seq_idx"), x["initial"])
    assert "\n" not in str(error.value)
