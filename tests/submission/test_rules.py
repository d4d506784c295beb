"""Single rules: models that cheat, tables that count too much, records and their statistics."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bundles import DOCUMENTS, random_model
from scipy import stats
from torch import Tensor

from scangolf.config import LayerKind
from scangolf.data.tokenizer import Tokenizer, train_tokenizer
from scangolf.layers import MIXERS
from scangolf.layers.conv import CausalConv
from scangolf.model import HybridLM
from scangolf.score.bpb import ByteTable, byte_table
from scangolf.score.evaluate import Mode, Score
from scangolf.submission.rules.byte_count import (
    Claim,
    check_byte_table,
    decoded_lengths,
    split_bytes,
)
from scangolf.submission.rules.causality import check_causality
from scangolf.submission.rules.distribution import check_distribution
from scangolf.submission.rules.finding import Finding
from scangolf.submission.rules.folder import Submission
from scangolf.submission.rules.limits import Limits
from scangolf.submission.rules.record import check_record

V, L = 60, 40
UNCHECKED = "cannot be checked by software"


# --- causality ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize(
    ("mode", "dtype"),
    [("plain", torch.float32), ("plain", torch.bfloat16), ("stateful", torch.float32)],
)
def test_every_layer_is_causal_to_the_bit(kind: LayerKind, mode: Mode, dtype: torch.dtype) -> None:
    model = small(kind)
    model.compute_dtype = dtype
    found = check_causality(model, L, mode)
    assert found.verdict == "pass", found
    assert found.evidence["dtype"] == str(dtype).removeprefix("torch.")
    assert found.evidence["tolerance"] == 0.0
    assert found.evidence["outputs_moved_after"] > 20
    assert {1, L // 2, L - 1} <= set(found.evidence["positions"])


def small(pattern: str = "s6 : attention") -> HybridLM:
    return random_model(V, pattern)


class Peeks(torch.nn.Module):
    """A mixer whose output holds a little of what the next position's would be."""

    def __init__(self, mixer: torch.nn.Module, share: float) -> None:
        super().__init__()
        self.mixer, self.share = mixer, share

    def forward(self, x_BLD: Tensor, state: object = None) -> tuple[Tensor, object]:
        y_BLD, state = self.mixer(x_BLD, state)
        following_BLD = F.pad(y_BLD[:, 1:], (0, 0, 0, 1))
        return y_BLD + self.share * following_BLD, state


@pytest.mark.parametrize("share", [1.0, 1e-3])
@pytest.mark.parametrize("block", [0, 1])
def test_a_mixer_that_peeks_at_the_next_token(block: int, share: float) -> None:
    model = small()
    model.blocks[block].mixer = Peeks(model.blocks[block].mixer, share)  # type: ignore[assignment]
    found = check_causality(model, L, "plain")
    assert found.verdict == "fail"
    t = found.evidence["changed"]
    assert found.evidence["moved"] == [t - 1]
    assert found.why.startswith(f"changing token {t} of {L} moves output {t - 1} by ")
    assert found.evidence["largest"] > 1e-6


