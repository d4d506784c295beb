"""Lossless compression of an artifact's body, decompressed within a known size."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import brotli


def compress_brotli(body: bytes) -> bytes:
    return brotli.compress(body, quality=11, lgwin=24)


def compress_zlib(body: bytes) -> bytes:
    return zlib.compress(body, level=9)


def decompress_brotli(compressed: memoryview, n_bytes: int) -> bytes:
    reader = brotli.Decompressor()
    try:
        body = reader.process(compressed, output_buffer_limit=n_bytes + 1)
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return body if reader.is_finished() else b""


def decompress_zlib(compressed: memoryview, n_bytes: int) -> bytes:
    reader = zlib.decompressobj()
    try:
        body = reader.decompress(compressed, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return body if reader.eof and not reader.unused_data else b""


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "int8-brotli": compress_brotli,
    "int8-zlib": compress_zlib,
    "mixed-rans": compress_brotli,
}
DECOMPRESS: dict[str, Callable[[memoryview, int], bytes]] = {
    "int8-brotli": decompress_brotli,
    "int8-zlib": decompress_zlib,
    "mixed-rans": decompress_brotli,
}
"""Decompress at most one byte more than expected; nothing unless the stream ends with the input."""
