"""The Triton kernels of the gated delta rule against the float64 recurrence, through the operator.

On a machine without a GPU they run in Triton's interpreter, which rounds bfloat16 towards zero:
there 16-bit numbers are float16's.
"""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from scan_cases import documents, relative_error
from torch import Tensor, library

from scangolf.ops.gdn_reference import gated_delta_rule_sequential

pytest.importorskip("triton")
from scangolf.ops import gdn, gdn_triton
from scangolf.ops.gdn import gated_delta_rule

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SMALL_DTYPE = torch.bfloat16 if DEVICE == "cuda" else torch.float16
LIMITS = {torch.float32: (1e-5, 1e-4), torch.bfloat16: (5e-3, 1.5e-2), torch.float16: (1e-3, 2e-3)}
ROWS = ("q", "k", "v")


def make_inputs(
    length: int,
    heads: int = 2,
    key_dim: int = 16,
    value_dim: int = 16,
    dtype: torch.dtype = torch.float32,
    initial: bool = True,
    alike: float = 0.0,
) -> dict[str, Tensor]:
    """Keys of norm one, the closer to one another the larger `alike` is."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    inputs = {
        "q": normal(2, length, heads, key_dim),
        "k": normal(2, length, heads, key_dim) + alike * normal(2, 1, heads, key_dim),
        "v": normal(2, length, heads, value_dim),
        "g": -(normal(2, length, heads) - 2).exp(),
        "beta": normal(2, length, heads).sigmoid(),
    }
    inputs["k"] = F.normalize(inputs["k"], dim=-1)
    if initial:
        inputs["initial_state"] = normal(2, heads, key_dim, value_dim)
    return {
        k: v.to(DEVICE, dtype if k in ROWS else torch.float32).requires_grad_()
        for k, v in inputs.items()
    }


def outputs_and_gradients(
    rule: Any, inputs: dict[str, Tensor], **options: Any
) -> dict[str, Tensor]:
    o, final = rule(**inputs, return_final_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    weights = (torch.randn(v.shape, generator=generator).to(v) for v in (o, final))
    grads = torch.autograd.grad((o, final), list(inputs.values()), tuple(weights))
    return {"o": o, "final": final} | dict(zip(inputs, grads, strict=True))


def check(
    inputs: dict[str, Tensor], chunk_size: int = 16, seq_idx: Tensor | None = None
) -> dict[str, Tensor]:
    """Whatever memory held before is NaN: what is not written shows."""
    _ = [torch.full((1 << 16,), torch.nan, device=DEVICE) for _ in range(8)]
    got = outputs_and_gradients(
        gated_delta_rule, inputs, chunk_size=chunk_size, seq_idx=seq_idx, backend="triton"
    )
    exact = {k: v.detach().double().requires_grad_() for k, v in inputs.items()}
    want = outputs_and_gradients(gated_delta_rule_sequential, exact, seq_idx=seq_idx)
    dtypes = {inputs[name].dtype for name in ROWS}
    limits = LIMITS[torch.float32 if dtypes == {torch.float32} else SMALL_DTYPE]
    for name, value in got.items():
        limit = limits[name not in ("o", "final")]
        if want[name].norm() == 0:  # of what is not written: beta is 0
            assert value.norm() == 0, name
        else:
            assert relative_error(value, want[name]) < limit, name
        assert name not in inputs or value.dtype == inputs[name].dtype, name
    return got


@pytest.mark.parametrize("dtype", [torch.float32, SMALL_DTYPE], ids=str)
@pytest.mark.parametrize("length", [2, 16, 63])
def test_against_float64(length, dtype):
    check(make_inputs(length, dtype=dtype))


@pytest.mark.parametrize("dtype", [torch.float32, SMALL_DTYPE], ids=str)
@pytest.mark.parametrize("chunk_size", [32, 64, 100])
def test_chunks_that_are_merged_from_blocks(chunk_size, dtype):
    check(make_inputs(70, heads=1, key_dim=32, dtype=dtype), chunk_size)


def test_sizes_that_are_no_powers_of_two():
    check(make_inputs(40, heads=3, key_dim=5, value_dim=20), 32)
    check(make_inputs(33, key_dim=40, value_dim=3), 32)


@pytest.mark.parametrize("enough", [1, 1000])
def test_the_value_in_one_block_and_in_two(enough, monkeypatch):
    monkeypatch.setattr(gdn_triton, "ENOUGH", enough)
    check(make_inputs(40, heads=1, value_dim=60, dtype=SMALL_DTYPE))


@pytest.mark.parametrize("starts", [(1,), (16, 31), (5, 6, 47)])
def test_documents(starts):
    inputs = make_inputs(50, dtype=SMALL_DTYPE)
    got = check(inputs, seq_idx=documents(2, 50, *starts).to(DEVICE))
    for row in range(2):
        for start in starts:
            assert (got["g"][row, start + row] == 0).all()


def test_without_a_state_before():
    check(make_inputs(20, initial=False))


@pytest.mark.parametrize("output", [0, 1], ids=["o", "final"])
def test_gradients_of_one_output_alone(output):
    inputs = make_inputs(20)
    grads = []
    for options in ({"backend": "triton", "chunk_size": 16}, {"backend": "reference"}):
        outputs: Any = gated_delta_rule(**inputs, return_final_state=True, **options)  # type: ignore[call-overload]
        loss = outputs[output].square().sum()
        grads.append(torch.autograd.grad(loss, list(inputs.values())))
    for got, want in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("strong", [-30.0, -1000.0, -1e30, -torch.inf])
def test_a_strong_decay_costs_the_steps_after_it_nothing(strong):
    inputs = make_inputs(50)
    with torch.no_grad():
        inputs["g"][:, 5::10] = strong
        inputs["g"][0, 30:33] = strong
    got = check(inputs, chunk_size=32)
    assert strong == -30 or (got["g"][:, 5::10] == 0).all()


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
def test_one_key_and_a_beta_at_the_ends_of_its_range(beta):
    inputs = make_inputs(70, heads=1)
    with torch.no_grad():
        inputs["k"].copy_(inputs["k"][:, :1].clone())
        inputs["beta"].fill_(beta)
        inputs["g"].mul_(0.1)
    check(inputs, chunk_size=64)


def test_keys_that_are_alike_in_16_bits():
    check(make_inputs(70, heads=1, dtype=SMALL_DTYPE, alike=3.0), chunk_size=64)


def test_dtypes_may_be_mixed():
    inputs = make_inputs(20)
    for name in ("q", "v", "beta"):
        inputs[name] = inputs[name].detach().to(SMALL_DTYPE).requires_grad_()
    check(inputs)


def test_strided_inputs_and_the_same_bits_every_time():
    inputs = make_inputs(40, value_dim=20)
    wide = torch.cat([inputs[k].detach().flatten(2) for k in ROWS], dim=2)
    parts = wide.split([inputs[k][0, 0].numel() for k in ROWS], dim=2)
    strided = {
        k: part.view(*part.shape[:2], *inputs[k].shape[2:]).requires_grad_()
        for k, part in zip(ROWS, parts, strict=True)
    }
    for name in ("g", "beta", "initial_state"):
        turned = inputs[name].detach().movedim(0, -1).contiguous().movedim(-1, 0)
        strided[name] = turned.requires_grad_()
    options = {"chunk_size": 16, "backend": "triton"}
    got, again, want = (
        outputs_and_gradients(gated_delta_rule, inputs | x, **options)
        for x in (strided, strided, {})
    )
    for name in want:
        assert torch.equal(got[name], again[name]), name
        assert torch.equal(got[name], want[name]), name


def test_opcheck():
    inputs = make_inputs(20, dtype=SMALL_DTYPE)
    *tensors, initial = inputs.values()
    args = (*tensors, 16, initial, documents(2, 20, 7).to(DEVICE), "triton")
    library.opcheck(gdn._rule, args)
    o, final, saved = (v.detach() for v in gdn._rule(*args))
    tensors = [v.detach() for v in tensors]
    for grad_final in (final, None):
        back_args = (o, grad_final, saved, *tensors, 16, None, "triton")
        library.opcheck(gdn._rule_backward, back_args)
