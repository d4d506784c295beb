"""Bytes counted by hand, and the length of the text itself, against the byte table."""

import io
import math

import numpy as np
import pytest
import sentencepiece
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scangolf.data.tokenizer import Tokenizer
from scangolf.score.bpb import bits_per_byte, byte_table

LINES = ["the cat sat on the mat", "the hat is in the house", "there is no other and then"] * 20
PIECE_UNUSED = b"\x18\x05"
"""`type: UNUSED` of a piece in SentencePiece's protocol buffer."""


def train(**options) -> bytes:
    model = io.BytesIO()
    settings = {
        "model_type": "bpe",
        "vocab_size": 300,
        "hard_vocab_limit": False,
        "character_coverage": 1.0,
        "byte_fallback": True,
        "normalization_rule_name": "identity",
        "remove_extra_whitespaces": False,
        "add_dummy_prefix": True,
        "num_threads": 1,
        "minloglevel": 2,
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(LINES), model_writer=model, **(settings | options)
    )
    return model.getvalue()


def mark_unused(model: bytes, piece: str) -> bytes:
    """The same model with one piece declared unused: two bytes more in its message."""
    field = b"\n" + bytes([len(piece.encode())]) + piece.encode() + b"\x15"
    start = model.index(field)
    end = start + model[start - 1]
    assert model[start - 2] == ord("\n")
    return (
        model[: start - 1]
        + bytes([end - start + 2])
        + model[start:end]
        + PIECE_UNUSED
        + model[end:]
    )


TOKENIZER = Tokenizer(train())
TABLE = byte_table(TOKENIZER)


def document_bytes(text: str, tokenizer: Tokenizer = TOKENIZER) -> list[int]:
    """What is counted for each piece of a document, which begins after BOS."""
    ids = np.array([tokenizer.processor.bos_id(), *tokenizer.processor.encode(text)])
    return byte_table(tokenizer).count(ids[:-1], ids[1:]).tolist()


def test_pieces_counted_by_hand():
    piece = TOKENIZER.processor.piece_to_id
    pairs = [
        ("<s>", "▁the", 3),  # the dummy prefix is not text
        ("a", "▁the", 4),
        ("<0x41>", "▁the", 4),
        ("</s>", "▁the", 3),
        ("<unk>", "▁the", 3),
        ("▁", "▁the", 4),
        ("<s>", "▁", 0),
        ("a", "▁", 1),
        ("▁the", "the", 3),
        ("▁the", "<0xF0>", 1),
        ("<s>", "<0x20>", 1),
        ("a", "<unk>", 0),
        ("a", "</s>", 0),
        ("a", "<s>", 0),
    ]
    previous = np.array([piece(p) for p, _, _ in pairs])
    target = np.array([piece(t) for _, t, _ in pairs])
    counted = TABLE.count(previous, target)
    assert counted.dtype == np.int64
    assert counted.tolist() == [n for _, _, n in pairs]


@pytest.mark.parametrize(
    ("text", "counts"),
    [
        ("the cat", [3, 4]),
        ("the  cat", [3, 1, 4]),
        (" the", [0, 4]),
        ("   ", [0, 1, 1, 1]),
        ("é", [0, 1, 1]),
        ("a😀", [0, 1, 1, 1, 1, 1]),
        ("\nthe", [0, 1, 3]),
        ("", []),
    ],
)
def test_documents_counted_by_hand(text, counts):
    assert document_bytes(text) == counts


words = st.sampled_from(["the", " cat", "  ", "\n", "house", "é", "😀", "<s>", "<0x41>", "\0"])
characters = st.characters(exclude_categories=["Cs"], exclude_characters="\u2581")


@given(st.lists(words | st.text(characters), max_size=20).map("".join))
@example(" ")
@example("")
@settings(deadline=None)
def test_a_document_counts_the_bytes_of_its_text(text):
    assert sum(document_bytes(text)) == len(text.encode())


def test_documents_in_a_row_count_the_bytes_of_all_texts():
    texts = ["the cat", " on a mat", "é", "", "😀 the end "]
    processor = TOKENIZER.processor
    ids = np.array([i for t in texts for i in [processor.bos_id(), *processor.encode(t)]])
    assert TABLE.count(ids[:-1], ids[1:]).sum() == sum(len(t.encode()) for t in texts)


def test_without_dummy_prefix_a_space_that_opens_the_document_is_not_counted():
    tokenizer = Tokenizer(train(add_dummy_prefix=False))
    assert sum(document_bytes("the cat", tokenizer)) == 7
    assert sum(document_bytes(" the cat", tokenizer)) == 7


def test_an_unknown_piece_counts_nothing_nor_does_the_space_after_it():
    tokenizer = Tokenizer(train(byte_fallback=False, vocab_size=44))
    assert document_bytes("a é the", tokenizer) == [0, 1, 1, 0, 3]


def test_a_normalising_model_is_charged_for_the_text_it_is_left_with():
    tokenizer = Tokenizer(train(normalization_rule_name="nmt_nfkc", remove_extra_whitespaces=True))
    assert sum(document_bytes("  ﬁne   cat ", tokenizer)) == len("fine cat")


def test_an_unused_piece_counts_nothing_nor_does_the_space_after_it():
    tokenizer = Tokenizer(mark_unused(train(), "▁cat"))
    cat, the = (tokenizer.processor.piece_to_id(p) for p in ("▁cat", "▁the"))
    assert tokenizer.processor.is_unused(cat)
    table = byte_table(tokenizer)
    assert table.count(np.array([the, cat]), np.array([cat, the])).tolist() == [0, 3]


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_tensors_count_as_arrays_do(dtype):
    ids = np.random.default_rng(0).integers(0, TOKENIZER.vocab_size, (2, 5, 33))
    expected = TABLE.count(ids[0], ids[1])
    counted = TABLE.to("cpu").count(*torch.from_numpy(ids).to(dtype))
    assert counted.dtype == torch.int64
    np.testing.assert_array_equal(counted.numpy(), expected)


def test_bits_per_byte_of_a_fair_coin():
    assert bits_per_byte(nats=24 * math.log(2), bytes=8) == pytest.approx(3.0, rel=1e-15)