def test_a_convolution_shifted_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Taps that end one position ahead."""
    right = CausalConv.silu

    def shifted(self: CausalConv, x_BLE: Tensor, past: Tensor | None = None) -> Tensor:
        return right(self, F.pad(x_BLE[:, 1:], (0, 0, 0, 1)), past)

    monkeypatch.setattr(CausalConv, "silu", shifted)
    found = check_causality(small("lti"), L, "plain")
    assert found.verdict == "fail"
    assert max(found.evidence["moved"]) == found.evidence["changed"] - 1


def test_attention_without_its_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    right = F.scaled_dot_product_attention

    def unmasked(q: Tensor, k: Tensor, v: Tensor, **options: object) -> Tensor:
        return right(q, k, v, enable_gqa=True)

    monkeypatch.setattr(F, "scaled_dot_product_attention", unmasked)
    found = check_causality(small("attention"), L, "plain")
    assert found.verdict == "fail"
    assert found.evidence["moved"][0] == 0  # all outputs before the first token that was changed


def test_a_model_that_looks_at_the_rest_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    right = model._logits

    def mixed(tokens_BL: Tensor, *args: object, **options: object) -> tuple[Tensor, object]:
        logits_BLV, state = right(tokens_BL, *args, **options)  # type: ignore[arg-type]
        return logits_BLV + 0.01 * logits_BLV.mean(0), state

    monkeypatch.setattr(model, "_logits", mixed)
    found = check_causality(model, L, "plain")
    assert found.verdict == "fail"
    assert "moves the other sequence of the batch" in found.why


def test_a_device_that_does_not_repeat_itself_gets_its_own_noise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = small()
    right = model._logits
    calls = iter(range(1000))

    def noisy(*args: object, **options: object) -> tuple[Tensor, object]:
        logits_BLV, state = right(*args, **options)  # type: ignore[arg-type]
        return logits_BLV + 1e-6 * (next(calls) % 2), state

    monkeypatch.setattr(model, "_logits", noisy)
    found = check_causality(model, L, "plain")
    assert found.verdict == "pass"
    assert 0.5e-6 < found.evidence["tolerance"] < 2e-6
    assert "the device's own noise" in found.why


def test_outputs_that_are_not_finite() -> None:
    model = small()
    with torch.no_grad():
        model.blocks[0].mixer.out_proj.gain.fill_(float("inf"))  # type: ignore[union-attr,operator]
    assert check_causality(model, L, "plain").why == "outputs are not finite"


# --- the distribution ---------------------------------------------------------------------------


def test_a_full_distribution() -> None:
    found = check_distribution(small(), L)
    assert found.verdict == "pass"
    assert (found.evidence["vocabulary"], found.evidence["positions"]) == (V, 16)
    assert found.evidence["largest_sum_error"] < 1e-5
    assert found.evidence["largest_loss_error"] < 1e-5


class ShiftsLogits(HybridLM):
    """Raises the logit of the target that it is told, before the softmax."""

    by = 0.5

    def forward(self, tokens_BL: Tensor, targets_BL: Tensor | None = None) -> Tensor:
        logits_BLV = super().forward(tokens_BL)
        if targets_BL is None:
            return logits_BLV
        logits_BLV = logits_BLV + self.by * F.one_hot(targets_BL, logits_BLV.shape[-1])
        losses = F.cross_entropy(logits_BLV.flatten(0, 1), targets_BL.flatten(), reduction="none")
        return losses.view_as(targets_BL)


@pytest.mark.parametrize("by", [0.5, 0.01, -0.01])
def test_logits_shifted_by_the_target(by: float) -> None:
    model = small()
    cheat = ShiftsLogits(model.config)
    cheat.load_state_dict(model.state_dict())
    cheat.by = by
    found = check_distribution(cheat, L)
    assert found.verdict == "fail"
    assert "probabilities sum to" in found.why
    assert found.evidence["largest_sum_error"] == pytest.approx(abs(math.expm1(by)), rel=0.15)
    assert check_causality(cheat, L, "plain").verdict == "pass"


def test_a_loss_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums to one, but is not what the logits say."""
    model = small()
    right = model.forward

    def uniform(tokens_BL: Tensor, targets_BL: Tensor | None = None) -> Tensor:
        if targets_BL is None:
            return right(tokens_BL)
        return torch.full(targets_BL.shape, math.log(V))

    monkeypatch.setattr(model, "forward", uniform)
    found = check_distribution(model, L)
    assert found.verdict == "fail"
    assert "nats from blind probabilities" in found.why
    assert found.evidence["largest_sum_error"] < 1e-5


