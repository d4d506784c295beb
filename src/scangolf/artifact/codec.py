"""The artifact: a trained model, its tokenizer and its configuration in one file, without pickle.

    offset  bytes
         0      8  magic
         8      4  version of the format
        12     32  sha256 of everything after it
        44      4  length M of the manifest
        48      8  length C of the compressed body
        56      M  manifest: JSON, the configuration and a row for each tensor
    56 + M      C  body: the tokenizer's model, then the parts of the tensors, compressed as one

Integers are little-endian. The file ends with the body, and every size inside the body follows
from the manifest, so there is nothing to disagree: a reader knows how many bytes to expect before
it decompresses, and stops there.

Parts lie in the order of their dtypes, tensors in the order of the manifest, so that bytes of one
kind are neighbours. Floats are split into planes, all first bytes and then all second bytes,
because only the bytes of sign and exponent compress.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import torch

from scangolf.artifact.quantize import CODINGS, Stored, dequantize, part_shapes, quantize
from scangolf.config import ModelConfig, model_config_from_dict, to_dict
from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError

MAGIC = b"scangolf"
VERSION = 1
PREFIX = struct.Struct("<8sI32s")
"""Magic, version, sha256."""
LENGTHS = struct.Struct("<IQ")
"""Bytes of the manifest and of the compressed body."""
MAX_MANIFEST = 2**20
"""Most bytes of a manifest; a tensor takes about 50."""
MAX_BYTES = 2**29
"""Most bytes of a file and of a decompressed body; thirty times the challenge's limit."""


@dataclass(frozen=True)
class Artifact:
    """What a file holds, its weights as they are after the round trip."""

    model_config: ModelConfig
    tokenizer: Tokenizer
    state: dict[str, torch.Tensor]
    """float32 weights by parameter name."""
    stored: dict[str, Stored]
    """The same as they are stored, in the order of the file."""
    scheme: str


@dataclass(frozen=True)
class _Row:
    """A tensor as the manifest lists it."""

    name: str
    shape: tuple[int, ...]
    coding: str

    def __post_init__(self) -> None:
        sizes = all(type(n) is int and 0 <= n <= MAX_BYTES for n in self.shape)
        if self.coding not in CODINGS or not isinstance(self.name, str) or not sizes:
            raise ValueError(f"cannot read tensor {self.name} of shape {self.shape}")
        if len(self.shape) > 8 or (self.coding.startswith("int8") and len(self.shape) != 2):
            raise ValueError(f"tensor {self.name} has {len(self.shape)} dimensions")


@dataclass(frozen=True)
class _Part:
    """One array of the body: part number `index` of the tensor `name`."""

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


def _layout(rows: list[_Row]) -> list[_Part]:
    """The parts of all tensors in the order of the body."""
    parts = [
        _Part(row.name, i, shape, np.dtype(dtype))
        for row in rows
        for i, (dtype, shape) in enumerate(
            zip(CODINGS[row.coding], part_shapes(row.coding, row.shape), strict=True)
        )
    ]
    return sorted(parts, key=lambda part: part.dtype.str)


# --- writing ------------------------------------------------------------------------------------


def save_artifact(
    path: Path,
    state: Mapping[str, torch.Tensor],
    groups: Mapping[str, str],
    model_config: ModelConfig,
    tokenizer: Tokenizer,
    scheme: str,
) -> int:
    """Writes the artifact and returns its bytes on disk.

    `state` holds every parameter once, `groups` the optimiser group of each. The file appears at
    `path` whole or not at all. Raises UserError for weights that are not finite and where the
    file cannot be written.
    """
    stored = {name: quantize(name, w, groups[name], scheme) for name, w in state.items()}
    rows = [_Row(name, tuple(w.shape), stored[name].coding) for name, w in state.items()]
    manifest = {
        "scheme": scheme,
        "model": to_dict(model_config),
        "tokenizer_bytes": len(tokenizer.model_bytes),
        "tensors": [[row.name, row.shape, row.coding] for row in rows],
    }
    parts = [_planes(stored[part.name].parts[part.index]) for part in _layout(rows)]
    content = _pack(manifest, tokenizer.model_bytes + b"".join(parts))
    _write(path, content)
    return len(content)


def _pack(manifest: Mapping[str, Any], body: bytes) -> bytes:
    """The content of a file: the header, the manifest and the body compressed by its scheme."""
    text = json.dumps(manifest, separators=(",", ":")).encode()
    compressed = COMPRESS[manifest["scheme"]](body)
    checked = LENGTHS.pack(len(text), len(compressed)) + text + compressed
    return PREFIX.pack(MAGIC, VERSION, hashlib.sha256(checked).digest()) + checked


def _planes(array: np.ndarray) -> bytes:
    """All first bytes of the elements, then all second bytes, and so on."""
    plain = array.tobytes()
    return b"".join(plain[i :: array.itemsize] for i in range(array.itemsize))


