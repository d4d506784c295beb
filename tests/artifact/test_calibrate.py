"""Second moments and gradients against torch's own hooks, and the loss that they predict."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from scangolf.artifact.calibrate import (
    TOKENS,
    TOKENS_AT_ONCE,
    calibrate,
    calibration_batches,
)
from scangolf.layers.linear import Linear, OutProjection
from scangolf.model import HybridLM


def by_hooks(model, batches) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Sums of x x^T and of squared gradients at every Linear, by module hooks."""
    H, g, handles = {}, {}, []

    def watch(name):
        def hook(module, args, out):
            x = args[0].detach().flatten(0, -2).double()
            H[name] = H.get(name, 0) + x.T @ x
            gain_R = module.gain.detach() if isinstance(module, OutProjection) else 1.0
            out.register_hook(
                lambda grad: add(name, (gain_R * grad.flatten(0, -2)).double().square().sum(0))
            )

        return hook

    def add(name, squares):
        g[name] = g.get(name, 0) + squares

    for name, module in model.named_modules():
        if isinstance(module, Linear):
            handles.append(module.register_forward_hook(watch(name + ".weight")))
    for x_BL, y_BL in batches:
        model(x_BL, y_BL).sum().backward()
    for handle in handles:
        handle.remove()
    model.zero_grad()
    return H, g


def test_every_linear_layer_has_its_moments(trained, monkeypatch):
    batches = trained.batches(0, 3)
    found = calibrate(trained.model, batches)
    # Hooks see calls of the module only, so that what is projected in parts is projected at once.
    monkeypatch.setattr(
        Linear, "parts", lambda self, x, sizes: list(self(x).split(list(sizes), dim=-1))
    )
    H, g = by_hooks(trained.model, batches)
    n = sum(y.numel() for _, y in batches)
    assert set(found) == {*H, "embedding.weight"}
    for name, curvature in found.items():
        if name in H:
            torch.testing.assert_close(curvature.H_DD, H[name] / n, rtol=1e-3, atol=1e-5)
            torch.testing.assert_close(curvature.g_R, g[name] / n, rtol=1e-3, atol=1e-12)


def test_the_passes_of_a_loop_are_means_of_inputs_and_sums_of_gradients(trained, monkeypatch):
    """An error in a block that is passed twice costs what it does in both passes."""
    monkeypatch.setattr(
        Linear, "parts", lambda self, x, sizes: list(self(x).split(list(sizes), dim=-1))
    )
    model = HybridLM(dataclasses.replace(trained.model.config, loops=2), seed=None)
    model.load_state_dict(trained.model.state_dict())
    batches = trained.batches(0, 2)
    found = calibrate(model, batches)
    H, g = by_hooks(model, batches)
    n = sum(y.numel() for _, y in batches)
    for name in H:
        torch.testing.assert_close(found[name].H_DD, H[name] / (2 * n), rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(found[name].g_R, g[name] / n, rtol=1e-3, atol=1e-12)


def test_a_tied_embedding_counts_as_head_and_as_table(trained):
    batches = trained.batches(0, 2)
    head = calibrate(trained.model, batches)["embedding.weight"]
    inputs, gradients, lookups = [], [], []

    def keep(logits_grad):
        gradients.append(logits_grad.flatten(0, 1))

    model = trained.model
    as_head, embed = model.embedding.as_head, model.embedding.forward

    def watched_head(x):
        inputs.append(x.detach().flatten(0, 1))
        logits = as_head(x)
        logits.register_hook(keep)
        return logits

    def watched_embed(tokens):
        x = embed(tokens)
        x.register_hook(lambda grad: lookups.append(grad.square().sum() / grad.shape[-1]))
        return x

    model.embedding.as_head, model.embedding.forward = watched_head, watched_embed
    try:
        for x_BL, y_BL in batches:
            model(x_BL, y_BL).sum().backward()
    finally:
        del model.embedding.as_head, model.embedding.forward
        model.zero_grad()
    x, grad = torch.cat(inputs), torch.cat(gradients)
    g = grad.square().mean(0)
    share = sum(lookups) / len(x) / g.sum()
    H = x.T @ x / len(x) + share * torch.eye(x.shape[1])
    torch.testing.assert_close(head.g_R.float(), g, rtol=1e-3, atol=1e-12)
    torch.testing.assert_close(head.H_DD.float(), H, rtol=1e-3, atol=1e-5)


def test_the_model_is_left_as_it_was(trained):
    before = {name: p.detach().clone() for name, p in trained.model.named_parameters()}
    trained.model.compute_dtype = torch.bfloat16
    try:
        calibrate(trained.model, trained.batches(0, 1))
        assert trained.model.compute_dtype == torch.bfloat16
    finally:
        trained.model.compute_dtype = torch.float32
    for name, p in trained.model.named_parameters():
        assert p.grad is None
        assert torch.equal(p, before[name])


def test_the_loss_of_an_error_is_predicted(trained):
    """White noise in one matrix at a time; both signs, so that the first order cancels."""
    batches = trained.batches(0, 12)
    found = calibrate(trained.model, batches)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def loss() -> float:
        return float(np.mean([trained.model(x, y).double().mean() for x, y in batches]))

    base, ratios = loss(), []
    for name, curvature in found.items():
        p = dict(trained.model.named_parameters())[name]
        E = torch.randn(p.shape, generator=generator)
        exact = torch.einsum("r,rd,de,re->", curvature.g_R, E.double(), curvature.H_DD, E.double())
        E *= (2 * 3e-3 / exact) ** 0.5  # 0.003 nats predicted
        before = p.detach().clone()
        losses = []
        for sign in (1, -1):
            with torch.no_grad():
                p.copy_(before + sign * E)
            losses.append(loss())
        with torch.no_grad():
            p.copy_(before)
        ratios.append((np.mean(losses) - base) / 3e-3)
    assert 0.8 < np.median(ratios) < 1.6, ratios
    assert np.mean([0.4 < ratio < 2.5 for ratio in ratios]) > 0.6, ratios


def test_products_of_other_matrices_are_left_alone(trained):
    inner = trained.model.forward

    def with_another(*args):
        F.linear(torch.ones(2, 3), torch.ones(4, 3, requires_grad=True))
        torch.mul(trained.model.embedding.weight, 2.0)
        return inner(*args)

    trained.model.forward = with_another
    try:
        assert "embedding.weight" in calibrate(trained.model, trained.batches(0, 1))
    finally:
        del trained.model.forward


@pytest.mark.parametrize("seq_len", [64, 1000, 8192])
def test_a_few_ten_thousand_tokens(seq_len):
    shards = [np.arange(50_000, dtype=np.uint16)]
    batches = list(calibration_batches(shards, seq_len, torch.device("cpu")))
    n_tokens = sum(x.numel() for x, _ in batches)
    assert TOKENS - seq_len * 8 <= n_tokens <= TOKENS + max(seq_len, TOKENS_AT_ONCE)
    for x_BL, y_BL in batches:
        assert x_BL.shape[1] == seq_len
        assert x_BL.numel() <= max(seq_len, TOKENS_AT_ONCE)
        assert torch.equal(x_BL[:, 1:], y_BL[:, :-1])
