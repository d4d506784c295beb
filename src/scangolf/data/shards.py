"""Datasets on disk: shards in the challenge's format, a tokenizer and a manifest.

A shard is 256 little-endian int32 (20240520, 1, the count of tokens, zeros) and then the tokens
as little-endian uint16. Shards are named `*_train_*.bin` and `*_val_*.bin`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError
from scangolf.records import from_plain

MAGIC, VERSION = 20240520, 1
HEADER_BYTES = 256 * 4
MANIFEST = "manifest.json"
BLOCKS, BLOCK = 64, 4096
"""Of a shard, how many blocks of how many tokens go into a fingerprint."""
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """A shard as the manifest lists it."""

    file: str
    tokens: int
    documents: int
    bytes: int | None
    """UTF-8 bytes of the text, where they are known."""
    sha256: str


@dataclass(frozen=True)
class Manifest:
    name: str
    vocab_size: int
    tokenizer: str
    """File name of the SentencePiece model."""
    tokenizer_sha256: str
    splits: dict[Split, list[Shard]]
    """Shards of "train" and "val", in their order."""


@dataclass(frozen=True)
class Dataset:
    folder: Path
    tokenizer: Tokenizer
    train: tuple[np.memmap, ...]
    val: tuple[np.memmap, ...]

    def val_tokens(self) -> np.ndarray:
        """The whole validation split, uint16."""
        return np.concatenate(self.val)

    def fingerprints(self) -> dict[str, str]:
        """What tells the text of either split from any other."""
        return {"train": fingerprint(self.train), "val": fingerprint(self.val)}


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """Writes a shard, whole or not at all; `tokens` are integers below 65,536."""
    header = np.zeros(256, "<i4")
    header[:3] = MAGIC, VERSION, len(tokens)
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            file.write(header.tobytes())
            file.write(np.ascontiguousarray(tokens, "<u2").data)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_shard(path: Path) -> np.memmap:
    """Maps the tokens of a shard, once its header and its size agree."""
    try:
        size = path.stat().st_size
        header = np.fromfile(path, "<i4", count=256)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if len(header) < 256 or header[0] != MAGIC or header[1] != VERSION:
        found = header[:2].tolist()
        raise UserError(
            f"{path}: not a shard, it begins with {found} instead of {[MAGIC, VERSION]}; "
            "make it again with `scangolf data`"
        )
    count, held = int(header[2]), (size - HEADER_BYTES) / 2
    if count != held:
        raise UserError(
            f"{path}: its header says {count:,} tokens, it holds {held:,.10g}; it was cut short "
            "or damaged, fetch or make it again"
        )
    if count == 0:
        raise UserError(f"{path}: holds no tokens; make it again from text")
    return np.memmap(path, "<u2", mode="r", offset=HEADER_BYTES, shape=(count,))


def open_dataset(folder: Path, splits: Sequence[Split] = SPLITS) -> Dataset:
    """Opens a dataset folder: every header and every token checked, nothing kept in memory.

    A folder without manifest.json, as a bare download of the challenge is, holds exactly one
    *.model, and the shards whose names have _train_ and _val_ in them. A split that is not among
    `splits` is left empty, its files are not looked at.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such dataset; make one with `scangolf data local --out {folder}`, or "
            "with `data text` of your own text, or `data fineweb` of the challenge's"
        )
    if (folder / MANIFEST).exists():
        tokenizer, shards = _open_listed(folder, read_manifest(folder), splits)
    else:
        tokenizer, shards = _open_found(folder, splits)
    for tokens in (shard for split in splits for shard in shards[split]):
        largest = int(tokens.max())
        if largest >= tokenizer.vocab_size:
            raise UserError(
                f"{tokens.filename}: holds token {largest}, the tokenizer has "
                f"{tokenizer.vocab_size:,}; it was made with another tokenizer"
            )
    return Dataset(folder, tokenizer, shards.get("train", ()), shards.get("val", ()))


Shards = dict[Split, tuple[np.memmap, ...]]


def _open_listed(
    folder: Path, manifest: Manifest, splits: Sequence[Split]
) -> tuple[Tokenizer, Shards]:
    tokenizer = Tokenizer.load(folder / manifest.tokenizer)
    if tokenizer.sha256 != manifest.tokenizer_sha256:
        raise UserError(
            f"{folder / manifest.tokenizer}: is not the tokenizer that the shards were made with, "
            f"says {MANIFEST}; put that one back or make the dataset again"
        )
    shards: Shards = {}
    for split in splits:
        listed = manifest.splits[split]
        shards[split] = tuple(read_shard(folder / shard.file) for shard in listed)
        for shard, tokens in zip(listed, shards[split], strict=True):
            if len(tokens) != shard.tokens:
                raise UserError(
                    f"{folder / shard.file}: holds {len(tokens):,} tokens, {MANIFEST} says "
                    f"{shard.tokens:,}; put that shard back or make the dataset again"
                )
    return tokenizer, shards


def _open_found(folder: Path, splits: Sequence[Split]) -> tuple[Tokenizer, Shards]:
    models = sorted(folder.glob("*.model"))
    if len(models) != 1:
        raise UserError(
            f"{folder}: has no {MANIFEST} and {len(models)} *.model files, where exactly one must "
            "tell its tokenizer; name a folder that `scangolf data` made, or leave one there"
        )
    shards: Shards = {}
    for split in splits:
        paths = sorted(folder.glob(f"*_{split}_*.bin"))
        if not paths:
            needed = " and ".join(splits)
            raise UserError(f"{folder}: has no *_{split}_*.bin; it needs {needed} shards")
        shards[split] = tuple(read_shard(path) for path in paths)
    return Tokenizer.load(models[0]), shards


def read_manifest(folder: Path) -> Manifest:
    path = folder / MANIFEST
    try:
        manifest = from_plain(json.loads(path.read_text()), Manifest)
        if any(not manifest.splits[split] for split in SPLITS):
            raise ValueError("a split without shards")
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{path}: not the manifest of a dataset; make the dataset again or restore the file"
        ) from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    part = folder / (MANIFEST + ".part")
    part.write_text(json.dumps(asdict(manifest), indent=2) + "\n")
    os.replace(part, folder / MANIFEST)


def describe_shard(path: Path, documents: int, n_bytes: int | None) -> Shard:
    """A shard on disk as the manifest lists it."""
    n_tokens = (path.stat().st_size - HEADER_BYTES) // 2
    return Shard(path.name, n_tokens, documents, n_bytes, file_sha256(path))


def fingerprint(shards: Sequence[np.ndarray]) -> str:
    """A hash of tokens all over these shards, which may be too many to read for it.

    Up to BLOCKS * BLOCK tokens of a shard go in whole, of a larger one as many as that.
    """
    digest = hashlib.sha256()
    for shard in shards:
        digest.update(len(shard).to_bytes(8, "little"))
        last = max(0, len(shard) - BLOCK)
        for start in sorted({last * i // (BLOCKS - 1) for i in range(BLOCKS)}):
            digest.update(np.ascontiguousarray(shard[start : start + BLOCK], "<u2").data)
    return digest.hexdigest()


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
