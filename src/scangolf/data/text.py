"""Where documents come from: files of several kinds, and the text that every Python carries."""

from __future__ import annotations

import ast
import hashlib
import io
import json
import sysconfig
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Literal

from scangolf.data.shards import Split
from scangolf.errors import UserError

UTF_8 = "utf-8-sig"
"""UTF-8, after a byte order mark too, as some editors write one: it is no part of the text."""
SHORTEST_DOCSTRING = 40
"""Characters; shorter docstrings are labels rather than prose."""


def read_documents(paths: Sequence[Path], per: Literal["line", "file"] = "line") -> Iterator[str]:
    """The documents of files and folders, in the order given, folders sorted by name.

    `.txt` holds one document a line, or is one document with per="file"; `.jsonl` has the text in
    the field `text`; both may be compressed as `.xz`, `.gz` or `.zst`. `.parquet` has the text in
    the column `text`. Empty documents are skipped. Raises UserError for what cannot be read, and
    when there is no document at all.
    """
    found = False
    for path in _files(paths):
        for document in _read_file(path, per):
            if document.strip():
                found = True
                yield document
    if not found:
        names = ", ".join(str(path) for path in paths)
        raise UserError(f"{names}: empty text, no document in it; name files that hold some")


def split_by_hash(document: str, val_share: float) -> Split:
    """Assigns a document by its SHA-256: the same text always to the same split."""
    digest = hashlib.sha256(document.encode()).digest()
    return "val" if int.from_bytes(digest[:8], "big") < val_share * 2**64 else "train"


def local_documents() -> Iterator[str]:
    """The documentation that CPython carries, each document once: about 2.3 MB of English.

    These are the help topics of `pydoc` and the docstrings of the standard library's modules,
    classes and functions, without its tests.
    """
    import pydoc_data.topics

    seen: set[str] = set()
    for document in (*pydoc_data.topics.topics.values(), *_docstrings()):
        if document not in seen:
            seen.add(document)
            yield document


def _docstrings() -> Iterator[str]:
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        if skipped.intersection(path.relative_to(library).parts):
            continue
        try:
            with warnings.catch_warnings(action="ignore"):
                tree = ast.parse(path.read_text("utf-8"))
        except (SyntaxError, ValueError):  # templates of lib2to3 and the like
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                docstring = ast.get_docstring(node)
                if docstring and len(docstring) >= SHORTEST_DOCSTRING:
                    yield docstring


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            yield from (p for p in sorted(path.rglob("*")) if p.is_file() and _kind(p))
        elif not path.exists():
            raise UserError(f"{path}: no such file")
        elif not _kind(path):
            raise UserError(
                f"{path}: cannot tell what it holds; needs .txt, .jsonl (also with .xz, .gz, "
                ".zst) or .parquet"
            )
        else:
            yield path


def _kind(path: Path) -> str | None:
    """The suffix that says what a file holds, below a suffix of compression."""
    suffixes = path.suffixes[:-1] if path.suffix in _OPENERS else path.suffixes
    kind = suffixes[-1] if suffixes else ""
    return kind if kind in _READERS else None


def _read_file(path: Path, per: str) -> Iterator[str]:
    kind = _kind(path)
    try:
        if kind == ".parquet":
            yield from _parquet(path)
            return
        with _open(path) as file:
            if kind == ".jsonl":
                yield from _jsonl(path, file)
            elif per == "file":
                yield file.read()
            else:
                for line in file:
                    yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 ({error.reason}); convert it first") from error
    except UserError:
        raise
    except Exception as error:  # each compression has exceptions of its own
        raise UserError(f"{path}: cannot be read: {error}") from error


def _jsonl(path: Path, file: IO[str]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
            text.encode()
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(
                f"{path}, line {number}: not a JSON object with a string of Unicode text in "
                "'text'; correct or remove that line"
            ) from error
        yield text


def _parquet(path: Path) -> Iterator[str]:
    try:
        import pyarrow.parquet as parquet
    except ImportError as error:
        raise UserError(f"{path}: needs pyarrow; pip install 'scangolf[parquet]'") from error
    file = parquet.ParquetFile(path)
    columns = {field.name: str(field.type) for field in file.schema_arrow}
    if columns.get("text") not in ("string", "large_string", "string_view"):
        found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
        raise UserError(f"{path}: needs a column 'text' of strings, it has {found}")
    for batch in file.iter_batches(columns=["text"]):
        yield from (text for text in batch.column(0).to_pylist() if text)


def _open(path: Path) -> IO[str]:
    opener = _OPENERS.get(path.suffix)
    return path.open(encoding=UTF_8) if opener is None else opener(path)


def _open_xz(path: Path) -> IO[str]:
    import lzma

    return lzma.open(path, "rt", encoding=UTF_8)


def _open_gz(path: Path) -> IO[str]:
    import gzip

    return gzip.open(path, "rt", encoding=UTF_8)


def _open_zst(path: Path) -> IO[str]:
    return io.TextIOWrapper(io.BufferedReader(_ZstdFile(path)), encoding=UTF_8)


class _ZstdFile(io.RawIOBase):
    """Reads Zstandard frames; zstandard's own reader ends without a word where a file is cut."""

    def __init__(self, path: Path) -> None:
        import zstandard

        self._new_frame = zstandard.ZstdDecompressor().decompressobj
        self._frame = self._new_frame()
        self._fresh = True
        self._file = path.open("rb")
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # pyright: ignore[reportIncompatibleMethodOverride]
        while not self._ready:
            if self._frame.eof:
                packed = self._frame.unused_data
                self._frame, self._fresh = self._new_frame(), True
            else:
                packed = b""
            packed = packed or self._file.read(2**16)
            if not packed and self._fresh:
                return 0
            if not packed:
                raise EOFError("it ends before its compressed data does")
            self._ready, self._fresh = self._frame.decompress(packed), False
        part, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(part)] = part
        return len(part)

    def close(self) -> None:
        self._file.close()
        super().close()


_OPENERS: dict[str, Callable[[Path], IO[str]]] = {
    ".xz": _open_xz,
    ".gz": _open_gz,
    ".zst": _open_zst,
}
_READERS = {".txt", ".jsonl", ".parquet"}