def _write(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise UserError(f"cannot write the artifact {path}: {error.strerror}") from error


# --- reading ------------------------------------------------------------------------------------


def read_artifact(path: Path) -> Artifact:
    """Reads and checks a file; whatever is in it, none of it runs and memory stays bounded.

    Raises UserError for a file that is missing, damaged, or of another version. Whether the
    tensors are those of the configured model is for the one who builds it to check.
    """
    checked = _read_checked(path)
    try:
        return _decode(checked)
    except (ValueError, KeyError, TypeError, RuntimeError, UserError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {reason}; get it again from its source") from error


def _read_checked(path: Path) -> bytes:
    """Everything that the checksum covers, once the lengths and the checksum are right."""
    try:
        with path.open("rb") as file:
            n_file = os.fstat(file.fileno()).st_size
            prefix, lengths = file.read(PREFIX.size), file.read(LENGTHS.size)
            if not prefix.startswith(MAGIC) or len(lengths) < LENGTHS.size:
                raise UserError(f"{path} is not a whole artifact: name an artifact.sg")
            _, version, digest = PREFIX.unpack(prefix)
            if version != VERSION:
                raise UserError(
                    f"{path} has format {version}, this version of scangolf reads {VERSION}: "
                    "use the version that wrote it"
                )
            n_manifest, n_compressed = LENGTHS.unpack(lengths)
            n_wanted = PREFIX.size + LENGTHS.size + n_manifest + n_compressed
            if n_file != n_wanted:
                raise UserError(
                    f"{path} is damaged, {n_file:,} bytes where its header says {n_wanted:,}: "
                    "get it again from its source"
                )
            if n_file > MAX_BYTES:
                raise UserError(f"{path} is {n_file:,} bytes, at most {MAX_BYTES:,} can be read")
            checked = lengths + file.read(n_manifest + n_compressed)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name an artifact.sg") from error
    if hashlib.sha256(checked).digest() != digest:
        raise UserError(f"{path} is damaged, its checksum is wrong: get it again from its source")
    return checked


def _decode(checked: bytes) -> Artifact:
    n_manifest, _ = LENGTHS.unpack_from(checked)
    if n_manifest > MAX_MANIFEST:
        raise ValueError(f"a manifest of {n_manifest:,} bytes")
    compressed = memoryview(checked)[LENGTHS.size + n_manifest :]
    manifest = json.loads(checked[LENGTHS.size : LENGTHS.size + n_manifest])

    rows = [_Row(name, tuple(shape), coding) for name, shape, coding in manifest["tensors"]]
    if len({row.name for row in rows}) != len(rows):
        raise ValueError("a tensor is listed twice")
    layout = _layout(rows)
    n_tokenizer = manifest["tokenizer_bytes"]
    n_body = n_tokenizer + sum(part.n_bytes for part in layout)
    if type(n_tokenizer) is not int or not 0 <= n_tokenizer <= n_body <= MAX_BYTES:
        raise ValueError(f"{n_body} bytes of tensors and tokenizer")
    config = model_config_from_dict(manifest["model"], "its manifest")

    body = DECOMPRESS[manifest["scheme"]](compressed, n_body)
    if len(body) != n_body:
        raise ValueError(f"its body does not hold {n_body} bytes")
    tokenizer = Tokenizer(body[:n_tokenizer])
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{config.vocab_size} tokens in its model, {tokenizer.vocab_size} in its tokenizer"
        )
    stored = _stored(rows, layout, body[n_tokenizer:])
    state = {name: dequantize(tensor) for name, tensor in stored.items()}
    for name, weights in state.items():
        if not weights.isfinite().all():
            raise ValueError(f"tensor {name} holds weights that are not finite")
    return Artifact(config, tokenizer, state, stored, manifest["scheme"])


def _stored(rows: list[_Row], layout: list[_Part], body: bytes) -> dict[str, Stored]:
    """Every tensor as it is stored, by name."""
    arrays: dict[tuple[str, int], np.ndarray] = {}
    start = 0
    for part in layout:
        planes = body[start : start + part.n_bytes]
        arrays[part.name, part.index] = _from_planes(planes, part.dtype).reshape(part.shape)
        start += part.n_bytes
    return {
        row.name: Stored(
            row.coding, tuple(arrays[row.name, i] for i in range(len(CODINGS[row.coding])))
        )
        for row in rows
    }


def _from_planes(planes: bytes, dtype: np.dtype) -> np.ndarray:
    plain = bytearray(len(planes))
    n = len(planes) // dtype.itemsize
    for i in range(dtype.itemsize):
        plain[i :: dtype.itemsize] = planes[i * n : (i + 1) * n]
    return np.frombuffer(plain, dtype)


# --- compression --------------------------------------------------------------------------------


def _unbrotli(compressed: memoryview, n_bytes: int) -> bytes:
    reader = brotli.Decompressor()
    try:
        body = reader.process(compressed, output_buffer_limit=n_bytes + 1)
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return body if reader.is_finished() else b""


def _unzlib(compressed: memoryview, n_bytes: int) -> bytes:
    reader = zlib.decompressobj()
    try:
        body = reader.decompress(compressed, n_bytes + 1)
    except zlib.error as error:
        raise ValueError(str(error)) from error
    return body if reader.eof and not reader.unused_data else b""


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "int8-brotli": lambda body: brotli.compress(body, quality=11, lgwin=24),
    "int8-zlib": lambda body: zlib.compress(body, level=9),
}
DECOMPRESS: dict[str, Callable[[memoryview, int], bytes]] = {
    "int8-brotli": _unbrotli,
    "int8-zlib": _unzlib,
}
"""Decompress at most one byte more than expected; nothing unless the stream ends with the input."""
