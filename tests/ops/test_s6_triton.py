"""The Triton kernels of the selective scan against the float64 recurrence.

On a machine without a GPU they run in Triton's interpreter, slowly: the shapes are small, and spans
and chunks are made short so that every border lies within a few steps. On a GPU compilation is what
takes time: tests keep to few shapes of programs, and to states of few numbers.
"""

from typing import Any, cast

import pytest
import torch
from scan_cases import (
    as_float64,
    documents,
    make_inputs,
    outputs_and_gradients,
    relative_error,
)
from torch import Tensor, library

from scangolf.ops.reference import selective_scan_sequential

pytest.importorskip("triton")
from scangolf.ops import s6, s6_triton
from scangolf.ops.s6_triton import Block, Tuning

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
NAMES = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")


def programs(channels: int = 32, steps: int = 2, chunks: int = 1, ahead: bool = True) -> Tuning:
    block = Block(channels, steps, ahead)
    return Tuning(block, block, block, block, chunks)


backend: Any = s6_triton


class Scan(torch.autograd.Function):
    """The backend as the operator calls it."""

    @staticmethod
    def forward(ctx: Any, shapes: Any, softplus: bool, seq_idx: Any, *tensors: Any) -> Any:
        *inputs, initial = tensors
        y, final, saved = backend.forward(*inputs, softplus, initial, seq_idx, shapes)
        assert saved.shape == s6_triton.saved_shape(inputs[0], inputs[2], inputs[3], shapes)
        ctx.save_for_backward(saved, *inputs)
        ctx.rest = softplus, seq_idx, shapes
        ctx.given = [x is not None for x in tensors]
        return y, final

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        saved, *inputs = ctx.saved_tensors
        found = backend.backward(*grads, saved, *inputs, *ctx.rest)
        found = (g if given else None for g, given in zip(found, ctx.given, strict=True))
        return None, None, None, *found


def scan(shapes: Tuning | None = None, **x: Any) -> Any:
    """As `selective_scan`."""
    tensors: Any = [None if x.get(name) is None else x[name].to(DEVICE) for name in NAMES]
    if x["B"].dim() == 3:
        tensors[3:5] = (v.unsqueeze(2) for v in tensors[3:5])
    seq_idx = None if x.get("seq_idx") is None else x["seq_idx"].to(DEVICE)
    softplus = x.get("delta_softplus", False)
    y, final = cast(Any, Scan.apply(shapes, softplus, seq_idx, *tensors))
    return y.cpu(), final.cpu()


def assert_matches(inputs: dict[str, Any], shapes: Tuning, limits=(1e-5, 1e-4), **options) -> None:
    got = outputs_and_gradients(scan, inputs, shapes=shapes, **options)
    want = outputs_and_gradients(selective_scan_sequential, as_float64(inputs), **options)
    for name, value in got.items():
        assert relative_error(value, want[name]) < limits[name in inputs], name
        if name in inputs:
            assert value.dtype == inputs[name].dtype, name


@pytest.fixture(autouse=True)
def _poisoned_memory(monkeypatch):
    """What the kernels do not write is NaN; spans are short."""
    empty = torch.empty

    def poisoned(*shape, **options):
        x = empty(*shape, **options)
        return x.fill_(float("nan")) if x.dtype.is_floating_point else x

    monkeypatch.setattr(torch, "empty", poisoned)
    monkeypatch.setattr(Tensor, "new_empty", lambda x, *shape, **o: poisoned(
        *shape, **({"dtype": x.dtype, "device": x.device} | o)))  # fmt: skip
    monkeypatch.setattr(torch, "empty_like", lambda x, **o: poisoned(
        x.shape, **({"dtype": x.dtype, "device": x.device} | o)))  # fmt: skip
    monkeypatch.setattr(s6_triton, "SPAN", 4)


@pytest.mark.parametrize(
    ("length", "shapes"),
    [
        (1, programs()),
        (7, programs(ahead=False)),
        (13, programs(chunks=3)),
        (16, programs(64, 4, 2)),
    ],
    ids=["one step", "one chunk", "three chunks", "two channels a lane"],
)
def test_float32(length, shapes):
    assert_matches(make_inputs(length=length, state=3, dtype=torch.float32), shapes)


def test_documents_that_begin_within_and_at_the_borders_of_chunks():
    x = make_inputs(length=14, channels=4, state=2, dtype=torch.float32)
    assert_matches(x, programs(chunks=2), seq_idx=documents(2, 14, 3, 7, 10))
    assert_matches(x, programs(chunks=4), seq_idx=documents(2, 14, 3, 7, 10))


