"""The score of a model on a validation split: nats a token and bits a byte.

The split is cut into whole sequences of `seq_len` tokens; a shorter tail is dropped. Every mode
scores the same targets, each once, and differs in what the model may have seen before a target:

plain     the tokens before it in its own sequence, as the challenge's baseline is scored
sliding   at least `seq_len - stride` tokens, by windows that overlap
stateful  everything: the state of the scans, and the attention's window, are carried along

Shapes: B sequences at once, L length.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from scangolf.errors import UserError
from scangolf.model import HybridLM
from scangolf.score.bpb import ByteTable, bits_per_byte

Mode = Literal["plain", "sliding", "stateful"]

LOGITS_AT_ONCE = 2**24
"""Bounds the memory of an evaluation, whatever the vocabulary and the length."""
LOGITS_AT_ONCE_ON_CPU = 2**22
"""Fewer stay in a CPU's caches: preset hybrid is scored 1.2 to 1.4 times as fast (docs/LOG.md)."""


@dataclass(frozen=True)
class Score:
    """Sums over targets; those of the parts of a split add up to those of the whole."""

    nats: float = 0.0
    """Cross-entropy of all the targets."""
    tokens: int = 0
    """Targets scored."""
    bytes: int = 0
    """Bytes of text that those targets stand for."""

    @property
    def loss(self) -> float:
        """Mean cross-entropy in nats a token."""
        return self.nats / self.tokens

    @property
    def bpb(self) -> float:
        """Bits a byte."""
        return bits_per_byte(self.nats, self.bytes)

    def __add__(self, other: Score) -> Score:
        return Score(self.nats + other.nats, self.tokens + other.tokens, self.bytes + other.bytes)


def whole_sequences(tokens: np.ndarray, seq_len: int) -> int:
    """How many sequences of `seq_len` inputs, each with a target behind it, the split holds."""
    count = (len(tokens) - 1) // seq_len
    if count < 1:
        raise UserError(
            f"the validation split has {len(tokens)} tokens, one sequence needs {seq_len + 1}: "
            "use more text or shorter sequences"
        )
    return count


def part_of_split(tokens: np.ndarray, seq_len: int, rank: int, world: int) -> np.ndarray:
    """The part of a split that process `rank` of `world` scores in mode `plain`.

    Whole sequences in a row and the target behind the last, so that the parts together have every
    target of the split once. Without a sequence to score, it has no token.
    """
    count = whole_sequences(tokens, seq_len)
    first, last = count * rank // world, count * (rank + 1) // world
    return tokens[first * seq_len : last * seq_len + 1] if first < last else tokens[:0]


@torch.inference_mode()
def evaluate(
    model: HybridLM,
    tokens: np.ndarray,
    table: ByteTable,
    *,
    seq_len: int,
    mode: Mode = "plain",
    stride: int | None = None,
) -> Score:
    """Scores `tokens` (the whole split, uint16) on the model's device.

    `stride` is that of mode `sliding`; a quarter of `seq_len` unless given.
    """
    n_targets = whole_sequences(tokens, seq_len) * seq_len
    split = tokens[: n_targets + 1].astype(np.int64)
    device = model.skip_weights.device
    stride = max(1, seq_len // 4) if stride is None else stride
    if not 1 <= stride <= seq_len:
        raise UserError(f"--stride {stride}: needs 1 to the sequence length, {seq_len}")

    if mode == "plain":
        losses = _plain(model, split, seq_len, device)
    elif mode == "sliding":
        losses = _sliding(model, split, seq_len, stride, device)
    else:
        losses = _stateful(model, split, seq_len, device)
    nats = sum((part.double().sum() for part in losses), torch.zeros((), dtype=torch.float64))
    n_bytes = table.total(split[:-1], split[1:])
    return Score(float(nats), n_targets, n_bytes)


def _plain(
    model: HybridLM, split: np.ndarray, seq_len: int, device: torch.device
) -> Iterator[Tensor]:
    x_BL = split[:-1].reshape(-1, seq_len)
    y_BL = split[1:].reshape(-1, seq_len)
    at_once = sequences_at_once(model, seq_len)
    for i in range(0, len(x_BL), at_once):
        rows = slice(i, i + at_once)
        yield model(_to(x_BL[rows], device), _to(y_BL[rows], device)).cpu()


def _sliding(
    model: HybridLM, split: np.ndarray, seq_len: int, stride: int, device: torch.device
) -> Iterator[Tensor]:
    x, y = split[:-1], split[1:]
    yield model(_to(x[None, :seq_len], device), _to(y[None, :seq_len], device)).cpu()
    # Every later window ends `stride` targets further and scores just those.
    ends = np.arange(seq_len + stride, len(x) + stride, stride)
    starts = np.minimum(ends, len(x)) - seq_len
    fresh = np.minimum(ends, len(x)) - (ends - stride)
    at_once = sequences_at_once(model, seq_len)
    for i in range(0, len(starts), at_once):
        columns = starts[i : i + at_once, None] + np.arange(seq_len)
        loss_BL = model(_to(x[columns], device), _to(y[columns], device)).cpu()
        scored = np.arange(seq_len) >= seq_len - fresh[i : i + at_once, None]
        yield loss_BL[torch.from_numpy(scored)]


def _stateful(
    model: HybridLM, split: np.ndarray, seq_len: int, device: torch.device
) -> Iterator[Tensor]:
    state = model.init_state(1)
    for i in range(0, len(split) - 1, seq_len):
        x_BL = _to(split[None, i : i + seq_len], device)
        y_L = _to(split[i + 1 : i + 1 + seq_len], device)
        logits_BLV, state = model.extend(x_BL, state)
        yield torch.nn.functional.cross_entropy(logits_BLV[0], y_L, reduction="none").cpu()


def sequences_at_once(model: HybridLM, seq_len: int) -> int:
    """How many sequences a model should score in one pass on its device."""
    on_cpu = model.skip_weights.device.type == "cpu"
    logits = LOGITS_AT_ONCE_ON_CPU if on_cpu else LOGITS_AT_ONCE
    return max(1, logits // (model.config.vocab_size * seq_len))


def _to(tokens: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(tokens).to(device)
