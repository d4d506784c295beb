"""Every text comes back from its ids, and the special ids are the challenge's."""

import io

import numpy as np
import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from scangolf.data.tokenizer import BOS, Tokenizer, train_tokenizer
from scangolf.errors import UserError

TEXTS = [
    "the cat sat on the mat.\nthe hat is on the cat.\n\n    def cat(hat):\n        return hat",
    "there is no other and then\nthe cat is there.\n",
] * 20
TOKENIZER = train_tokenizer(TEXTS, 400)


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(exclude_characters="▁", exclude_categories=["Cs"]), max_size=40))
@example("  two  spaces, a tab\tand\r\n\n\nnewlines \n ")
@example("😀 naïve 漢字 \x00 <s> </s> <unk> <pad> <0x0A> ▅")
@example("")
def test_every_text_comes_back(text: str) -> None:
    ids = TOKENIZER.encode(text)
    assert ids.dtype == np.uint16
    assert ids[0] == BOS
    assert (ids[1:] != BOS).all()
    assert TOKENIZER.decode(ids) == text
    assert TOKENIZER.decode(ids[1:].tolist()) == text


def test_the_special_ids_are_those_of_the_challenge_then_the_bytes() -> None:
    processor = TOKENIZER.processor
    assert [processor.id_to_piece(i) for i in range(4)] == ["<pad>", "<s>", "</s>", "<unk>"]
    assert [processor.is_control(i) for i in range(4)] == [True, True, True, False]
    assert processor.is_unknown(3)
    assert [processor.id_to_piece(4 + i) for i in (0, 10, 255)] == ["<0x00>", "<0x0A>", "<0xFF>"]
    assert all(processor.is_byte(4 + i) for i in range(256))


def test_pieces_hold_newlines_and_spaces_only_open_them() -> None:
    pieces = [TOKENIZER.processor.id_to_piece(i) for i in range(TOKENIZER.vocab_size)]
    assert any("\n" in piece for piece in pieces)
    assert not any("▁" in piece[1:] for piece in pieces)


def test_training_is_repeatable_silent_and_of_the_size_asked(capfd) -> None:
    again = train_tokenizer(iter(TEXTS), 400)
    assert again.sha256 == TOKENIZER.sha256
    assert train_tokenizer(TEXTS, 320).vocab_size == 320
    assert capfd.readouterr() == ("", "")


def test_a_model_is_its_bytes(tmp_path) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(TOKENIZER.model_bytes)
    loaded = Tokenizer.load(path)
    assert (loaded.sha256, loaded.vocab_size) == (TOKENIZER.sha256, TOKENIZER.vocab_size)
    np.testing.assert_array_equal(loaded.encode("the cat"), TOKENIZER.encode("the cat"))


@pytest.mark.parametrize("content", [b"", b"not a model", TOKENIZER.model_bytes[:1000]])
def test_what_is_no_model_is_refused_by_name(tmp_path, content: bytes) -> None:
    path = tmp_path / "some.model"
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"some\.model: tokenizer of .* not a SentencePiece model"):
        Tokenizer.load(path)


def test_a_missing_file_is_refused_by_name(tmp_path) -> None:
    with pytest.raises(UserError, match=r"none\.model: cannot be read .*No such file"):
        Tokenizer.load(tmp_path / "none.model")


def test_a_model_with_another_bos_is_refused() -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS),
        model_writer=model,
        model_type="bpe",
        vocab_size=60,
        bos_id=2,
        eos_id=1,
        minloglevel=2,
    )
    with pytest.raises(UserError, match="BOS id 2"):
        Tokenizer(model.getvalue())


def test_bad_training_is_refused_with_its_numbers() -> None:
    with pytest.raises(UserError, match="empty text"):
        train_tokenizer([], 400)
    with pytest.raises(UserError, match="empty text"):
        train_tokenizer(["\n\n"], 400)
    with pytest.raises(UserError, match="of 260 tokens: needs 261"):
        train_tokenizer(TEXTS, 260)
    with pytest.raises(UserError, match="of 65,537 tokens"):
        train_tokenizer(TEXTS, 65_537)
    letters = "".join(chr(ord("a") + i) for i in range(26))
    with pytest.raises(UserError, match="of 262 tokens: the text alone needs 287"):
        train_tokenizer([letters] * 3, 262)


def test_what_the_documents_raise_is_raised() -> None:
    def documents():
        yield "the cat"
        raise UserError("no such file")

    with pytest.raises(UserError, match=r"^no such file$"):
        train_tokenizer(documents(), 400)
