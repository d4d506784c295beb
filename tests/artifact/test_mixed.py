"""The whole of scheme mixed-rans on a trained model: sizes, losses, and the way through a file."""

import numpy as np
import pytest
import torch
from artifact_cases import TOKENIZER

from scangolf.artifact import mixed
from scangolf.artifact.calibrate import calibrate
from scangolf.artifact.codec import read_artifact, save_artifact, write
from scangolf.artifact.gptq import DAMPING
from scangolf.artifact.mixed import SLACK, Mixed, fit
from scangolf.artifact.predict import predict_bytes
from scangolf.artifact.steps import FINEST, UNSEEN
from scangolf.errors import UserError
from scangolf.model import HybridLM


@pytest.fixture(scope="module")
def curvature(trained):
    return calibrate(trained.model, trained.batches(0, 20))


@pytest.fixture(scope="module")
def fitted(trained, curvature):
    """`fit` of the trained model into so many bytes."""
    model = trained.model
    state = {name: p.detach() for name, p in model.named_parameters()}

    def at(max_bytes: int) -> Mixed:
        return fit(state, model.parameter_groups(), curvature, model.config, TOKENIZER, max_bytes)

    return at


@pytest.fixture
def loss_of(trained, tmp_path):
    """Nats a token of a file's weights, on text that neither training nor calibration saw."""

    @torch.no_grad()
    def loss(weights: dict[str, torch.Tensor] | bytes) -> float:
        model = HybridLM(trained.model.config, seed=None)
        if isinstance(weights, bytes):
            write(tmp_path / "artifact.sg", weights)
            weights = read_artifact(tmp_path / "artifact.sg").state
        model.load_state_dict(weights)
        return float(np.mean([model(x, y).double().mean() for x, y in trained.batches(800, 16)]))

    return loss


def test_bytes_are_used_up_and_more_of_them_lose_less(trained, fitted, loss_of):
    base = loss_of(trained.model.state_dict())
    n_weights = trained.model.n_parameters
    losses, predicted = [], []
    for bits in (2.0, 2.75, 3.5):
        max_bytes = int(n_weights * bits / 8)
        fitting = fitted(max_bytes)
        # A step is a quarter of an octave: so small a file cannot always be filled within SLACK.
        assert (1 - 3 * SLACK) * max_bytes <= len(fitting.content) <= max_bytes
        assert fitting.bits_per_weight == 8 * len(fitting.content) / n_weights
        losses.append(loss_of(fitting.content) - base)
        predicted.append(fitting.predicted_loss)
    # A bit is a factor of two in every step, and nearly of four in the loss.
    assert predicted[0] > 2 * predicted[1] > 4 * predicted[2]
    assert losses[0] > losses[1] > losses[2]
    assert losses[0] == pytest.approx(predicted[0], rel=0.7)


def test_bytes_are_used_up_where_the_prediction_is_wrong(trained, fitted, monkeypatch):
    """In a small or hardly trained model its slope can be half of the true one, or twice."""
    right = mixed.predicted_code_bytes
    max_bytes = trained.model.n_parameters * 3 // 8
    for share in (0.5, 2.0):
        monkeypatch.setattr(mixed, "predicted_code_bytes", lambda *a, s=share: s * right(*a))
        n_bytes = len(fitted(max_bytes).content)
        assert (1 - 3 * SLACK) * max_bytes <= n_bytes <= max_bytes


