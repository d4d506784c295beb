"""Datasets from documents: the same on one core and on two, whole or not at all."""

import errno
import hashlib
import json
import os
from pathlib import Path

import numpy as np
import pytest

from scangolf.data import build, encode
from scangolf.data.build import build_dataset
from scangolf.data.inspect import inspect_dataset, inspect_shard, inspect_text
from scangolf.data.shards import Split, open_dataset
from scangolf.data.tokenizer import train_tokenizer
from scangolf.errors import UserError

WORDS = ["the", "cat", "sat", "on", "the", "mat\nand", "then", "a", "hat", "– of", "another"]
TEXTS = [" ".join(WORDS[i % 5 : i % 7 + 5]) + f" {i}" for i in range(300)]
DOCUMENTS: list[tuple[str, Split]] = [
    (text, "val" if i % 10 == 3 else "train") for i, text in enumerate(TEXTS)
]
TOKENIZER = train_tokenizer(TEXTS, 320)


def stream(split: Split) -> np.ndarray:
    """A split's tokens, one document at a time."""
    return np.concatenate([TOKENIZER.encode(text) for text, s in DOCUMENTS if s == split])


def test_a_dataset_holds_every_document_in_order(tmp_path: Path) -> None:
    told = []
    folder = tmp_path / "some" / "cats"
    manifest = build_dataset(
        DOCUMENTS, TOKENIZER, folder, "cats", progress=lambda *counts: told.append(counts)
    )
    dataset = open_dataset(folder)
    np.testing.assert_array_equal(dataset.train[0], stream("train"))
    np.testing.assert_array_equal(dataset.val_tokens(), stream("val"))
    assert dataset.tokenizer.sha256 == TOKENIZER.sha256
    assert sorted(path.name for path in folder.iterdir()) == [
        "cats_train_000000.bin",
        "cats_val_000000.bin",
        "manifest.json",
        "tokenizer.model",
    ]
    assert list(folder.parent.iterdir()) == [folder]
    (train,), (val,) = manifest.splits["train"], manifest.splits["val"]
    texts = [text for text, split in DOCUMENTS if split == "val"]
    assert (val.documents, val.bytes) == (30, sum(len(text.encode()) for text in texts))
    assert (train.documents, train.tokens) == (270, len(stream("train")))
    content = (folder / val.file).read_bytes()
    assert val.sha256 == hashlib.sha256(content).hexdigest()
    assert told[-1] == (300, train.tokens + val.tokens)


def test_shards_end_with_the_document_that_fills_them(tmp_path: Path) -> None:
    manifest = build_dataset(DOCUMENTS, TOKENIZER, tmp_path / "cats", "cats", shard_tokens=1000)
    shards = manifest.splits["train"]
    assert [shard.file for shard in shards] == [
        f"cats_train_{i:06d}.bin" for i in range(len(shards))
    ]
    assert len(shards) > 2
    longest = max(len(TOKENIZER.encode(text)) for text in TEXTS)
    assert all(1000 <= shard.tokens < 1000 + longest for shard in shards[:-1])
    train = open_dataset(tmp_path / "cats").train
    assert all(tokens[0] == 1 for tokens in train)
    np.testing.assert_array_equal(np.concatenate(train), stream("train"))
    assert sum(shard.documents for shard in shards) == 270


def test_two_processes_make_what_one_makes(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(encode, "CHARACTERS_AT_ONCE", 500)
    made = []
    for workers in (1, 2):
        folder = tmp_path / str(workers)
        build_dataset(DOCUMENTS, TOKENIZER, folder, "cats", shard_tokens=2000, workers=workers)
        made.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert made[0] == made[1]
    assert len(made[0]) > 4


def test_an_existing_folder_is_left_as_it_is(tmp_path: Path) -> None:
    folder = tmp_path / "cats"
    folder.mkdir()
    build_dataset(DOCUMENTS, TOKENIZER, folder, "cats")  # an empty one is free to take
    before = {path: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(UserError, match="cats: is there already; remove it, or choose another"):
        build_dataset(DOCUMENTS[:50], TOKENIZER, folder, "cats")
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    with pytest.raises(UserError, match=r"manifest\.json: is there already"):
        build_dataset(DOCUMENTS, TOKENIZER, folder / "manifest.json", "cats")


def test_no_text_and_an_empty_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty text"):
        build_dataset([], TOKENIZER, tmp_path / "cats", "cats")
    with pytest.raises(UserError, match="the val split would be empty, of 3 documents"):
        build_dataset(DOCUMENTS[:3], TOKENIZER, tmp_path / "cats", "cats")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch) -> None:
    write_shard = build.write_shard

    def full(path: Path, tokens: np.ndarray) -> None:
        if path.name.endswith("train_000002.bin"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write_shard(path, tokens)

    monkeypatch.setattr(build, "write_shard", full)
    with pytest.raises(UserError, match="cats: could not be written: No space left on device"):
        build_dataset(DOCUMENTS, TOKENIZER, tmp_path / "cats", "cats", shard_tokens=1000)
    assert list(tmp_path.iterdir()) == []


def test_what_the_documents_raise_is_raised_and_leaves_nothing(tmp_path: Path) -> None:
    def documents():
        yield from DOCUMENTS
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_dataset(documents(), TOKENIZER, tmp_path / "cats", "cats")
    assert list(tmp_path.iterdir()) == []


def test_inspecting_counts_a_shard_a_text_and_a_dataset_alike(tmp_path: Path) -> None:
    text = tmp_path / "val.jsonl"
    lines = [json.dumps({"text": text}) for text, split in DOCUMENTS if split == "val"]
    text.write_text("\n".join(lines))
    build_dataset(DOCUMENTS, TOKENIZER, tmp_path / "cats", "cats")
    path = tmp_path / "cats" / "cats_val_000000.bin"
    tokens = stream("val").astype(int)

    def count(previous: np.ndarray, target: np.ndarray) -> int:
        assert previous.tolist() == tokens[: len(target)].tolist()
        return int(target.astype(int).sum())

    targets = (len(tokens) - 1) // 100 * 100
    assert targets >= 200
    expected = {
        "tokens": len(tokens),
        "documents": 30,
        "max_token": tokens.max(),
        "vocab_size": TOKENIZER.vocab_size,
        "seq_len": 100,
        "targets": targets,
        "bytes": tokens[1 : targets + 1].sum(),
    }
    assert inspect_shard(path, TOKENIZER, 100, count) == {"file": str(path)} | expected
    assert inspect_text(text, TOKENIZER, 100, count) == {"file": str(text)} | expected
    trained_on = [text for text, split in DOCUMENTS if split == "train"]
    assert inspect_dataset(open_dataset(tmp_path / "cats"), 100, count) == {
        "folder": str(tmp_path / "cats"),
        "vocab_size": TOKENIZER.vocab_size,
        "tokenizer_sha256": TOKENIZER.sha256,
        "train": {"shards": 1, "tokens": len(stream("train")), "documents": len(trained_on)},
        "val": {"shards": 1}
        | {k: expected[k] for k in expected.keys() - {"max_token", "vocab_size"}},
    }
    small = train_tokenizer(["cat"], 266)
    with pytest.raises(UserError, match=f"holds token {tokens.max()}, the tokenizer has 26"):
        inspect_shard(path, small, 100)
    assert "targets" not in inspect_shard(path, None, 100)
