"""The artifact file: what is written comes back, and no broken file does any harm."""

import hashlib
import io
import json
import pickle
import random
import struct
import tracemalloc
import zlib

import brotli
import numpy as np
import pytest
import sentencepiece
import torch

from scangolf.artifact import codec
from scangolf.artifact.codec import read_artifact, save_artifact
from scangolf.artifact.quantize import dequantize, quantize
from scangolf.config import ModelConfig, to_dict
from scangolf.data.tokenizer import Tokenizer
from scangolf.errors import UserError

SCHEMES = ["int8-brotli", "int8-zlib"]
HEADER_BYTES = 56


def small_tokenizer() -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the cat sat on the mat"] * 20),
        model_writer=model,
        model_type="bpe",
        vocab_size=24,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        num_threads=1,
        minloglevel=2,
    )
    return Tokenizer(model.getvalue())


TOKENIZER = small_tokenizer()
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


@pytest.fixture(scope="module", params=SCHEMES)
def scheme(request) -> str:
    return request.param


@pytest.fixture(scope="module")
def content(tmp_path_factory, scheme) -> bytes:
    path = tmp_path_factory.mktemp("artifact") / "artifact.sg"
    save_artifact(path, STATE, GROUPS, CONFIG, TOKENIZER, scheme)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path, content):
    """An artifact to break."""
    path = tmp_path / "artifact.sg"
    path.write_bytes(content)
    return path


def refused(path, content: bytes | None = None) -> str:
    """The one line that a reader of these bytes is told."""
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as caught:
        read_artifact(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def parse(content: bytes) -> tuple[dict, bytes]:
    """Manifest and compressed body, taken apart as the format's description says."""
    n_manifest, n_body = struct.unpack_from("<IQ", content, 44)
    assert len(content) == HEADER_BYTES + n_manifest + n_body
    return json.loads(content[HEADER_BYTES : HEADER_BYTES + n_manifest]), content[-n_body:]


def seal(manifest: dict | bytes, body: bytes) -> bytes:
    """A file with right lengths and checksum, whatever it holds."""
    text = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    checked = struct.pack("<IQ", len(text), len(body)) + text + body
    return b"scangolf\x01\0\0\0" + hashlib.sha256(checked).digest() + checked


# --- what is written comes back -----------------------------------------------------------------


def test_round_trip(path, scheme):
    artifact = read_artifact(path)
    assert artifact.model_config == CONFIG
    assert artifact.tokenizer.model_bytes == TOKENIZER.model_bytes
    assert artifact.scheme == scheme
    assert list(artifact.state) == list(STATE)
    for name, tensor in artifact.state.items():
        expected = dequantize(quantize(name, STATE[name], GROUPS[name], scheme))
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, expected), name


def test_the_same_weights_give_the_same_file_and_its_size_is_returned(path, content, scheme):
    assert save_artifact(path, STATE, GROUPS, CONFIG, TOKENIZER, scheme) == len(content)
    assert path.read_bytes() == content
    assert list(path.parent.iterdir()) == [path]


def test_the_layout_is_the_one_described(content, scheme):
    assert content[:12] == b"scangolf\x01\0\0\0"
    assert content[12:44] == hashlib.sha256(content[44:]).digest()
    manifest, compressed = parse(content)
    assert manifest["model"] == to_dict(CONFIG)
    decompress = {"int8-brotli": brotli.decompress, "int8-zlib": zlib.decompress}[scheme]
    body = decompress(compressed)
    assert body.startswith(TOKENIZER.model_bytes)
    coding = {name: coding for name, _, coding in manifest["tensors"]}
    last = [name for name in STATE if coding[name].startswith("int8")][-1]
    codes = quantize(last, STATE[last], GROUPS[last], scheme).parts[0]
    assert body.endswith(codes.tobytes())
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


# --- broken files -------------------------------------------------------------------------------


def test_files_that_are_no_artifact(tmp_path):
    path = tmp_path / "artifact.sg"
    assert "No such file" in refused(path)
    assert "not a whole artifact" in refused(path, b"")
    assert "not a whole artifact" in refused(path, b"\x80\x02}q\x00." * 100)
    assert "not a whole artifact" in refused(path, b"scangolf" + bytes(47))
    path.unlink()
    path.mkdir()
    assert "Is a directory" in refused(path)


