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

Version 2, of scheme "mixed-rans", ends its body with the codes of the tensors in an entropy code of
their own (rans.py), outside of what is compressed as one; the last compressed part is its table.
docs/artifact.md has every detail.

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
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from scangolf.artifact.coding import N_CLASSES, decode_codes, encode_codes
from scangolf.artifact.compress import COMPRESS, DECOMPRESS
from scangolf.artifact.quantize import CODED, CODINGS, Stored, dequantize, part_shapes, quantize
from scangolf.artifact.rans import LARGEST, most_symbols
from scangolf.config import ModelConfig, model_config_from_dict, to_dict
from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError

MAGIC = b"scangolf"
VERSIONS = {"int8-brotli": 1, "int8-zlib": 1, "mixed-rans": 2}
"""The version of the format by scheme."""
PREFIX = struct.Struct("<8sI32s")
"""Magic, version, sha256."""
LENGTHS = struct.Struct("<IQ")
"""Bytes of the manifest and of the body."""
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
        if len(self.shape) > 8 or (len(CODINGS[self.coding]) > 1 and len(self.shape) != 2):
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


TABLE = _Part("", 0, (N_CLASSES, LARGEST + 1), np.dtype("<u2"))
"""The frequencies of the codes, in version 2; what codes have beyond it follows, in its dtype."""


