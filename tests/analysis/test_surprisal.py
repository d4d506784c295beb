"""Surprisal: the pieces are the text, their bits the model's."""

import math

import numpy as np
import pytest
import torch

from scangolf.analysis.text import passage, surprisal
from scangolf.config import AttentionConfig, ModelConfig, S6Config
from scangolf.data.tokenizer import Tokenizer, train_tokenizer
from scangolf.model import HybridLM

TEXT = "An owl, a hare: Füchse und \N{OWL} in the wood.\n\n  They met twice, \N{SNOWMAN}."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([f"The owl met {n} hares in the wood." for n in range(50)], 300)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> HybridLM:
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size, d_model=16, n_layers=2, pattern="s6 : attention",
        mlp_width=16, embed_std=1.0, attention=AttentionConfig(n_heads=2, n_kv_heads=1),
        s6=S6Config(d_state=2, dt_rank=2),
    )  # fmt: skip
    return HybridLM(config, seed=0).eval()


def test_pieces_are_the_text_and_bits_the_loss(model: HybridLM, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(TEXT)
    pieces = surprisal(model, tokenizer, ids)
    assert "".join(text for text, _bits in pieces) == TEXT
    assert {"\N{OWL}", "\N{SNOWMAN}"} <= {text.strip() for text, _bits in pieces}  # four bytes each
    with torch.no_grad():
        log_p = model(torch.from_numpy(ids.astype(np.int64))[None]).double().log_softmax(-1)[0]
    bits = [-float(log_p[i, target]) / math.log(2) for i, target in enumerate(ids[1:])]
    assert sum(b for _text, b in pieces) == pytest.approx(sum(bits), rel=1e-5)
    assert pieces[-1][1] == pytest.approx(bits[-1], rel=1e-5)


def test_broken_characters_are_a_piece_together(model: HybridLM, tokenizer: Tokenizer) -> None:
    owl = tokenizer.encode("\N{OWL}")[-4:]
    ids = np.array([1, *owl[:2], *owl[:3], *tokenizer.encode("met")[1:]], np.uint16)
    pieces = surprisal(model, tokenizer, ids)
    assert "".join(text for text, _bits in pieces) == tokenizer.decode(ids)


def test_nothing_to_be_surprised_by(model: HybridLM, tokenizer: Tokenizer) -> None:
    assert surprisal(model, tokenizer, tokenizer.encode("")) == []


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([1, 5, 1, 6, 6, 1, 7, 7, 7, 1, 8, 8, 8], [1, 7, 7]),  # the first of three in the middle
        ([1, 5, 5, 5, 1, 6, 1, 7], [1, 6]),  # none in the second half is as long
        ([5, 6, 7, 8], [5, 6, 7]),
        ([1], [1]),
    ],
)
def test_a_passage_opens_a_document(tokens: list[int], expected: list[int]) -> None:
    assert passage(np.array(tokens, np.uint16), 3).tolist() == expected