def test_groups_with_more_channels_than_a_program():
    x = make_inputs(batch=1, length=5, channels=80, state=2, groups=2, dtype=torch.float32)
    assert_matches(x, programs())


@pytest.mark.parametrize(
    ("optional", "chunks"), [(("initial_state",), 2), (("z",), 1), (("D", "delta_bias"), 1)]
)
def test_with_some_options(optional, chunks):
    x = make_inputs(batch=1, length=6, state=2, optional=optional, dtype=torch.float32)
    assert_matches(x, programs(chunks=chunks))


def test_bfloat16_and_sixteen_states():
    x = make_inputs(batch=1, length=9, channels=32, state=16, dtype=torch.bfloat16)
    # the interpreter cuts off what does not fit a bfloat16
    assert_matches(x, programs(), (4e-3 if DEVICE == "cuda" else 8e-3, 1e-2))


def test_strong_and_weak_decays():
    """Chunk summaries leave out states that have decayed; fast ones must not spoil the others."""
    x = make_inputs(batch=1, length=24, channels=4, state=6, dtype=torch.float32)
    with torch.no_grad():
        x["A"][:, 0], x["A"][:, 1:] = -1e-3, -1e4
    assert_matches(x, programs(chunks=2))


def test_without_softplus_a_step_may_be_negative():
    x = make_inputs(batch=1, length=12, channels=4, state=2, optional=(), dtype=torch.float32)
    with torch.no_grad():
        x["delta"] += 1.5
        assert (x["delta"] < 0).any()
    y = torch.randn(1, 12, 4)
    got, want = (
        torch.autograd.grad((f(**v)[0] * y).sum(), list(v.values()))
        for f, v in ((lambda **v: scan(programs(chunks=3), **v), x),
                     (lambda **v: cast(Any, (selective_scan_sequential(**v),)), as_float64(x)))
    )  # fmt: skip
    for a, b in zip(got, want, strict=True):
        assert relative_error(a, b) < 1e-4


def test_strided_inputs():
    """u and z as halves of a projection, delta with channels outermost."""
    x = make_inputs(batch=2, length=5, channels=4, state=2, dtype=torch.float32)
    halves = torch.cat([x["u"], x["z"]], -1).detach().chunk(2, dim=-1)
    strided = {k: v.detach() for k, v in x.items()} | dict(zip("uz", halves, strict=True))
    strided["delta"] = strided["delta"].mT.contiguous().mT
    strided = {k: v.requires_grad_() for k, v in strided.items()}
    got, want = (outputs_and_gradients(scan, v, shapes=programs()) for v in (strided, x))
    for name in want:
        assert torch.equal(got[name], want[name]), name


def test_the_same_bits_every_time():
    x = make_inputs(length=9, channels=40, state=2, dtype=torch.float32)
    first, second = (outputs_and_gradients(scan, x, shapes=programs(chunks=2)) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_programs_fill_the_gpu():
    def chosen(batch: int, length: int, channels: int) -> int:
        u, B = (torch.empty(batch, length, *s, device="meta") for s in ((channels,), (1, 16)))
        return s6_triton.tuning(u, torch.empty(channels, 16, device="meta"), B).chunks

    assert chosen(64, 1024, 1024) == 1
    assert chosen(4, 16384, 1024) == 16
    assert chosen(1, 100, 64) == 1


def test_through_the_operator():
    """Registered as the reference is: the same seam, opcheck, gradients by autograd."""
    inputs = make_inputs(length=9, groups=2, dtype=torch.float32)
    seq_idx = documents(2, 9, 4).to(DEVICE)
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias", "initial_state")
    *tensors, initial = (inputs[k].detach().to(DEVICE).requires_grad_() for k in names)
    library.opcheck(s6._scan, (*tensors, True, initial, seq_idx, "triton"))

    def scan_by_name(**x: Any) -> Any:
        moved: Any = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in x.items()}
        y, final = s6.selective_scan(**moved, backend="triton")
        return y.cpu(), final.cpu()

    options = {"seq_idx": seq_idx.cpu()}
    got = outputs_and_gradients(scan_by_name, inputs, **options)
    want = outputs_and_gradients(selective_scan_sequential, as_float64(inputs), **options)
    for name, value in got.items():
        assert relative_error(value, want[name]) < (1e-4 if name in inputs else 1e-5), name
