"""A tokenizer of a few pieces."""

import io

import sentencepiece

from scangolf.data.tokenizer import Tokenizer


def small_tokenizer() -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=24,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


TOKENIZER = small_tokenizer()
