"""Artifacts of every coding, and how to take one apart and seal it again."""

import hashlib
import json
import struct

import numpy as np
import torch
from artifact_cases import TOKENIZER

from scangolf.artifact.coding import with_sizes
from scangolf.artifact.quantize import Stored, quantize
from scangolf.config import ModelConfig

SCHEMES = ["int8-brotli", "int8-zlib", "mixed-rans"]
HEADER_BYTES = 56
CONFIG = ModelConfig(vocab_size=TOKENIZER.vocab_size, d_model=64, n_layers=2)


def small_state() -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """Every coding and every odd shape, the tensors of one coding not side by side."""
    generator = torch.Generator().manual_seed(0)
    tensors = {
        "embedding.weight": ("embedding", (TOKENIZER.vocab_size, 64)),
        "blocks.0.up": ("matrix", (67, 71)),
        "blocks.0.scale": ("vector", (5,)),
        "blocks.0.conv": ("dynamics", (7, 1, 4)),
        "blocks.1.up": ("matrix", (1, 5000)),
        "blocks.1.mix": ("vector", (2, 9)),
        "blocks.1.gain": ("vector", ()),
        "blocks.1.large": ("matrix", (129, 512)),
        "skip_weights": ("vector", (0, 64)),
    }
    state = {n: torch.randn(shape, generator=generator) for n, (_, shape) in tensors.items()}
    return state, {name: group for name, (group, _) in tensors.items()}


STATE, GROUPS = small_state()


def mixed(shape: tuple[int, ...]) -> Stored:
    """A tensor in steps of its own, with codes beyond the coder's symbols."""
    rng = np.random.default_rng(0)
    row_R, column_D = (rng.integers(-40, -20, n).astype(np.int8) for n in shape)
    spread_RD = np.exp2(np.add.outer(rng.uniform(-6, 7, shape[0]), rng.uniform(-1, 1, shape[1])))
    codes_RD = np.rint(rng.standard_normal(shape) * spread_RD).astype("<i2")
    codes_RD[0, :4] = 127, -128, 32767, -32767
    return Stored("mixed", (*with_sizes(row_R, column_D, codes_RD), codes_RD))


def stored_state(scheme: str) -> dict[str, Stored]:
    """The same tensors as they are stored; mixed-rans has every coding of its own and of others."""
    stored = {name: quantize(name, w, GROUPS[name], scheme) for name, w in STATE.items()}
    if scheme == "mixed-rans":
        matrices = ("blocks.0.up", "blocks.1.up", "blocks.1.large")
        stored |= {name: mixed(tuple(STATE[name].shape)) for name in matrices}
        none, empty = np.zeros(0, np.int8), np.zeros((0, 0), "<i2")
        stored["empty"] = Stored("mixed", (*with_sizes(none, none, empty), empty))
    return stored


def parse(content: bytes) -> tuple[dict, bytes]:
    """Manifest and compressed body, taken apart as the format's description says."""
    n_manifest, n_body = struct.unpack_from("<IQ", content, 44)
    assert len(content) == HEADER_BYTES + n_manifest + n_body
    return json.loads(content[HEADER_BYTES : HEADER_BYTES + n_manifest]), content[-n_body:]


def seal(manifest: dict | bytes, body: bytes, like: bytes = b"scangolf\x01\0\0\0") -> bytes:
    """A file with right lengths and checksum, whatever it holds, of the version of another."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    checked = struct.pack("<IQ", len(text), len(body)) + text + body
    return like[:12] + hashlib.sha256(checked).digest() + checked
