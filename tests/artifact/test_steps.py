"""Steps against the closed form: the same loss in every weight."""

import dataclasses
import math

import pytest
import torch

from scangolf.artifact.calibrate import Curvature
from scangolf.artifact.gptq import DAMPING
from scangolf.artifact.steps import FINEST, UNSEEN, Matrix, finest_level, step_sizes


def case(R: int = 20, D: int = 12) -> tuple[torch.Tensor, Curvature]:
    generator = torch.Generator().manual_seed(0)
    W = torch.randn(R, D, generator=generator)
    second = torch.exp(torch.randn(D, generator=generator).double())
    g = torch.exp(3 * torch.randn(R, generator=generator).double())
    return W, Curvature(second.diag(), g)


def test_a_step_costs_the_same_everywhere():
    """Unrelated inputs: column curvature is the second moment itself, with its damping."""
    W, curvature = case()
    m = Matrix.of(W, curvature)
    step = torch.outer(step_sizes(m.rows_at(-6.0)), step_sizes(m.column_D)).double()
    second = curvature.H_DD.diagonal()
    d = second + DAMPING * second.mean()
    g = curvature.g_R + UNSEEN * curvature.g_R.mean()
    level = (step * torch.outer(g, d).sqrt()).log2()
    assert (level + 6).abs().max() <= 2 / 8 + 1e-6  # an eighth of an octave for row and column
    assert (level + 6).mean().abs() < 0.05


def test_a_level_is_one_octave_of_all_steps():
    m = Matrix.of(*case())
    assert torch.equal(m.rows_at(-5.0), m.rows_at(-6.0) + 4)


def test_no_code_is_too_large():
    W, curvature = case()
    W[3, 5] = 1e7
    m = Matrix.of(W, curvature)
    step = torch.outer(step_sizes(m.rows_at(-12.0)), step_sizes(m.column_D))
    codes = (W / step).abs()
    assert codes.max() < 2**15
    assert codes[3, 5] > 2**14
    assert codes[torch.arange(20) != 3].max() > 100


def test_rows_that_set_the_memory_of_a_scan_have_8_bits():
    W, curvature = case()
    fine = Matrix.of(W, dataclasses.replace(curvature, dt_rows=range(4, 7)))
    coarse = Matrix.of(W, curvature)
    step_R = step_sizes(fine.rows_at(3.0))  # at this level all others are zero
    codes = (W / torch.outer(step_R, step_sizes(fine.column_D))).round().abs().amax(dim=1)
    assert ((codes[4:7] >= 127) & (codes[4:7] < 127 * 2**0.26)).all()
    others = [*range(4), *range(7, 20)]
    assert torch.equal(fine.rows_at(3.0)[others], coarse.rows_at(3.0)[others])
    assert torch.equal(fine.rows_at(-12.0), coarse.rows_at(-12.0))


@pytest.mark.parametrize("nothing", ["gradient", "input", "weight"])
def test_what_does_nothing_is_no_special_case(nothing):
    W, curvature = case()
    if nothing == "gradient":
        curvature.g_R.zero_()
    elif nothing == "input":
        curvature.H_DD.zero_()
    else:
        W.zero_()
    m = Matrix.of(W, curvature)
    for step in (step_sizes(m.rows_at(-6.0)), step_sizes(m.column_D)):
        assert torch.isfinite(step).all()
        assert (step > 0).all()


def test_the_finest_level_by_its_definition():
    matrices = [Matrix.of(*case(20, 12)), Matrix.of(*case(7, 5))]
    step = 2 ** finest_level(matrices)  # of a weight with curvature 1
    assert (20 * 12 + 7 * 5) * step**2 / 24 == pytest.approx(FINEST)
    assert math.isfinite(finest_level([]))


def test_quarter_octaves():
    steps = step_sizes(torch.tensor([-128, -4, 0, 1, 2, 127], dtype=torch.int8))
    expected = [2.0**-32, 0.5, 1.0, 1.189207115, 2**0.5, 2.0**31.75]
    torch.testing.assert_close(steps, torch.tensor(expected))
