"""Text with what a model thinks of it: the surprisal of every piece, in bits.

Shapes: B sequences (one), L length.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from scangolf.data.tokenizer import BOS, Tokenizer
from scangolf.model import HybridLM

BROKEN = "\N{REPLACEMENT CHARACTER}"

Surprisal = tuple[str, float]
"""A piece of text and the bits that the model needs for it after what stands before."""


@torch.inference_mode()
def surprisal(model: HybridLM, tokenizer: Tokenizer, ids: np.ndarray) -> list[Surprisal]:
    """The text behind ids[1:], piece by piece; the first id, a document's opening, is given.

    A piece is a token. Bytes of a character that no token holds, and what has no text of its own,
    are a piece together with what follows.
    """
    if len(ids) < 2:
        return []
    tokens_BL = torch.from_numpy(ids.astype(np.int64))[None].to(model.skip_weights.device)
    nats_BL = model(tokens_BL[:, :-1], tokens_BL[:, 1:])
    return _pieces(tokenizer, ids.tolist(), (nats_BL[0].double() / math.log(2)).tolist())


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], bits: Sequence[float]) -> list[Surprisal]:
    # What a token adds depends on what stands before it (a leading space, a character's bytes),
    # so it is the difference between two texts, which must end where a character does.
    pieces: list[Surprisal] = []
    written, pending = tokenizer.decode(ids[:1]), 0.0
    for i, cost in enumerate(bits):
        text = tokenizer.decode(ids[: i + 2])
        pending += cost
        if i + 1 == len(bits) or not (text == written or text.endswith(BROKEN)):
            pieces.append((text[len(written) :], pending))
            written, pending = text, 0.0
    return pieces


def passage(tokens: np.ndarray, length: int) -> np.ndarray:
    """The first `length` ids of a document: from the middle of a split on, the first of so many.

    A shorter one if none is as long; from the start of the split if no document opens in it.
    """
    starts = np.flatnonzero(tokens == BOS)
    if not len(starts):
        return tokens[:length]
    lengths = np.minimum(np.diff(starts, append=len(tokens)), length)
    half = len(starts) // 2
    chosen = half + int(lengths[half:].argmax())
    return tokens[starts[chosen] : starts[chosen] + lengths[chosen]]
