"""Scores against a loop that takes one target at a time."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from scangolf.config import AttentionConfig, ModelConfig, S6Config
from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.score import evaluate as module
from scangolf.score.bpb import ByteTable
from scangolf.score.evaluate import Score, evaluate, part_of_split

CONFIG = ModelConfig(
    vocab_size=13,
    d_model=16,
    n_layers=2,
    pattern="s6 : attention",
    mlp_width=24,
    embed_std=1.0,
    attention=AttentionConfig(n_heads=2, n_kv_heads=1, window=8),
    s6=S6Config(d_state=3, dt_rank=2),
)
SEQ_LEN = 8
TOKENS = np.random.default_rng(0).integers(0, 13, 8 * 7 + 1 + 5).astype(np.uint16)
"""Seven whole sequences, the target behind the last of them, and a tail that is dropped."""
TABLE = ByteTable(length=np.arange(13), space=np.arange(13) % 3 == 0, boundary=np.arange(13) == 1)


@pytest.fixture(scope="module")
def model() -> HybridLM:
    model = HybridLM(CONFIG, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def loss_of(model: HybridLM, context: np.ndarray, target: int) -> float:
    """Nats of one target after its context: the definition."""
    with torch.no_grad():
        logits_BLV = model(torch.from_numpy(context.astype(np.int64))[None])
    return -float(logits_BLV[0, -1].double().log_softmax(-1)[target])


def bytes_of(targets: range) -> int:
    """Bytes by hand: the piece, and its space unless the token before is a boundary."""
    total = 0
    for t in targets:
        previous, target = int(TOKENS[t - 1]), int(TOKENS[t])
        total += target + (target % 3 == 0 and previous != 1)
    return total


def test_plain_sees_its_own_sequence(model: HybridLM) -> None:
    score = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN)
    nats = sum(
        loss_of(model, TOKENS[t // SEQ_LEN * SEQ_LEN : t + 1], int(TOKENS[t + 1]))
        for t in range(7 * SEQ_LEN)
    )
    assert (score.tokens, score.bytes) == (56, bytes_of(range(1, 57)))
    assert score.loss == pytest.approx(nats / 56, rel=1e-5)
    assert score.bpb == pytest.approx(nats / math.log(2) / score.bytes, rel=1e-5)


@pytest.mark.parametrize("at_once", [1, 2, 3, 100])
@pytest.mark.parametrize("mode", ["plain", "sliding"])
def test_the_batch_size_changes_nothing(
    model: HybridLM, monkeypatch: pytest.MonkeyPatch, mode: module.Mode, at_once: int
) -> None:
    expected = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN, mode=mode)
    monkeypatch.setattr(module, "LOGITS_AT_ONCE_ON_CPU", at_once * 13 * SEQ_LEN)
    found = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN, mode=mode)
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)
    assert (found.tokens, found.bytes) == (expected.tokens, expected.bytes)


@pytest.mark.parametrize("stride", [1, 2, 3, 5, 8])
def test_sliding_sees_the_end_of_its_window(model: HybridLM, stride: int) -> None:
    """Each target once; after the first window, at least seq_len - stride tokens before it."""
    score = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN, mode="sliding", stride=stride)
    nats, scored = 0.0, 0
    end = SEQ_LEN
    while scored < 56:
        for t in range(scored, min(end, 56)):
            context = TOKENS[min(end, 56) - SEQ_LEN : t + 1]
            nats += loss_of(model, context, int(TOKENS[t + 1]))
        scored = min(end, 56)
        end += stride
    assert score.tokens == 56
    assert score.loss == pytest.approx(nats / 56, rel=1e-5)


def test_stateful_carries_the_state_over_every_border(model: HybridLM) -> None:
    """A scan-only model sees everything, as if the split were one sequence."""
    scan_only = HybridLM(dataclasses.replace(CONFIG, pattern="s6"), seed=0)
    with torch.no_grad():
        for parameter in scan_only.parameters():
            parameter.add_(0.3)
        tokens = torch.from_numpy(TOKENS[:57].astype(np.int64))[None]
        expected = scan_only(tokens[:, :-1], tokens[:, 1:]).mean()
    found = evaluate(scan_only, TOKENS, TABLE, seq_len=SEQ_LEN, mode="stateful")
    assert found.loss == pytest.approx(float(expected), rel=1e-5)
    assert found.tokens == 56
    # With attention in it the window is 8 tokens, wherever the sequence borders are.
    hybrid = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN, mode="stateful")
    other = evaluate(model, TOKENS[:57], TABLE, seq_len=14, mode="stateful")
    assert hybrid.loss == pytest.approx(other.loss, rel=1e-5)


def test_a_split_shorter_than_a_sequence(model: HybridLM) -> None:
    with pytest.raises(UserError, match="has 8 tokens, one sequence needs 9"):
        evaluate(model, TOKENS[:8], TABLE, seq_len=SEQ_LEN)
    assert evaluate(model, TOKENS[:9], TABLE, seq_len=SEQ_LEN).tokens == 8


def test_a_stride_that_cannot_be(model: HybridLM) -> None:
    with pytest.raises(UserError, match="--stride 9"):
        evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN, mode="sliding", stride=9)


@pytest.mark.parametrize("world", [1, 2, 3, 7, 10])
def test_the_parts_of_a_split_add_up_to_the_whole(model: HybridLM, world: int) -> None:
    """More processes than sequences, too: some have nothing to score."""
    whole = evaluate(model, TOKENS, TABLE, seq_len=SEQ_LEN)
    parts = [part_of_split(TOKENS, SEQ_LEN, rank, world) for rank in range(world)]
    scores = [evaluate(model, part, TABLE, seq_len=SEQ_LEN) for part in parts if len(part)]
    together = sum(scores, Score())
    assert (together.tokens, together.bytes) == (whole.tokens, whole.bytes)
    assert together.loss == pytest.approx(whole.loss, rel=1e-6)
    assert together.bpb == pytest.approx(whole.bpb, rel=1e-6)
    targets = np.concatenate([part[1:] for part in parts])
    assert targets.tolist() == TOKENS[1:57].tolist()
