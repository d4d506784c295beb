"""Text to token ids and back: SentencePiece models, as the challenge uses them."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
import sentencepiece

from scangolf.errors import UserError

BOS = 1
"""Opens every document."""

MAX_VOCAB_SIZE = 2**16
"""A shard holds 16 bits a token."""

TRAINING_CHARACTERS = 100_000_000
"""Text beyond this teaches a vocabulary nothing new, and SentencePiece holds it all in memory."""

BYTE_PIECES = 256
CONTROL_PIECES = ("<pad>", "<s>", "</s>", "<unk>")
"""The ids 0 to 3, as in the challenge's models."""


class Tokenizer:
    """A SentencePiece model whose BOS is id 1.

    `model_bytes` is the model file itself and `sha256` its hash; `processor` is SentencePiece's
    own object, for what a piece is (control, byte, unknown).
    """

    def __init__(self, model_bytes: bytes) -> None:
        processor = sentencepiece.SentencePieceProcessor()
        try:
            processor.LoadFromSerializedProto(model_bytes)
        except RuntimeError as error:
            raise UserError(
                f"tokenizer of {len(model_bytes):,} bytes: not a SentencePiece model; "
                "use the .model file that SentencePiece writes"
            ) from error
        self.model_bytes = model_bytes
        self.sha256 = hashlib.sha256(model_bytes).hexdigest()
        self.processor = processor
        self.vocab_size: int = processor.vocab_size()
        if processor.bos_id() != BOS:
            raise UserError(
                f"tokenizer with BOS id {processor.bos_id()}: shards open every document with id "
                f"{BOS}; train the model with bos_id={BOS}"
            )
        if self.vocab_size > MAX_VOCAB_SIZE:
            raise UserError(
                f"tokenizer of {self.vocab_size:,} tokens: shards hold ids below {MAX_VOCAB_SIZE:,}"
            )

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """Reads a .model file."""
        try:
            return cls(path.read_bytes())
        except OSError as error:
            raise UserError(f"{path}: cannot be read as a tokenizer ({error.strerror})") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def encode(self, text: str) -> np.ndarray:
        """A document: BOS and the pieces of `text`, uint16."""
        return np.array([BOS, *self.processor.encode(text)], np.uint16)

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text behind the ids; control ids have none, broken UTF-8 shows as U+FFFD."""
        return self.processor.decode(np.asarray(ids).tolist())


def train_tokenizer(documents: Iterable[str], vocab_size: int) -> Tokenizer:
    """Byte-pair pieces learned from the documents, with the challenge's special ids.

    Nothing is normalised and what no piece spells falls back to bytes, so every text comes back
    from its ids exactly, except that U+2581 comes back as the space SentencePiece means by it.
    Newlines may lie within pieces, spaces only open them. The same documents give the same model.
    Documents after the first 100,000,000 characters are not read. The vocabulary is smaller than
    `vocab_size` where the documents are too short for as many pieces.
    """
    smallest = len(CONTROL_PIECES) + BYTE_PIECES + 1
    if not smallest <= vocab_size <= MAX_VOCAB_SIZE:
        raise UserError(
            f"vocabulary of {vocab_size:,} tokens: needs {smallest} (special tokens, bytes and one "
            f"character) to {MAX_VOCAB_SIZE:,}"
        )
    pad, bos, eos, unk = CONTROL_PIECES
    model = io.BytesIO()
    failures: list[BaseException] = []

    def watched() -> Iterator[str]:
        # SentencePiece turns what its iterator raises into a RuntimeError of its own.
        left = TRAINING_CHARACTERS
        try:
            for document in documents:
                yield document
                left -= len(document)
                if left <= 0:
                    return
        except BaseException as failure:
            failures.append(failure)
            raise

    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=watched(),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            byte_fallback=True,
            character_coverage=0.999,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            max_sentence_length=2**30,
            pad_id=0,
            bos_id=BOS,
            eos_id=2,
            unk_id=3,
            pad_piece=pad,
            bos_piece=bos,
            eos_piece=eos,
            unk_piece=unk,
            minloglevel=2,
        )
    except RuntimeError as error:
        if failures:
            raise failures[0] from None
        raise UserError(_training_problem(str(error), vocab_size)) from error
    return Tokenizer(model.getvalue())


def _training_problem(message: str, vocab_size: int) -> str:
    if "sentences_.empty()" in message:
        return "empty text: there is nothing to train a tokenizer on; give text with words in it"
    if "smaller than required_chars" in message:
        needed = message.split(" vs ")[1].split(".")[0]
        return (
            f"vocabulary of {vocab_size:,} tokens: the text alone needs {needed} for its "
            "characters and bytes; raise --vocab-size"
        )
    return f"tokenizer of {vocab_size:,} tokens cannot be trained on this text: {message}"
