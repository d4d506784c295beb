"""What a dataset, a shard or a text holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from scangolf.data.encode import encode_documents
from scangolf.data.shards import Dataset, Split, read_shard
from scangolf.data.text import read_documents
from scangolf.data.tokenizer import BOS, Tokenizer
from scangolf.errors import UserError

ByteCount = Callable[[np.ndarray, np.ndarray], int]
"""Bytes behind target tokens, given the token before each and the targets."""


def inspect_shard(
    path: Path,
    tokenizer: Tokenizer | None,
    seq_len: int,
    count_bytes: ByteCount | None = None,
) -> dict[str, Any]:
    """Tokens, documents and the largest token of a shard whose header is right.

    With a tokenizer also its vocabulary and the targets of whole sequences of `seq_len`, and with
    `count_bytes` the bytes behind them. Raises UserError for a damaged shard, or one that the
    tokenizer did not make.
    """
    return _describe(path, read_shard(path), tokenizer, seq_len, count_bytes)


def inspect_dataset(dataset: Dataset, seq_len: int, count_bytes: ByteCount) -> dict[str, Any]:
    """Shards, tokens and documents of both splits, and what of the validation split is scored."""
    tokens = dataset.val_tokens()
    splits: dict[Split, tuple[np.memmap, ...]] = {"train": dataset.train, "val": dataset.val}
    found = {
        split: {
            "shards": len(shards),
            "tokens": sum(map(len, shards)),
            "documents": sum(int(np.count_nonzero(shard == BOS)) for shard in shards),
        }
        for split, shards in splits.items()
    }
    scored = _scored(tokens, seq_len, count_bytes)
    return {
        "folder": str(dataset.folder),
        "vocab_size": dataset.tokenizer.vocab_size,
        "tokenizer_sha256": dataset.tokenizer.sha256,
        "train": found["train"],
        "val": found["val"] | scored,
    }


def inspect_text(
    path: Path, tokenizer: Tokenizer, seq_len: int, count_bytes: ByteCount | None = None
) -> dict[str, Any]:
    """The same for text, one document a line, as the tokenizer would store it."""
    documents: Iterator[tuple[str, Split]] = ((text, "val") for text in read_documents([path]))
    batches = encode_documents(documents, tokenizer)
    tokens = np.concatenate([document.tokens for batch in batches for document in batch])
    return _describe(path, tokens, tokenizer, seq_len, count_bytes)


def _describe(
    path: Path,
    tokens: np.ndarray,
    tokenizer: Tokenizer | None,
    seq_len: int,
    count_bytes: ByteCount | None,
) -> dict[str, Any]:
    found: dict[str, Any] = {
        "file": str(path),
        "tokens": len(tokens),
        "documents": int(np.count_nonzero(tokens == BOS)),
        "max_token": int(tokens.max()),
    }
    if tokenizer is None:
        return found
    if found["max_token"] >= tokenizer.vocab_size:
        raise UserError(
            f"{path}: holds token {found['max_token']}, the tokenizer has "
            f"{tokenizer.vocab_size:,}; pass the one it was made with"
        )
    return found | {"vocab_size": tokenizer.vocab_size} | _scored(tokens, seq_len, count_bytes)


def _scored(tokens: np.ndarray, seq_len: int, count_bytes: ByteCount | None) -> dict[str, Any]:
    """The targets of whole sequences, and the bytes behind them."""
    targets = max(0, len(tokens) - 1) // seq_len * seq_len
    found: dict[str, Any] = {"seq_len": seq_len, "targets": targets}
    if count_bytes is not None:
        found["bytes"] = count_bytes(tokens[:targets], tokens[1 : targets + 1])
    return found
