"""Muon and Adam against formulas written out by hand."""

import pytest
import torch

from scangolf.config import ModelConfig, OptimConfig
from scangolf.model import HybridLM
from scangolf.train.optim import NEWTON_SCHULZ, Muon, Optimiser, orthogonalise


@pytest.mark.parametrize("shape", [(5, 5), (4, 9), (9, 4), (1, 6), (33, 17)])
def test_orthogonalise_is_the_quintic_applied_to_the_singular_values(
    shape: tuple[int, int],
) -> None:
    G_MRC = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    U, S, Vh = torch.linalg.svd(G_MRC.double(), full_matrices=False)
    a, b, c = NEWTON_SCHULZ
    S = S / S.norm(dim=-1, keepdim=True)
    for _ in range(5):
        S = a * S + b * S**3 + c * S**5
    expected = U @ torch.diag_embed(S) @ Vh
    found = orthogonalise(G_MRC, steps=5).double()
    torch.testing.assert_close(found, expected, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_muon_follows_its_formula_for_every_matrix_of_a_batch(weight_decay: float) -> None:
    """Two steps, matrices of two shapes in one optimiser, against a plain loop in float64."""
    config = OptimConfig(
        momentum_start=0.5, momentum=0.9, momentum_steps=4, weight_decay=weight_decay
    )
    generator = torch.Generator().manual_seed(1)
    shapes = [(6, 3), (3, 6), (6, 3)]
    start = [torch.randn(s, generator=generator) for s in shapes]
    grads = [[torch.randn(s, generator=generator) for s in shapes] for _ in range(2)]
    parameters = {str(i): torch.nn.Parameter(w.clone()) for i, w in enumerate(start)}
    muon = Muon(parameters, config)
    for step in range(2):
        for parameter, grad in zip(parameters.values(), grads[step], strict=True):
            parameter.grad = grad.clone()
        muon.step(lr=0.1)
    for i, (rows, columns) in enumerate(shapes):
        weight, buffer = start[i].double(), torch.zeros(rows, columns, dtype=torch.float64)
        for step, momentum in enumerate((0.5, 0.6)):
            gradient = grads[step][i].double()
            buffer = momentum * buffer + gradient
            update = orthogonalise((gradient + momentum * buffer)[None], 5)[0].double()
            weight = (1 - 0.1 * weight_decay) * weight - 0.1 * max(
                1.0, rows / columns
            ) ** 0.5 * update
        found = parameters[str(i)].detach().double()
        torch.testing.assert_close(found, weight, atol=1e-4, rtol=1e-4)


def model_with_gradients() -> HybridLM:
    config = ModelConfig(vocab_size=11, d_model=16, n_layers=2, pattern="s6_seed : s6")
    model = HybridLM(config, seed=0)
    tokens = torch.randint(11, (2, 9), generator=torch.Generator().manual_seed(2))
    model(tokens[:, :-1], tokens[:, 1:]).mean().backward()
    return model


def test_groups_step_at_their_own_rates_and_frozen_ones_not_at_all() -> None:
    config = OptimConfig(embedding_lr=0.3, vector_lr=0.2, dynamics_lr=0.01)
    model = model_with_gradients()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    grads = {name: p.grad for name, p in model.named_parameters()}
    optimiser = Optimiser(model, config)
    assert not model.blocks[0].mixer.conv.weight.requires_grad  # type: ignore[union-attr]
    optimiser.step(factor=0.5)
    rates = {"embedding": 0.15, "vector": 0.1, "dynamics": 0.005, "frozen": 0.0}
    for name, parameter in model.named_parameters():
        group = model.parameter_groups()[name]
        if group == "matrix":
            continue
        # The first step of Adam moves every weight by the rate, against its gradient's sign.
        gradient = grads[name]
        assert gradient is not None
        moved = before[name] - parameter.detach()
        expected = rates[group] * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(moved, expected, atol=1e-5, rtol=1e-4)


def test_state_round_trip_continues_to_the_same_bits() -> None:
    a, b = model_with_gradients(), model_with_gradients()
    grads = {name: p.grad.clone() for name, p in a.named_parameters() if p.grad is not None}
    one, other = Optimiser(a, OptimConfig()), Optimiser(b, OptimConfig())
    one.step(1.0)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.copy_(p)
    other.load_state({name: t.clone() for name, t in one.state().items()})
    for model, optimiser in ((a, one), (b, other)):
        for name, p in model.named_parameters():
            p.grad = grads[name].clone() if p.requires_grad else None
        optimiser.step(0.7)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