def test_a_token_that_cannot_be(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small()
    right = model._logits

    def without_token_7(*args: object, **options: object) -> tuple[Tensor, object]:
        logits_BLV, state = right(*args, **options)  # type: ignore[arg-type]
        return logits_BLV.index_fill(-1, torch.tensor(7), -math.inf), state

    monkeypatch.setattr(model, "_logits", without_token_7)
    found = check_distribution(model, L)
    assert found.verdict == "fail"
    assert "no finite logit" in found.why


# --- bytes --------------------------------------------------------------------------------------

TOKENIZER = train_tokenizer(DOCUMENTS, 340)
SPLIT = np.concatenate([TOKENIZER.encode(text) for text in DOCUMENTS[:12]]).astype(np.int64)
TEXT_BYTES = sum(len(text.encode()) for text in DOCUMENTS[:12])


def bytes_finding(
    table: ByteTable, tokenizer: Tokenizer = TOKENIZER, split: np.ndarray = SPLIT
) -> Finding:
    found = split_bytes(tokenizer, table, split)
    return check_byte_table(tokenizer, table, found, [], 1.0)[0]


def test_decoding_gives_the_bytes_of_the_text() -> None:
    found = bytes_finding(byte_table(TOKENIZER))
    assert found.verdict == "pass"
    assert found.evidence["bytes_by_table"] == found.evidence["bytes_by_decoding"] == TEXT_BYTES
    assert found.evidence["tokens_over"] == found.evidence["tokens_under"] == 0


def test_lengths_by_hand() -> None:
    after_text_V, after_control_V = decoded_lengths(TOKENIZER)
    piece = TOKENIZER.processor.piece_to_id
    by_hand = {"<s>": (0, 0), "▁": (1, 0), "e": (1, 1), "▁t": (2, 1), "<0xF0>": (1, 1), "é": (2, 2)}
    for name, lengths in by_hand.items():
        i = piece(name)
        assert TOKENIZER.processor.id_to_piece(i) == name
        assert (after_text_V[i], after_control_V[i]) == lengths, name


def test_a_split_that_begins_and_ends_within_a_document() -> None:
    whole = "".join(DOCUMENTS[:1])
    tokens = TOKENIZER.encode(whole).astype(np.int64)
    middle = tokens[5:-3]
    text = TOKENIZER.processor.decode(middle[1:].tolist(), out_type=bytes)
    first_is_space = TOKENIZER.processor.id_to_piece(int(middle[1])).startswith("▁")
    found = bytes_finding(byte_table(TOKENIZER), split=middle)
    assert found.verdict == "pass"
    assert found.evidence["bytes_by_decoding"] == len(text) + first_is_space


def test_tables_that_count_too_much() -> None:
    right = byte_table(TOKENIZER)
    n_spaces = int(right.space[SPLIT[1:]].sum())
    twice = dataclasses.replace(right, length=right.length + right.space)
    found = bytes_finding(twice)
    assert found.verdict == "fail"
    assert found.evidence["bytes_by_table"] == TEXT_BYTES + n_spaces
    assert found.evidence["tokens_over"] == right.space.sum()
    assert f"{TEXT_BYTES + n_spaces:,} bytes counted, the text has {TEXT_BYTES:,}" in found.why

    everywhere = dataclasses.replace(right, boundary=np.zeros_like(right.boundary))
    found = bytes_finding(everywhere)  # the space that nobody wrote, before every document
    assert found.verdict == "fail"
    assert found.evidence["bytes_by_table"] == TEXT_BYTES + 12

    one = right.length.copy()
    unused = next(i for i in range(300, 0, -1) if i not in SPLIT)
    one[unused] += 1
    found = bytes_finding(dataclasses.replace(right, length=one))
    assert (found.verdict, found.evidence["tokens_over"]) == ("fail", 1)
    assert found.evidence["bytes_by_table"] == TEXT_BYTES


def test_tables_that_count_too_little_only_harm_the_score() -> None:
    right = byte_table(TOKENIZER)
    less = dataclasses.replace(right, space=np.zeros_like(right.space))
    found = bytes_finding(less)
    assert found.verdict == "pass"
    assert "to the score's disadvantage" in found.why
    assert found.evidence["tokens_under"] == right.space.sum()


def test_claims_of_bytes() -> None:
    table = byte_table(TOKENIZER)
    found = split_bytes(TOKENIZER, table, SPLIT)
    claims = [Claim("right", 1.0, TEXT_BYTES), Claim("wrong", 1.0, TEXT_BYTES + 1)]
    finding, wrong = check_byte_table(TOKENIZER, table, found, claims, 1.0)
    assert (finding.verdict, wrong) == ("fail", ["wrong"])
    share = 100 / TEXT_BYTES
    assert finding.why == (
        f"wrong: {TEXT_BYTES + 1:,} bytes, the split has {TEXT_BYTES:,} ({share:+.2f} %)"
    )


# --- records ------------------------------------------------------------------------------------


OURS = Score(nats=2990.5, tokens=1000, bytes=2500)
"""The artifact's: 2.9905 nats a token."""


def record(
    seeds: object, baseline: float | None = 3.0, *, own: int = 1, ours: Score | None = OURS
) -> Finding:
    content = {"submission.json": json.dumps({"seeds": seeds, "seed": own}).encode()}
    return check_record(Submission(Path(), content), baseline, ours, Limits())


def runs(*losses: float) -> list[dict[str, float]]:
    return [{"seed": seed, "val_loss": loss} for seed, loss in enumerate(losses)]


def test_a_record_beats_the_last_by_the_margin() -> None:
    """What the folder has no artifact for is not passed, but left to a person."""
    losses = (2.990, 2.9905, 2.991)
    found = record(runs(*losses))
    assert found.verdict == UNCHECKED
    assert found.why.endswith("by claims: seed 1's was computed, the others cannot be")
    t = (2.9905 - 2.995) / (0.0005 / math.sqrt(3))
    assert found.evidence["p"] == pytest.approx(stats.t(2).cdf(t), rel=1e-6)
    assert found.evidence["p"] == pytest.approx(0.0020, rel=0.05)
    assert found.evidence["mean"] == pytest.approx(2.9905)


@pytest.mark.parametrize(
    "losses",
    [
        (2.996, 2.9961, 2.9962),  # certainly better, by less than the margin
        (2.95, 2.99, 3.02),  # better by more, not certainly
        (3.01, 3.011, 3.012),
    ],
)
def test_a_record_that_is_none(losses: tuple[float, ...]) -> None:
    found = record(runs(*losses), own=7)
    assert found.verdict == "fail"
    assert found.evidence["p"] > 0.01


@pytest.mark.parametrize("off", [2e-4, -2e-4])
@pytest.mark.parametrize("in_bits", [False, True])
def test_the_submissions_own_seed_must_have_the_artifacts_score(off: float, in_bits: bool) -> None:
    """Within the tolerance of a score, 0.0002 bits a byte, which are 2.5 ln 2 as many nats."""

    def claim(bpb_off: float) -> Finding:
        bpb = OURS.bpb + bpb_off
        own = {"val_bpb": bpb} if in_bits else {"val_loss": bpb * math.log(2) * 2.5}
        return record([{"seed": 1, **own}, {"seed": 2, "val_loss": 2.99}], None)

    assert claim(0.99 * off).verdict == UNCHECKED
    found = claim(1.01 * off)
    assert found.verdict == "fail"
    assert found.why.startswith("seed 1, whose artifact this is, claims 2.99")
    assert found.evidence["artifact"] == pytest.approx(2.9905)


def test_claims_of_which_none_was_computed() -> None:
    for found in (record(runs(0.10, 0.11), own=7), record(runs(0.10, 0.11), ours=None)):
        assert found.verdict == UNCHECKED
        assert "by claims: none was computed" in found.why
    assert record(runs(0.10, 0.11), baseline=None).verdict == "fail"


def test_bits_a_byte_are_converted_to_nats_a_token() -> None:
    bpb = [2.990 / math.log(2) / 2.5, 2.9901 / math.log(2) / 2.5]
    found = record([{"seed": i, "val_bpb": value} for i, value in enumerate(bpb)], own=7)
    assert found.evidence["losses"] == pytest.approx([2.990, 2.9901])


@pytest.mark.parametrize(
    ("seeds", "baseline", "why"),
    [
        (None, 3.0, "one run is claimed"),
        (runs(2.9), 3.0, "needs two or more seeds"),
        ([{"seed": 1, "val_loss": 2.9}, {"seed": 1, "val_loss": 2.8}], 3.0, "two or more seeds"),
        (runs(2.9, 2.8), None, "pass --baseline-nats"),
        (runs(2.9, 2.9), 3.0, "no spread to test"),
        ([{"seed": 1}, {"seed": 2, "val_loss": 2.9}], 3.0, "1 of 2 seeds state no val_loss"),
        ([3, {"seed": 2, "val_loss": 2.9}], 3.0, "1 of 2 seeds state no val_loss"),
        ([{"seed": 1, "val_loss": 10**400}, *runs(2.9)], 3.0, "1 of 2 seeds state no val_loss"),
    ],
)
def test_records_that_cannot_be_tested(seeds: object, baseline: float | None, why: str) -> None:
    found = record(seeds, baseline, own=7)
    assert found.verdict == UNCHECKED
    assert why in found.why