def test_another_version_of_the_format(path, content):
    newer = content[:8] + struct.pack("<I", 7) + content[12:]
    assert "format 7, this version of scangolf reads 1" in refused(path, newer)


def test_a_file_cut_anywhere(path, content):
    n_manifest = struct.unpack_from("<I", content, 44)[0]
    body = HEADER_BYTES + n_manifest
    cuts = {*range(HEADER_BYTES + 2), body - 1, body, body + 1, len(content) - 1}
    cuts |= set(random.Random(0).sample(range(len(content)), 50))
    for cut in cuts:
        refused(path, content[:cut])


def test_bytes_after_the_end(path, content):
    for rest in (b"\0", content):
        assert "damaged" in refused(path, content + rest)


def test_one_flipped_bit(path, content):
    n_manifest = struct.unpack_from("<I", content, 44)[0]
    body = HEADER_BYTES + n_manifest
    choose = random.Random(0)
    places = [*range(HEADER_BYTES)]
    places += [choose.randrange(HEADER_BYTES, body) for _ in range(70)]
    places += [choose.randrange(body, len(content)) for _ in range(70)]
    for place in [*places, len(content) - 1]:
        broken = bytearray(content)
        broken[place] ^= 1 << choose.randrange(8)
        refused(path, bytes(broken))


def test_a_flipped_bit_behind_a_repaired_checksum_raises_nothing_but_user_errors(path, content):
    """Such a file may be a valid one; most are not."""
    manifest, body = parse(content)
    text = json.dumps(manifest).encode()
    choose = random.Random(0)
    messages = []
    for _ in range(150):
        broken = bytearray(text + body)
        place = choose.randrange(len(text)) if choose.random() < 0.7 else -choose.randrange(300)
        broken[place] ^= 1 << choose.randrange(8)
        path.write_bytes(seal(bytes(broken[: len(text)]), bytes(broken[len(text) :])))
        try:
            read_artifact(path)
        except UserError as error:
            messages.append(str(error))
    assert len(messages) > 75
    assert not any("\n" in message for message in messages)