def _layout(rows: list[_Row]) -> list[_Part]:
    """The parts of all tensors that are compressed as one, in the order of the body."""
    parts = [
        _Part(row.name, i, shape, np.dtype(dtype))
        for row in rows
        for i, (dtype, shape) in enumerate(
            zip(CODINGS[row.coding], part_shapes(row.coding, row.shape), strict=True)
        )
        if (row.coding, i) != CODED
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
    content = encode(stored, model_config, tokenizer, scheme)
    write(path, content)
    return len(content)


def encode(
    stored: Mapping[str, Stored], model_config: ModelConfig, tokenizer: Tokenizer, scheme: str
) -> bytes:
    """The content of an artifact file: every tensor as it is stored, by parameter name."""
    rows = [_Row(name, tensor.shape, tensor.coding) for name, tensor in stored.items()]
    manifest = {
        "scheme": scheme,
        "model": to_dict(model_config),
        "tokenizer_bytes": len(tokenizer.model_bytes),
        "tensors": [[row.name, row.shape, row.coding] for row in rows],
    }
    parts = [_planes(stored[part.name].parts[part.index]) for part in _layout(rows)]
    body = tokenizer.model_bytes + b"".join(parts)
    stream = b""
    if VERSIONS[scheme] == 2:
        coded = [t for t in stored.values() if t.coding == CODED[0]]
        table_KM, excess_X, stream = encode_codes(coded)
        manifest |= {"codes_bytes": len(stream), "excesses": len(excess_X)}
        body += _planes(table_KM) + _planes(excess_X)
    return _pack(manifest, COMPRESS[scheme](body) + stream)


def _pack(manifest: Mapping[str, Any], body: bytes) -> bytes:
    """The content of a file: the header, the manifest and the body."""
    text = json.dumps(manifest, separators=(",", ":")).encode()
    checked = LENGTHS.pack(len(text), len(body)) + text + body
    digest = hashlib.sha256(checked).digest()
    return PREFIX.pack(MAGIC, VERSIONS[manifest["scheme"]], digest) + checked


def _planes(array: np.ndarray) -> bytes:
    """All first bytes of the elements, then all second bytes, and so on."""
    plain = array.tobytes()
    return b"".join(plain[i :: array.itemsize] for i in range(array.itemsize))


def write(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all. Raises UserError where it cannot be written."""
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
    version, checked = _read_checked(path)
    try:
        return _decode(version, checked)
    except (ValueError, KeyError, TypeError, RuntimeError, UserError) as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise UserError(f"{path} cannot be read: {reason}; get it again from its source") from error


def _read_checked(path: Path) -> tuple[int, bytes]:
    """The version and all that the checksum covers, once the lengths and the checksum are right."""
    try:
        with path.open("rb") as file:
            n_file = os.fstat(file.fileno()).st_size
            prefix, lengths = file.read(PREFIX.size), file.read(LENGTHS.size)
            if not prefix.startswith(MAGIC) or len(lengths) < LENGTHS.size:
                raise UserError(f"{path} is not a whole artifact: name an artifact.sg")
            _, version, digest = PREFIX.unpack(prefix)
            if version not in VERSIONS.values():
                raise UserError(
                    f"{path} has format {version}, this version of scangolf reads 1 and 2: "
                    "use the version that wrote it"
                )
            n_manifest, n_body = LENGTHS.unpack(lengths)
            n_wanted = PREFIX.size + LENGTHS.size + n_manifest + n_body
            if n_file != n_wanted:
                raise UserError(
                    f"{path} is damaged, {n_file:,} bytes where its header says {n_wanted:,}: "
                    "get it again from its source"
                )
            if n_file > MAX_BYTES:
                raise UserError(f"{path} is {n_file:,} bytes, at most {MAX_BYTES:,} can be read")
            checked = lengths + file.read(n_manifest + n_body)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; name an artifact.sg") from error
    if hashlib.sha256(checked).digest() != digest:
        raise UserError(f"{path} is damaged, its checksum is wrong: get it again from its source")
    return version, checked


def _decode(version: int, checked: bytes) -> Artifact:
    n_manifest, _ = LENGTHS.unpack_from(checked)
    if n_manifest > MAX_MANIFEST:
        raise ValueError(f"a manifest of {n_manifest:,} bytes")
    compressed = memoryview(checked)[LENGTHS.size + n_manifest :]
    manifest = json.loads(checked[LENGTHS.size : LENGTHS.size + n_manifest])
    scheme = manifest["scheme"]
    if VERSIONS[scheme] != version:
        raise ValueError(f"scheme {scheme} in format {version}")

    rows = [_Row(name, tuple(shape), coding) for name, shape, coding in manifest["tensors"]]
    if len({row.name for row in rows}) != len(rows):
        raise ValueError("a tensor is listed twice")
    layout = _layout(rows)
    n_tokenizer = manifest["tokenizer_bytes"]
    n_body = n_tokenizer + sum(part.n_bytes for part in layout)
    n_codes = sum(math.prod(row.shape) for row in rows if row.coding == CODED[0])
    n_all = n_body + np.dtype(CODINGS[CODED[0]][CODED[1]]).itemsize * n_codes
    if type(n_tokenizer) is not int or not 0 <= n_tokenizer <= n_all <= MAX_BYTES:
        raise ValueError(f"{n_all} bytes of tensors and tokenizer")
    config = model_config_from_dict(manifest["model"], "its manifest")
    stream = b""
    if version == 2:
        n_stream, n_excess = manifest["codes_bytes"], manifest["excesses"]
        if type(n_stream) is not int or not 0 <= n_stream <= len(compressed):
            raise ValueError(f"{n_stream} bytes of codes")
        if type(n_excess) is not int or not 0 <= n_excess <= n_codes:
            raise ValueError(f"{n_excess} excesses of codes")
        if n_codes > most_symbols(n_stream):
            raise ValueError(f"{n_codes} codes in {n_stream} bytes")
        border = len(compressed) - n_stream
        compressed, stream = compressed[:border], bytes(compressed[border:])
        n_body += TABLE.n_bytes + TABLE.dtype.itemsize * n_excess

    body = DECOMPRESS[scheme](compressed, n_body)
    if len(body) != n_body:
        raise ValueError(f"its body does not hold {n_body} bytes")
    tokenizer = Tokenizer(body[:n_tokenizer])
    if config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"{config.vocab_size} tokens in its model, {tokenizer.vocab_size} in its tokenizer"
        )
    stored = _stored(rows, layout, body[n_tokenizer:], stream)
    state = {name: dequantize(tensor) for name, tensor in stored.items()}
    for name, weights in state.items():
        if not weights.isfinite().all():
            raise ValueError(f"tensor {name} holds weights that are not finite")
    return Artifact(config, tokenizer, state, stored, scheme)


def _stored(rows: list[_Row], layout: list[_Part], body: bytes, stream: bytes) -> dict[str, Stored]:
    """Every tensor as it is stored, by name."""
    arrays: dict[tuple[str, int], np.ndarray] = {}
    start = 0
    for part in layout:
        planes = body[start : start + part.n_bytes]
        arrays[part.name, part.index] = _from_planes(planes, part.dtype).reshape(part.shape)
        start += part.n_bytes
    if rest := body[start:]:
        coded = [row.name for row in rows if row.coding == CODED[0]]
        exponents = [tuple(arrays[name, i] for i in range(CODED[1])) for name in coded]
        table_KM = _from_planes(rest[: TABLE.n_bytes], TABLE.dtype).reshape(TABLE.shape)
        excess_X = _from_planes(rest[TABLE.n_bytes :], TABLE.dtype)
        decoded = decode_codes(table_KM, excess_X, stream, exponents)
        for name, codes in zip(coded, decoded, strict=True):
            arrays[name, CODED[1]] = codes
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
