"""Shards byte by byte, written by hand; what is damaged or does not belong is refused."""

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest

from scangolf.data.shards import (
    Manifest,
    Shard,
    Split,
    describe_shard,
    fingerprint,
    open_dataset,
    read_manifest,
    read_shard,
    write_manifest,
    write_shard,
)
from scangolf.data.tokenizer import train_tokenizer
from scangolf.errors import UserError

TOKENIZER = train_tokenizer(["the cat sat on the mat, the hat of the cat"] * 3, 280)
OTHER = train_tokenizer(["another text altogether, of no cat at all"] * 3, 280)
TOKENS = [1, 279, 4, 1, 258]


def shard(*tokens: int, magic: int = 20240520, version: int = 1, count: int | None = None) -> bytes:
    count = len(tokens) if count is None else count
    header = struct.pack("<256i", magic, version, count, *[0] * 253)
    return header + struct.pack(f"<{len(tokens)}H", *tokens)


SHARDS = {"train_000000": TOKENS, "train_000001": [1, 5], "val_000000": [1, 6, 7]}


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A dataset without a manifest, as the challenge's files lie."""
    folder = tmp_path / "cats"
    folder.mkdir()
    (folder / "any_280.model").write_bytes(TOKENIZER.model_bytes)
    for name, tokens in SHARDS.items():
        (folder / f"cats_{name}.bin").write_bytes(shard(*tokens))
    return folder


@pytest.fixture
def folder(bare: Path) -> Path:
    """The same with its manifest."""
    train = [describe_shard(bare / f"cats_train_{i:06d}.bin", 1, 9) for i in range(2)]
    val = [describe_shard(bare / "cats_val_000000.bin", 1, 9)]
    splits: dict[Split, list[Shard]] = {"train": train, "val": val}
    write_manifest(bare, Manifest("cats", 280, "any_280.model", TOKENIZER.sha256, splits))
    return bare


def test_a_shard_is_the_challenges_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    write_shard(path, np.array(TOKENS))
    assert path.read_bytes() == shard(*TOKENS)
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    tokens = read_shard(path)
    assert tokens.dtype == np.dtype("<u2")
    assert tokens.tolist() == TOKENS
    with pytest.raises(ValueError, match="read-only"):
        tokens[0] = 2


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", r"not a shard, it begins with \[\]"),
        (shard(*TOKENS)[:1023], "not a shard"),
        (shard(*TOKENS, magic=20240521), r"begins with \[20240521, 1\] instead of \[20240520, 1\]"),
        (shard(*TOKENS, version=2), r"begins with \[20240520, 2\]"),
        (shard(*TOKENS)[:-2], "header says 5 tokens, it holds 4;"),
        (shard(*TOKENS)[:-1], r"header says 5 tokens, it holds 4\.5;"),
        (shard(*TOKENS) + b"\0\0", "header says 5 tokens, it holds 6;"),
        (shard(*TOKENS, count=-5), "header says -5 tokens, it holds 5;"),
        (shard(), "holds no tokens"),
    ],
)
def test_a_damaged_shard_is_refused_with_its_numbers(tmp_path: Path, content, reason) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"a\.bin: .*{reason}"):
        read_shard(path)


def test_a_missing_shard_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"a\.bin: cannot be read: No such file"):
        read_shard(tmp_path / "a.bin")


@pytest.mark.parametrize("kind", ["bare", "folder"])
def test_a_folder_opens_with_and_without_a_manifest(kind: str, request) -> None:
    dataset = open_dataset(request.getfixturevalue(kind))
    assert [tokens.tolist() for tokens in dataset.train] == [TOKENS, [1, 5]]
    assert dataset.val_tokens().tolist() == [1, 6, 7]
    assert dataset.tokenizer.sha256 == TOKENIZER.sha256


def test_the_manifest_decides_which_shards_there_are(folder: Path) -> None:
    (folder / "cats_train_000002.bin").write_bytes(shard(1, 8))
    assert len(open_dataset(folder).train) == 2
    (folder / "cats_train_000001.bin").unlink()
    with pytest.raises(UserError, match=r"cats_train_000001\.bin: cannot be read"):
        open_dataset(folder)
    (folder / "cats_train_000001.bin").write_bytes(shard(1, 5, 5))
    with pytest.raises(UserError, match=r"holds 3 tokens, manifest\.json says 2"):
        open_dataset(folder)


def test_another_tokenizer_is_refused(folder: Path) -> None:
    (folder / "any_280.model").write_bytes(OTHER.model_bytes)
    with pytest.raises(UserError, match=r"any_280\.model: is not the tokenizer"):
        open_dataset(folder)


def test_tokens_beyond_the_vocabulary_are_refused(folder: Path) -> None:
    (folder / "cats_val_000000.bin").write_bytes(shard(1, 280, 7))
    with pytest.raises(UserError, match=r"val_000000\.bin: holds token 280, the tokenizer has 280"):
        open_dataset(folder)


def test_folders_that_are_no_dataset_are_refused(bare: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="none: no such dataset; make one with `scangolf data loc"):
        open_dataset(tmp_path / "none")
    (bare / "second.model").write_bytes(b"")
    with pytest.raises(UserError, match=r"2 \*\.model files"):
        open_dataset(bare)
    (bare / "second.model").unlink()
    (bare / "cats_val_000000.bin").unlink()
    with pytest.raises(UserError, match=r"has no \*_val_\*\.bin"):
        open_dataset(bare)


def test_the_manifest_comes_back_and_a_broken_one_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    manifest = read_manifest(folder)
    values = json.loads(path.read_text())
    assert dataclasses.asdict(manifest) == values
    assert values["splits"]["train"][0] == {
        "file": "cats_train_000000.bin",
        "tokens": 5,
        "documents": 1,
        "bytes": 9,
        "sha256": hashlib.sha256(shard(*TOKENS)).hexdigest(),
    }
    lies = [values | {"splits": {"train": []}}, values | {"splits": {"train": [], "val": []}}]
    for text in ("", "[]", "{", *map(json.dumps, lies)):
        path.write_text(text)
        with pytest.raises(UserError, match=r"manifest\.json: not the manifest of a dataset"):
            open_dataset(folder)


@pytest.mark.parametrize("length", [1, 4095, 4097, 64 * 4096, 64 * 4096 + 1])
def test_fingerprints_tell_every_token_of_short_shards(length: int) -> None:
    tokens = np.random.default_rng(0).integers(0, 2**16, length).astype(np.uint16)
    for place in (0, length // 3, length - 1):
        other = tokens.copy()
        other[place] ^= 1
        assert fingerprint([other]) != fingerprint([tokens])
    assert fingerprint([tokens.astype("<u2")]) == fingerprint([tokens])
    parts = [tokens[: length // 2], tokens[length // 2 :]]
    assert fingerprint(parts) != fingerprint(parts[::-1])
    assert fingerprint(parts) != fingerprint([tokens])


def test_fingerprints_tell_other_text_and_length_of_long_shards() -> None:
    tokens = np.random.default_rng(0).integers(0, 1000, 10**7).astype(np.uint16)
    assert fingerprint([tokens[:-1]]) != fingerprint([tokens])
    assert fingerprint([np.roll(tokens, 1)]) != fingerprint([tokens])
