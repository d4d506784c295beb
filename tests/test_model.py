"""The model: parameter counts, strict causality, decoding, initialisation, groups."""

import dataclasses
from pathlib import Path

import pytest
import torch

from scangolf.artifact.codec import save_artifact
from scangolf.artifact.load import load
from scangolf.config import (
    AttentionConfig,
    GDNConfig,
    ModelConfig,
    S6Config,
    SSDConfig,
    check_model,
)
from scangolf.data.tokenizer import Tokenizer, train_tokenizer
from scangolf.layers import MIXERS
from scangolf.layers.norm import rms_norm
from scangolf.model import HybridLM
from scangolf.recipes import PRESETS
from scangolf.train.optim import partition

SMALL = ModelConfig(
    vocab_size=37,
    d_model=16,
    n_layers=5,
    mlp_width=24,
    embed_std=0.5,
    attention=AttentionConfig(n_heads=4, n_kv_heads=2),
    s6=S6Config(d_state=3, dt_rank=2),
    ssd=SSDConfig(d_state=3, head_dim=8),
    gdn=GDNConfig(n_heads=2, key_dim=4, value_dim=6),
)


def lively(config: ModelConfig, seed: int = 0) -> HybridLM:
    """A model whose projections are not zero, so that every path reaches the output."""
    model = HybridLM(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize(("preset", "count"), [("baseline", 17_059_912), ("seed", 30_299_152)])
def test_published_parameter_counts(preset: str, count: int) -> None:
    assert HybridLM(PRESETS[preset]().model, seed=None).n_parameters == count


def test_published_hybrid_layout() -> None:
    layers = PRESETS["seed"]().model.layers
    assert [i for i, kind in enumerate(layers) if kind == "attention"] == [3, 7]
    assert len(layers) == 9


def shrunk(name: str) -> ModelConfig:
    """A preset's model with its own layers, at a width that a test can afford."""
    model = PRESETS[name]().model
    small = dataclasses.replace(SMALL, n_layers=model.n_layers, pattern=model.pattern)
    check_model(small)
    return small


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_trains_every_parameter(preset: str) -> None:
    model = lively(shrunk(preset))
    tokens_BL = torch.randint(37, (2, 19))
    model(tokens_BL[:, :-1], tokens_BL[:, 1:]).mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


@pytest.mark.parametrize("preset", PRESETS)
def test_strictly_causal(preset: str) -> None:
    """Changing token t moves the outputs from t on, and not one bit before it."""
    model = lively(shrunk(preset))
    tokens_BL = torch.randint(37, (1, 23), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        before = model(tokens_BL)
        for t in (0, 1, 11, 22):
            changed = tokens_BL.clone()
            changed[0, t] = (changed[0, t] + 5) % 37
            after = model(changed)
            assert torch.equal(after[:, :t], before[:, :t])
            assert not torch.allclose(after[:, t], before[:, t])


@pytest.mark.parametrize("preset", PRESETS)
def test_decoding_equals_the_whole_sequence(preset: str) -> None:
    check_decoding(lively(shrunk(preset)).eval())


def check_decoding(model: HybridLM) -> None:
    """Prompt by `extend`, in two parts, then token by token by `step`: the logits of `forward`."""
    tokens_BL = torch.randint(37, (2, 21))
    with torch.no_grad():
        whole = model(tokens_BL)
        state = model.init_state(2)
        first, state = model.extend(tokens_BL[:, :7], state)
        second, state = model.extend(tokens_BL[:, 7:12], state)
        steps = []
        for t in range(12, 21):
            logits, state = model.step(tokens_BL[:, t], state)
            steps.append(logits)
    found = torch.cat([first, second, torch.stack(steps, dim=1)], dim=1)
    torch.testing.assert_close(found, whole, atol=2e-4, rtol=2e-4)


LOOPED = dataclasses.replace(SMALL, n_layers=4, pattern="s6, ssd, gdn, attention", loops=3)


def test_looped_blocks_are_shared_and_counted_once() -> None:
    looped, once = lively(LOOPED), lively(dataclasses.replace(LOOPED, loops=1))
    assert looped.n_parameters == once.n_parameters
    assert looped.parameter_groups() == once.parameter_groups()
    assert len(looped.init_state(1)) == 3 * len(once.init_state(1)) == 12


def test_three_passes_are_a_deeper_model_of_equal_blocks() -> None:
    """A stack of one block has no skips, so that a deep model can stand in for its passes."""
    one = dataclasses.replace(SMALL, n_layers=1, pattern="s6", loops=3)
    looped = lively(one)
    deep = lively(dataclasses.replace(one, n_layers=3, loops=1))
    with torch.no_grad():
        deep.embedding.weight.copy_(looped.embedding.weight)
        deep.skip_weights.zero_()
    for block in deep.blocks:
        block.load_state_dict(looped.blocks[0].state_dict())
    tokens_BL = torch.randint(37, (2, 12))
    assert torch.equal(looped(tokens_BL), deep(tokens_BL))
    found = torch.autograd.grad(looped(tokens_BL, tokens_BL).mean(), [*looped.blocks.parameters()])
    parts = torch.autograd.grad(deep(tokens_BL, tokens_BL).mean(), [*deep.blocks.parameters()])
    for i, gradient in enumerate(found):
        total = torch.stack(parts[i :: len(found)]).sum(0)
        torch.testing.assert_close(gradient, total, atol=1e-6, rtol=1e-4)


def test_the_skips_of_a_looped_model_stay_within_a_pass() -> None:
    """Blocks that only add the embedding x0: the stream is x0 times a number for each channel."""
    model = HybridLM(dataclasses.replace(LOOPED, loops=2))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        model.skip_weights.copy_(torch.rand(model.skip_weights.shape, generator=generator))
        for block in model.blocks:
            block.resid_mix.fill_(1.0)  # type: ignore[union-attr,operator]
    inner, outer = model.skip_weights
    factor = torch.ones(SMALL.d_model)
    for _ in range(2):
        first = factor + 1
        second = first + 1
        third = second + inner * second + 1
        factor = third + outer * first + 1
    x0 = rms_norm(model.embedding(torch.tensor([[5]])))
    expected = 30 * torch.tanh(model.embedding.as_head(rms_norm(factor * x0)) / 30)
    torch.testing.assert_close(model(torch.tensor([[5]])), expected)


def test_decoding_a_looped_model_equals_the_whole_sequence() -> None:
    check_decoding(lively(LOOPED).eval())


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["the cat sat on the mat"], 280)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_comes_back_from_its_artifact(
    preset: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    """As it was written, but for the rounding: the same tensors, and about the same logits."""
    model = lively(dataclasses.replace(shrunk(preset), vocab_size=tokenizer.vocab_size)).eval()
    weights = {name: p.detach() for name, p in model.named_parameters()}
    path, scheme = tmp_path / "artifact.sg", PRESETS[preset]().artifact.scheme
    save_artifact(path, weights, model.parameter_groups(), model.config, tokenizer, scheme)
    reloaded, _ = load(path)
    assert reloaded.config == model.config
    for name, parameter in reloaded.named_parameters():
        torch.testing.assert_close(parameter, weights[name], atol=0.01, rtol=0.001)
    generator = torch.Generator().manual_seed(1)
    tokens_BL = torch.randint(tokenizer.vocab_size, (1, 9), generator=generator)
    with torch.no_grad():
        moved = reloaded(tokens_BL) - model(tokens_BL)
    assert moved.square().mean().sqrt() < 0.1  # of logits that vary by 2


def test_a_model_of_all_mixers_compiles_whole() -> None:
    config = dataclasses.replace(SMALL, n_layers=len(MIXERS), pattern=", ".join(MIXERS))
    model = lively(config)
    tokens_BL = torch.randint(37, (2, 9))
    torch.compiler.reset()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    loss, expected = (f(tokens_BL, tokens_BL).mean() for f in (compiled, model))
    torch.testing.assert_close(loss, expected)
    found = torch.autograd.grad(loss, list(model.parameters()))
    wanted = torch.autograd.grad(expected, list(model.parameters()))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def test_attention_forgets_what_is_outside_its_window() -> None:
    config = dataclasses.replace(
        SMALL, n_layers=1, attention=AttentionConfig(n_heads=4, n_kv_heads=2, window=4)
    )
    model = lively(config).eval()
    a_BL = torch.randint(37, (1, 12))
    b_BL = a_BL.clone()
    b_BL[0, 0] = (b_BL[0, 0] + 1) % 37
    with torch.no_grad():
        a, state = model.extend(a_BL, model.init_state(1))
        b, _ = model.extend(b_BL, model.init_state(1))
    assert not torch.allclose(a[:, 3], b[:, 3])
    torch.testing.assert_close(a[:, 4:], b[:, 4:])
    assert state[0].k_BKSP.shape[2] == 4


def test_loss_against_a_distribution_worked_out_by_hand() -> None:
    """At initialisation the blocks are the identity, so the logits are embedding products."""
    model = HybridLM(SMALL, seed=3).double()
    model.compute_dtype = torch.float64
    tokens_BL = torch.tensor([[3, 1, 36]])
    targets_BL = torch.tensor([[1, 36, 0]])
    E = model.embedding.weight.detach()
    x = E[tokens_BL]
    x = x / (x.square().mean(-1, keepdim=True)).sqrt()
    # Skips: the second half adds the stored stream, which is x itself, and the norm undoes it.
    logits = 30 * torch.tanh(x @ E.T / 30)
    expected = -logits.log_softmax(-1).gather(-1, targets_BL[..., None])[..., 0]
    torch.testing.assert_close(
        model(tokens_BL, targets_BL).double(), expected, atol=1e-5, rtol=1e-5
    )


def test_seed_decides_every_parameter() -> None:
    a, b, c = HybridLM(SMALL, seed=1), HybridLM(SMALL, seed=1), HybridLM(SMALL, seed=2)
    torch.manual_seed(99)
    for (name, p), q in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(p, q), name
    assert not torch.equal(a.embedding.weight, c.embedding.weight)


def test_delta_starts_log_uniform() -> None:
    config = dataclasses.replace(PRESETS["hybrid"]().model, n_layers=1, pattern="s6")
    mixer = HybridLM(config, seed=0).blocks[0].mixer
    delta = torch.nn.functional.softplus(mixer.delta_bias.double())  # type: ignore[union-attr,operator]
    assert 0.001 <= delta.min() < 0.0012
    assert 0.085 < delta.max() <= 0.1001
    assert abs(delta.log().mean() - torch.tensor([0.001, 0.1]).log().mean()) < 0.15


def test_every_parameter_is_in_one_optimiser_group() -> None:
    for preset in PRESETS.values():
        model = HybridLM(dataclasses.replace(preset().model, d_model=16, mlp_width=16), seed=None)
        groups = partition(model)
        names = [name for group in groups.values() for name in group]
        assert sorted(names) == sorted(name for name, _ in model.named_parameters())


def test_a_parameter_without_a_group_is_an_error() -> None:
    model = HybridLM(SMALL)
    model.register_parameter("stray", torch.nn.Parameter(torch.zeros(3)))
    with pytest.raises(ValueError, match="stray"):
        partition(model)


def test_the_seed_keeps_its_defects() -> None:
    groups = HybridLM(PRESETS["seed"]().model, seed=None).parameter_groups()
    assert groups["blocks.0.mixer.conv.weight"] == "frozen"
    assert groups["blocks.0.mixer.A_log"] == "matrix"
    hybrid = HybridLM(PRESETS["hybrid"]().model, seed=None).parameter_groups()
    assert "frozen" not in hybrid.values()
    assert hybrid["blocks.0.mixer.A_log"] == "dynamics"
