"""The artifact file: what is written comes back, and a write that fails changes nothing."""

import hashlib
import pickle
import struct
import zlib

import brotli
import numpy as np
import pytest
import torch
from artifact_cases import TOKENIZER
from codec_cases import CONFIG, GROUPS, STATE, parse, stored_state

from scangolf.artifact import codec
from scangolf.artifact.codec import encode, read_artifact, save_artifact
from scangolf.artifact.quantize import dequantize, quantize
from scangolf.config import to_dict
from scangolf.errors import UserError

# --- what is written comes back -----------------------------------------------------------------


def test_round_trip(path, scheme):
    artifact = read_artifact(path)
    assert artifact.model_config == CONFIG
    assert artifact.tokenizer.model_bytes == TOKENIZER.model_bytes
    assert artifact.scheme == scheme
    expected = stored_state(scheme)
    assert list(artifact.state) == list(expected)
    for name, tensor in artifact.state.items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, dequantize(expected[name])), name


def test_the_same_weights_give_the_same_file_and_its_size_is_returned(tmp_path, content, scheme):
    assert encode(stored_state(scheme), CONFIG, TOKENIZER, scheme) == content
    path = tmp_path / "artifact.sg"
    n_bytes = save_artifact(path, STATE, GROUPS, CONFIG, TOKENIZER, scheme)
    assert n_bytes == path.stat().st_size
    assert list(tmp_path.iterdir()) == [path]
    if scheme != "mixed-rans":
        assert path.read_bytes() == content


def test_the_layout_is_the_one_described(content, scheme):
    assert content[:12] == b"scangolf" + struct.pack("<I", 2 if scheme == "mixed-rans" else 1)
    assert content[12:44] == hashlib.sha256(content[44:]).digest()
    manifest, compressed = parse(content)
    assert manifest["model"] == to_dict(CONFIG)
    stored = stored_state(scheme)
    coding = {name: coding for name, _, coding in manifest["tensors"]}
    if scheme == "mixed-rans":
        n_stream = manifest["codes_bytes"]
        compressed, stream = compressed[:-n_stream], compressed[-n_stream:]
        codes = [t.parts[4].ravel() for t in stored.values() if t.coding == "mixed"]
        beyond = np.abs(np.concatenate(codes).astype(int)) - 127
        excess = beyond[beyond >= 0].astype("<u2").view(np.uint8).reshape(-1, 2).T.tobytes()
        assert len(excess) == 2 * manifest["excesses"]
        n_codes = sum(len(c) for c in codes)
        assert len(stream) > 4 * -(-n_codes // 8192)
        last = excess
    else:
        name = [name for name in STATE if coding[name].startswith("int8")][-1]
        last = stored[name].parts[0].tobytes()
    body = (zlib if scheme == "int8-zlib" else brotli).decompress(compressed)
    assert body.startswith(TOKENIZER.model_bytes)
    assert body.endswith(last)
    vectors = [STATE[name].reshape(-1) for name in STATE if coding[name] == "float32"]
    planes = [v.numpy().view(np.uint8).reshape(-1, 4).T.tobytes() for v in vectors if v.numel()]
    assert b"".join(planes) in body


def test_gaussian_codes_compress_to_their_entropy(tmp_path):
    w = torch.randn(512, 512, generator=torch.Generator().manual_seed(0)) * 0.02
    codes, steps = quantize("w", w, "matrix", "int8-brotli").parts
    share = np.bincount(codes.reshape(-1).view(np.uint8), minlength=256) / codes.size
    share = share[share > 0]
    entropy = -(share * np.log2(share)).sum() * codes.size / 8
    sizes = [
        save_artifact(
            tmp_path / "artifact.sg", state, {"w": "matrix"}, CONFIG, TOKENIZER, "int8-brotli"
        )
        for state in ({}, {"w": w})
    ]
    assert entropy < sizes[1] - sizes[0] < 1.01 * entropy + steps.nbytes


def test_reading_never_unpickles(path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("unpickled")

    for module, name in [
        (pickle, "load"),
        (pickle, "loads"),
        (pickle, "Unpickler"),
        (torch, "load"),
        (np, "load"),
    ]:
        monkeypatch.setattr(module, name, refuse)
    assert read_artifact(path).model_config == CONFIG


# --- writing fails safely -----------------------------------------------------------------------


def test_a_failed_write_leaves_the_old_file(path, content, scheme, monkeypatch):

    def fail(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(codec.os, "replace", fail)
    with pytest.raises(UserError, match="No space left on device"):
        save_artifact(path, {}, {}, CONFIG, TOKENIZER, scheme)
    assert list(path.parent.iterdir()) == [path]
    assert path.read_bytes() == content


def test_weights_that_are_not_finite_leave_the_old_file(path, content, scheme):
    broken = STATE | {"blocks.0.scale": torch.tensor([1.0, float("nan")])}
    with pytest.raises(UserError, match=r"blocks\.0\.scale"):
        save_artifact(path, broken, GROUPS, CONFIG, TOKENIZER, scheme)
    assert path.read_bytes() == content


def test_a_folder_that_does_not_exist(tmp_path, scheme):
    with pytest.raises(UserError, match=r"none/artifact\.sg: No such file"):
        save_artifact(tmp_path / "none" / "artifact.sg", {}, {}, CONFIG, TOKENIZER, scheme)