def test_less_is_lost_than_in_int8_of_as_many_bits(trained, fitted, loss_of):
    """Rows rounded to 31 levels, 5 bits a weight before they are coded, against 3.5."""
    weights = trained.model.state_dict()
    rounded = {}
    for name, w in weights.items():
        rounded[name] = w
        if w.ndim == 2 and w.numel() > 4096:
            step = w.abs().amax(dim=1, keepdim=True) / 15
            rounded[name] = (w / step).round() * step
    fitting = fitted(trained.model.n_parameters * 7 // 16)
    base = loss_of(weights)
    assert loss_of(fitting.content) - base < 0.5 * (loss_of(rounded) - base)


def test_nothing_is_lost_and_nothing_wasted_where_there_is_room(trained, fitted, loss_of):
    fitting = fitted(16_000_000)
    assert fitting.content == fitted(len(fitting.content)).content
    assert fitting.predicted_loss < 3 * FINEST
    assert abs(loss_of(fitting.content) - loss_of(trained.model.state_dict())) < 2e-3
    assert fitting.bits_per_weight < 12


def test_the_predicted_loss_is_that_of_the_weights_in_the_file(
    trained, fitted, curvature, tmp_path
):
    fitting = fitted(trained.model.n_parameters // 2)
    write(tmp_path / "artifact.sg", fitting.content)
    state = read_artifact(tmp_path / "artifact.sg").state
    loss = 0.0
    for name, p in trained.model.named_parameters():
        if name in curvature:
            H, g = curvature[name].H_DD, curvature[name].g_R
            H = H + DAMPING * H.diagonal().mean().item() * torch.eye(len(H), dtype=H.dtype)
            E = (p.detach() - state[name]).double()
            loss += 0.5 * float((g + UNSEEN * g.mean()) @ torch.einsum("rd,de,re->r", E, H, E))
    assert fitting.predicted_loss == pytest.approx(loss, rel=1e-3)


def test_control_tensors_are_stored_as_ever(trained, fitted, tmp_path):
    fitting = fitted(trained.model.n_parameters // 2)
    write(tmp_path / "artifact.sg", fitting.content)
    state = read_artifact(tmp_path / "artifact.sg").state
    groups = trained.model.parameter_groups()
    for name, p in trained.model.named_parameters():
        if groups[name] == "vector":
            assert torch.equal(state[name], p)
        elif groups[name] == "dynamics":
            assert torch.equal(state[name], p.half().float())


def test_too_few_bytes_are_refused(fitted):
    with pytest.raises(UserError, match=r"weights do not fit into 5,000 bytes: train a smaller"):
        fitted(5_000)


def test_weights_that_are_not_finite_are_refused(trained, curvature):
    state = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    state["blocks.0.mlp.up.weight"][3, 4] = float("nan")
    groups, config = trained.model.parameter_groups(), trained.model.config
    with pytest.raises(UserError, match=r"blocks\.0\.mlp\.up"):
        fit(state, groups, curvature, config, TOKENIZER, 10**6)


def test_an_untrained_model(trained):
    """Output projections of zeros: half of the matrices have no gradient yet."""
    model = HybridLM(trained.model.config, 1)
    found = calibrate(model, trained.batches(0, 2))
    state = {name: p.detach() for name, p in model.named_parameters()}
    fitting = fit(state, model.parameter_groups(), found, model.config, TOKENIZER, 10**6)
    assert fitting.bits_per_weight < 16


@pytest.mark.parametrize(("scheme", "error"), [("int8-brotli", 0.02), ("int8-zlib", 0.08)])
def test_the_bytes_of_trained_weights_are_predicted(trained, tmp_path, scheme, error):
    state = {name: p.detach() for name, p in trained.model.named_parameters()}
    groups = trained.model.parameter_groups()
    path = tmp_path / "artifact.sg"
    n_bytes = save_artifact(path, state, groups, trained.model.config, TOKENIZER, scheme)
    assert predict_bytes(state, groups, TOKENIZER, scheme) == pytest.approx(n_bytes, rel=error)


def test_the_bytes_that_mixed_needs_are_predicted(trained, fitted, loss_of):
    state = {name: p.detach() for name, p in trained.model.named_parameters()}
    groups = trained.model.parameter_groups()
    n_bytes = predict_bytes(state, groups, TOKENIZER, "mixed-rans")
    base = loss_of(trained.model.state_dict())
    assert loss_of(fitted(n_bytes).content) - base < 0.005
