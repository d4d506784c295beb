"""From documents to a dataset on disk."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np

from scangolf.data.encode import Document, encode_documents
from scangolf.data.shards import (
    SPLITS,
    Manifest,
    Shard,
    Split,
    describe_shard,
    write_manifest,
    write_shard,
)
from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError

SHARD_TOKENS = 100_000_000


def build_dataset(
    documents: Iterable[tuple[str, Split]],
    tokenizer: Tokenizer,
    folder: Path,
    name: str,
    *,
    shard_tokens: int = SHARD_TOKENS,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Manifest:
    """Tokenizes documents into shards, with their tokenizer and a manifest, in a new folder.

    Shards are named `{name}_{split}_{number}.bin` and end with the document that fills them.
    `workers` processes tokenize, one a core unless given; the result is the same. `progress` is
    told the documents and tokens so far. The folder appears whole or not at all; one that is
    there already is an error, so that nothing is overwritten. So is a split without documents.
    """
    require_new(folder)
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        writers: dict[Split, _Writer] = {
            split: _Writer(part, f"{name}_{split}", shard_tokens) for split in SPLITS
        }
        n_documents = n_tokens = 0
        for batch in encode_documents(documents, tokenizer, workers):
            for document in batch:
                writers[document.split].add(document)
                n_tokens += len(document.tokens)
            n_documents += len(batch)
            if progress is not None:
                progress(n_documents, n_tokens)
        shards: dict[Split, list[Shard]] = {s: writer.close() for s, writer in writers.items()}
        require_both({split: sum(s.documents for s in listed) for split, listed in shards.items()})
        manifest = Manifest(
            name=name,
            vocab_size=tokenizer.vocab_size,
            tokenizer="tokenizer.model",
            tokenizer_sha256=tokenizer.sha256,
            splits=shards,
        )
        (part / manifest.tokenizer).write_bytes(tokenizer.model_bytes)
        write_manifest(part, manifest)
        os.replace(part, folder)
    except OSError as error:
        raise UserError(
            f"{folder}: could not be written: {error.strerror}; nothing is left of it, free some "
            "space or choose another --out"
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return manifest


def require_new(folder: Path) -> None:
    """Refuses a folder with something in it, and the one we are in, which would be replaced."""
    if folder.resolve() == Path.cwd():
        raise UserError(f"--out {folder}: is the folder you are in; name a new one in it")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is there already; remove it, or choose another --out")


def require_both(documents: Mapping[Split, int]) -> None:
    """Refuses text whose documents, counted by split, leave one split empty."""
    if not any(documents.values()):
        raise UserError("empty text: there is no document to tokenize; name files that hold text")
    for split in SPLITS:
        if documents[split] == 0:
            raise UserError(
                f"the {split} split would be empty, of {sum(documents.values()):,} documents; "
                "use more text, another --val-share, or --val"
            )


class _Writer:
    """Collects the documents of a split and writes a shard whenever one is full."""

    def __init__(self, folder: Path, prefix: str, shard_tokens: int) -> None:
        self.folder, self.prefix, self.shard_tokens = folder, prefix, shard_tokens
        self.shards: list[Shard] = []
        self._start_shard()

    def add(self, document: Document) -> None:
        self._pending.append(document.tokens)
        self._tokens += len(document.tokens)
        self._bytes += document.n_bytes
        if self._tokens >= self.shard_tokens:
            self._write()

    def close(self) -> list[Shard]:
        if self._pending:
            self._write()
        return self.shards

    def _start_shard(self) -> None:
        self._pending: list[np.ndarray] = []
        self._tokens = self._bytes = 0

    def _write(self) -> None:
        path = self.folder / f"{self.prefix}_{len(self.shards):06d}.bin"
        write_shard(path, np.concatenate(self._pending))
        self.shards.append(describe_shard(path, len(self._pending), self._bytes))
        self._start_shard()
