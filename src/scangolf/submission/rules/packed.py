"""What a script has packed into a constant: the texts that the usual codecs make of it."""

from __future__ import annotations

import base64
import bz2
import lzma
import zlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import brotli

LIMIT = 1 << 26
"""Bytes of an unpacked text; what swells beyond is no code."""
DECODERS = (
    base64.b85decode,
    base64.a85decode,
    partial(base64.b64decode, validate=True),
    base64.b16decode,
)
STREAMS = (partial(zlib.decompressobj, 47), bz2.BZ2Decompressor, lzma.LZMADecompressor)
"""Decompressors of the standard library; 47: zlib's own format, or gzip's."""
ERRORS = (ValueError, OSError, EOFError, MemoryError, zlib.error, lzma.LZMAError, brotli.error)


def unpacked(constant: str | bytes) -> Iterator[str]:
    """Every text that the whole of a constant may stand for, with nothing left over."""
    contents = [constant] if isinstance(constant, bytes) else []
    contents += [decoded for decode in DECODERS if (decoded := _tried(decode, constant))]
    for content in contents:
        for decompress in (bytes, _brotli, *(partial(_stream, make) for make in STREAMS)):
            plain = _tried(decompress, content)
            text = None if plain is None else _tried(bytes.decode, plain)
            if text is not None:
                yield text


def _brotli(content: bytes) -> bytes:
    reader = brotli.Decompressor()
    plain = reader.process(content, output_buffer_limit=LIMIT)
    if not reader.is_finished():
        raise ValueError("cut off, or too long")
    return plain


def _stream(make: Callable[[], Any], content: bytes) -> bytes:
    reader = make()
    plain = reader.decompress(content, LIMIT)
    if not reader.eof or reader.unused_data:
        raise ValueError("cut off, too long, or followed by something else")
    return plain


def _tried(function: Callable[[Any], Any], value: str | bytes) -> Any:
    try:
        return function(value)
    except ERRORS:
        return None
