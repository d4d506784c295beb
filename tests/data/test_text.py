"""Documents of every kind of file, against what was written into it."""

import gzip
import hashlib
import inspect
import json
import lzma
import sys
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from scangolf.data.text import local_documents, read_documents, split_by_hash
from scangolf.errors import UserError

LINES = ["first line", "", "  second, with spaces ", "dritte Zeile: ß😀"]
TEXT = "\n".join(LINES) + "\n"
DOCUMENTS = [line for line in LINES if line]
COMPRESS = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.ZstdCompressor().compress,
}


def jsonl(*texts: str) -> str:
    return "".join(json.dumps({"id": 1, "text": text}) + "\n" for text in texts)


def write(path: Path, content: bytes | str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_document_a_line_a_file_or_an_object(tmp_path: Path, suffix: str) -> None:
    pack = COMPRESS[suffix]
    text = write(tmp_path / f"a.b.txt{suffix}", pack(TEXT.encode()))
    assert list(read_documents([text])) == DOCUMENTS
    assert list(read_documents([text], per="file")) == [TEXT]
    objects = write(tmp_path / f"a.jsonl{suffix}", pack(jsonl("x\ny", " ", "z").encode()))
    assert list(read_documents([objects])) == ["x\ny", "z"]


def test_carriage_returns_end_lines_too(tmp_path: Path) -> None:
    assert list(read_documents([write(tmp_path / "a.txt", "one\r\ntwo\r\n")])) == ["one", "two"]


@pytest.mark.parametrize("suffix", COMPRESS)
def test_a_byte_order_mark_is_no_text(tmp_path: Path, suffix: str) -> None:
    mark, pack = b"\xef\xbb\xbf", COMPRESS[suffix]
    lines = write(tmp_path / f"a.txt{suffix}", pack(mark + b"one\ntwo\n"))
    assert list(read_documents([lines])) == ["one", "two"]
    objects = write(tmp_path / f"a.jsonl{suffix}", pack(mark + jsonl("x").encode()))
    assert list(read_documents([objects])) == ["x"]


def test_zstandard_in_several_frames_and_longer_than_a_read(tmp_path: Path) -> None:
    lines = [hashlib.sha256(b"%d" % i).hexdigest() for i in range(20_000)]
    data = "\n".join(lines).encode()
    frames = [COMPRESS[".zst"](data[i : i + 300_001]) for i in range(0, len(data), 300_001)]
    path = write(tmp_path / "a.txt.zst", b"".join(frames))
    assert list(read_documents([path])) == lines


@pytest.mark.parametrize("suffix", [".gz", ".xz", ".zst"])
def test_a_compressed_file_that_was_cut_is_refused(tmp_path: Path, suffix: str) -> None:
    packed = COMPRESS[suffix]("\n".join(str(i * i) for i in range(100_000)).encode())
    path = write(tmp_path / f"a.txt{suffix}", packed[: len(packed) // 2])
    with pytest.raises(UserError, match=r"a\.txt\.\w+: cannot be read"):
        list(read_documents([path]))
    with pytest.raises(UserError, match=r"a\.txt\.\w+: cannot be read"):
        list(read_documents([write(path, b"plain text")]))


def test_parquet_gives_its_column_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pyarrow.table({"n": [1, 2, 3], "text": ["x\ny", None, "z"]})
    pyarrow.parquet.write_table(table, path)
    assert list(read_documents([path])) == ["x\ny", "z"]
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    with pytest.raises(UserError, match=r"column 'text' of strings, it has text \(int64\)"):
        list(read_documents([path]))
    with pytest.raises(UserError, match=r"a\.parquet: cannot be read"):
        list(read_documents([write(path, "no parquet")]))


def test_parquet_without_pyarrow_says_what_to_install(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    path = write(tmp_path / "a.parquet", "")
    with pytest.raises(UserError, match=r"pip install 'scangolf\[parquet\]'"):
        list(read_documents([path]))


def test_folders_are_walked_in_order_and_other_files_passed_over(tmp_path: Path) -> None:
    write(tmp_path / "b.txt", "three")
    write(tmp_path / "a" / "z.txt", "two")
    write(tmp_path / "a" / "c.jsonl", jsonl("one"))
    write(tmp_path / "a" / "picture.png", b"\xff\xfe")
    other = write(tmp_path / "other" / "o.txt", "zero")
    assert list(read_documents([other, tmp_path / "a", tmp_path / "b.txt"])) == [
        "zero",
        "one",
        "two",
        "three",
    ]


def test_lines_are_streamed(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", b"good\n" * 100_000 + b"\xff\n")
    documents = read_documents([path])
    assert next(documents) == "good"
    with pytest.raises(UserError, match=r"a\.txt: not UTF-8"):
        list(documents)


@pytest.mark.parametrize(
    "line",
    ["{", '{"txt": "a"}', '["text"]', '{"text": 3}', '{"text": null}', r'{"text": "\ud800"}'],
)
def test_a_bad_line_of_json_is_named(tmp_path: Path, line: str) -> None:
    path = write(tmp_path / "a.jsonl", jsonl("fine") + "\n" + line + "\n")
    with pytest.raises(UserError, match=r"a\.jsonl, line 3: "):
        list(read_documents([path]))


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", "\n  \n", "empty text"),
        ("a.jsonl", "", "empty text"),
        ("a.pdf", "x", "cannot tell what it holds"),
        ("a.gz", "x", "cannot tell what it holds"),
    ],
)
def test_what_gives_no_text_is_refused(tmp_path: Path, name: str, content: str, reason) -> None:
    with pytest.raises(UserError, match=rf"{name}: {reason}"):
        list(read_documents([write(tmp_path / name, content)]))


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.txt: no such file"):
        list(read_documents([tmp_path / "none.txt"]))
    with pytest.raises(UserError, match="empty text"):
        list(read_documents([tmp_path]))


def test_the_local_text_is_documentation_each_piece_once() -> None:
    documents = list(local_documents())
    assert len(documents) == len(set(documents))
    assert 1_500_000 < sum(len(document.encode()) for document in documents) < 4_000_000
    assert inspect.getdoc(json.dumps) in documents
    assert inspect.getdoc(lzma) in documents
    assert min(len(document) for document in documents) >= 40


def test_a_text_is_always_of_the_same_split() -> None:
    texts = [f"text {i}" for i in range(4000)]
    splits = [split_by_hash(text, 0.1) for text in texts]
    for text, split in zip(texts, splits, strict=True):
        digest = int(hashlib.sha256(text.encode()).hexdigest()[:16], 16)
        assert split == ("val" if digest / 2**64 < 0.1 else "train")
    assert 340 < splits.count("val") < 460
    larger = [split_by_hash(text, 0.2) for text in texts]
    assert all(b == "val" for a, b in zip(splits, larger, strict=True) if a == "val")
    assert {split_by_hash(text, 0.0) for text in texts} == {"train"}
