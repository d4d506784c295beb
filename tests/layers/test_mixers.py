"""What every mixer promises: causal, continued by its state, decoded by steps, trained whole."""

import inspect
from typing import get_args

import pytest
import torch
from mixer_cases import CONFIG, filled

from scangolf.config import LayerKind
from scangolf.layers import MIXERS
from scangolf.layers.mixer import Mixer
from scangolf.train.optim import GROUPS


def test_a_mixer_is_called_as_its_file_is() -> None:
    """Names are in config.py, which must not load torch; a submission finds files by them."""
    assert set(MIXERS) == set(get_args(LayerKind))
    for kind in MIXERS:
        assert inspect.getmodule(MIXERS[kind]).__name__ == f"scangolf.layers.{kind}"  # type: ignore[union-attr]


@pytest.fixture(params=MIXERS)
def mixer(request: pytest.FixtureRequest) -> Mixer:
    return filled(MIXERS[request.param](CONFIG))


def sequence(length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(2, length, CONFIG.d_model, generator=generator, dtype=torch.float64)


def fresh_state(mixer: Mixer):
    return mixer.init_state(2, torch.device("cpu"), torch.float64)


@pytest.mark.parametrize("cut", [1, 2, 40, 69])
def test_two_pieces_are_one(mixer: Mixer, cut: int) -> None:
    x_BLD = sequence(70)
    whole, nothing = mixer(x_BLD)
    assert nothing is None
    first, state = mixer(x_BLD[:, :cut], fresh_state(mixer))
    second, _ = mixer(x_BLD[:, cut:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole, atol=1e-5, rtol=1e-5)


def test_steps_are_the_sequence(mixer: Mixer) -> None:
    """Also after a sequence, from the state that it left."""
    x_BLD = sequence(12)
    whole, _ = mixer(x_BLD)
    for start in (0, 5):
        state = fresh_state(mixer)
        if start:
            _, state = mixer(x_BLD[:, :start], state)
        for t in range(start, 12):
            y_BD, state = mixer.step(x_BLD[:, t], state)
            torch.testing.assert_close(y_BD, whole[:, t], atol=1e-5, rtol=1e-5)


def test_a_step_leaves_its_state_alone(mixer: Mixer) -> None:
    """So that several continuations can start from one state."""
    x_BLD = sequence(4)
    _, state = mixer(x_BLD[:, :3], fresh_state(mixer))
    once, _ = mixer.step(x_BLD[:, 3], state)
    again, _ = mixer.step(x_BLD[:, 3], state)
    assert torch.equal(once, again)


def test_nothing_sees_what_comes_later(mixer: Mixer) -> None:
    x_BLD = sequence(70)
    before, _ = mixer(x_BLD)
    for t in (0, 1, 33, 69):
        changed = x_BLD.clone()
        changed[:, t] += 1.0
        after, _ = mixer(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert not torch.allclose(after[:, t], before[:, t])


def test_every_parameter_and_the_input_get_a_gradient(mixer: Mixer) -> None:
    x_BLD = sequence(9).requires_grad_()
    y_BLD, _ = mixer(x_BLD)
    (y_BLD * sequence(9)).sum().backward()
    for name, tensor in (("x", x_BLD), *mixer.named_parameters()):
        assert tensor.grad is not None, name
        assert tensor.grad.isfinite().all(), name
        assert tensor.grad.abs().sum() > 0, name


def test_every_parameter_names_its_optimiser_group(mixer: Mixer) -> None:
    for path, module in mixer.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            group = getattr(module, "groups", {}).get(name)
            assert group in GROUPS, f"{path}.{name}"
            assert group != "matrix" or parameter.ndim == 2


def test_what_it_names_its_gain_scales_its_output(mixer: Mixer) -> None:
    """The report shows it when a run has ended. At zero, nothing is written."""
    parameters = list(mixer.parameters())
    is_gain = torch.autograd.grad(mixer.out_gain.sum(), parameters, allow_unused=True)
    assert mixer(sequence(5))[0].abs().min() > 0
    with torch.no_grad():
        for parameter, gradient in zip(parameters, is_gain, strict=True):
            if gradient is not None:
                parameter.zero_()
    assert torch.equal(mixer(sequence(5))[0], torch.zeros_like(sequence(5)))


@pytest.mark.parametrize("kind", MIXERS)
def test_a_new_mixer_writes_nothing(kind: LayerKind) -> None:
    """A block starts as the identity."""
    mixer = MIXERS[kind](CONFIG)
    generator = torch.Generator().manual_seed(0)
    for module in mixer.modules():
        if hasattr(module, "init_weights"):
            module.init_weights(generator)  # type: ignore[operator]
    y_BLD, _ = mixer(sequence(5).float())
    assert torch.equal(y_BLD, torch.zeros_like(y_BLD))