LIES = {
    "no manifest": lambda m: b"",
    "not JSON": lambda m: b"{'model'",
    "not text": lambda m: b"\xff\xfe\x00",
    "deep JSON": lambda m: b"[" * 100_000,
    "a list": lambda m: b"[]",
    "a long manifest": lambda m: b" " * 2**20 + json.dumps(m).encode(),
    "no scheme": lambda m: {k: v for k, v in m.items() if k != "scheme"},
    "another scheme": lambda m: m | {"scheme": "int4"},
    "a scheme of no name": lambda m: m | {"scheme": []},
    "no model": lambda m: {k: v for k, v in m.items() if k != "model"},
    "an unknown option": lambda m: m | {"model": m["model"] | {"experts": 8}},
    "a model of text": lambda m: m | {"model": m["model"] | {"d_model": "wide"}},
    "another vocabulary": lambda m: m | {"model": m["model"] | {"vocab_size": 1024}},
    "tokenizer too short": lambda m: m | {"tokenizer_bytes": m["tokenizer_bytes"] - 1},
    "tokenizer too long": lambda m: m | {"tokenizer_bytes": m["tokenizer_bytes"] + 1},
    "negative tokenizer": lambda m: m | {"tokenizer_bytes": -5},
    "tokenizer of half a byte": lambda m: m | {"tokenizer_bytes": 0.5},
    "tokenizer of text": lambda m: m | {"tokenizer_bytes": "12"},
    "huge tokenizer": lambda m: m | {"tokenizer_bytes": 10**30},
    "no tensors": lambda m: m | {"tensors": []},
    "tensors of text": lambda m: m | {"tensors": "abc"},
    "a tensor twice": lambda m: m | {"tensors": [*m["tensors"], m["tensors"][-1]]},
    "a tensor of two fields": lambda m: m | {"tensors": [["w", [1]]]},
    "a tensor without name": lambda m: m | {"tensors": [[None, [1], "float32"]]},
    "a name of two lines": lambda m: m | {"tensors": [["a\nb", [1], "int3"]]},
    "an unknown coding": lambda m: m | {"tensors": [["w", [1], "float64"]]},
    "a coding of no name": lambda m: m | {"tensors": [["w", [1], {}]]},
    "a vector in int8": lambda m: m | {"tensors": [["w", [9], "int8/float16"]]},
    "a negative shape": lambda m: m | {"tensors": [["w", [-1, -9], "float32"]]},
    "a shape of floats": lambda m: m | {"tensors": [["w", [3.0], "float32"]]},
    "a shape of truths": lambda m: m | {"tensors": [["w", [True], "float32"]]},
    "a shape that is a number": lambda m: m | {"tensors": [["w", 3, "float32"]]},
    "a huge shape": lambda m: m | {"tensors": [["w", [2**20, 2**20], "float16"]]},
    "a huge empty shape": lambda m: m | {"tensors": [["w", [0, 10**30], "float16"]]},
    "many dimensions": lambda m: m | {"tensors": [["w", [1] * 100, "float16"]]},
    "many empty rows": lambda m: m | {"tensors": [["w", [2**29, 0], "int8/float16"]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_manifest_with_a_right_checksum(path, content, lie):
    manifest, body = parse(content)
    assert "cannot be read" in refused(path, seal(LIES[lie](manifest), body))


def test_lengths_that_lie(path, content):
    for offset, size in [(44, "<I"), (48, "<Q")]:
        for value in (0, 1, 2 ** (8 * struct.calcsize(size)) - 1):
            broken = bytearray(content)
            struct.pack_into(size, broken, offset, value)
            broken[12:44] = hashlib.sha256(broken[44:]).digest()
            assert "damaged" in refused(path, bytes(broken))


def test_a_boundary_moved_between_manifest_and_body(path, content):
    broken = bytearray(content)
    n_manifest, n_body = struct.unpack_from("<IQ", content, 44)
    struct.pack_into("<IQ", broken, 44, n_manifest + 1, n_body - 1)
    broken[12:44] = hashlib.sha256(broken[44:]).digest()
    refused(path, bytes(broken))


def test_bodies_that_are_not_what_the_manifest_says(path, content, scheme):
    manifest, body = parse(content)
    other = "int8-zlib" if scheme == "int8-brotli" else "int8-brotli"
    assert "cannot be read" in refused(path, seal(manifest | {"scheme": other}, body))
    for broken in (b"", body[:-1], body + b"\0", body + body, bytes(len(body))):
        assert "cannot be read" in refused(path, seal(manifest, broken))


def test_a_file_larger_than_any_artifact(tmp_path):
    path = tmp_path / "artifact.sg"
    content = b"scangolf\x01\0\0\0" + bytes(32) + struct.pack("<IQ", 2, 2**30)
    with path.open("wb") as file:
        file.write(content)
        file.truncate(HEADER_BYTES + 2 + 2**30)  # a hole: nothing is written
    assert "at most 536,870,912" in refused(path)


def test_weights_that_are_not_finite_in_the_file(tmp_path):
    manifest = {
        "scheme": "int8-zlib",
        "model": to_dict(CONFIG),
        "tokenizer_bytes": len(TOKENIZER.model_bytes),
        "tensors": [["w", [1], "float32"]],
    }
    body = TOKENIZER.model_bytes + struct.pack("<f", float("nan"))
    path = tmp_path / "artifact.sg"
    assert "tensor w" in refused(path, seal(manifest, zlib.compress(body)))


def test_a_decompression_bomb_takes_no_memory(path, content, scheme):
    zeros = bytes(2**20)
    if scheme == "int8-brotli":
        packer = brotli.Compressor(quality=1)
        bomb = b"".join(packer.process(zeros) for _ in range(200)) + packer.finish()
    else:
        packer = zlib.compressobj(1)
        bomb = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    manifest, _ = parse(content)
    path.write_bytes(seal(manifest, bomb))
    tracemalloc.start()
    try:
        refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 2 * len(bomb) + 2**21


def test_a_body_over_the_cap_is_refused_before_it_is_decompressed(
    path, content, scheme, monkeypatch
):
    def refuse(*args):
        raise AssertionError("decompressed")

    monkeypatch.setitem(codec.DECOMPRESS, scheme, refuse)
    manifest, body = parse(content)
    for shape, coding in [([2**15, 2**13], "float16"), ([2**29, 0], "int8/float16")]:
        lie = manifest | {"tensors": [["w", shape, coding]]}
        assert "bytes of tensors and tokenizer" in refused(path, seal(lie, body))
