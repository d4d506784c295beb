"""No broken file does any harm: a reader is told in a line, and memory stays bounded."""

import hashlib
import json
import random
import struct
import tracemalloc
import zlib

import brotli
import pytest
from artifact_cases import TOKENIZER
from codec_cases import CONFIG, HEADER_BYTES, SCHEMES, parse, seal, stored_state

from scangolf.artifact import codec
from scangolf.artifact.codec import encode, read_artifact
from scangolf.config import to_dict
from scangolf.errors import UserError


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


# --- any scheme -------------------------------------------------------------------------------


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
        path.write_bytes(seal(bytes(broken[: len(text)]), bytes(broken[len(text) :]), content))
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
    "a vector in steps": lambda m: m | {"tensors": [["w", [9], "mixed"]]},
    "a cube in steps": lambda m: m | {"tensors": [["w", [9, 9, 9], "mixed"]]},
    "huge steps": lambda m: m | {"tensors": [["w", [2**16, 2**16], "mixed"]]},
    "many rows of steps": lambda m: m | {"tensors": [["w", [2**29, 0], "mixed"]]},
    "more codes than bytes": lambda m: m | {"tensors": [["w", [2**14, 2**13], "mixed"]]},
    "many empty rows": lambda m: m | {"tensors": [["w", [2**29, 0], "int8/float16"]]},
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lying_manifest_with_a_right_checksum(path, content, lie):
    manifest, body = parse(content)
    assert "cannot be read" in refused(path, seal(LIES[lie](manifest), body, content))


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
    for other in set(SCHEMES) - {scheme}:
        lie = manifest | {"scheme": other}
        assert "cannot be read" in refused(path, seal(lie, body, content))
    for broken in (b"", body[:-1], body + b"\0", body + body, bytes(len(body))):
        assert "cannot be read" in refused(path, seal(manifest, broken, content))


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
    if scheme != "int8-zlib":
        packer = brotli.Compressor(quality=1)
        bomb = b"".join(packer.process(zeros) for _ in range(200)) + packer.finish()
    else:
        packer = zlib.compressobj(1)
        bomb = b"".join(packer.compress(zeros) for _ in range(200)) + packer.flush()
    manifest, _ = parse(content)
    stream = content[-manifest["codes_bytes"] :] if scheme == "mixed-rans" else b""
    path.write_bytes(seal(manifest, bomb + stream, content))
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
        assert "bytes of tensors and tokenizer" in refused(path, seal(lie, body, content))


# --- the entropy code of mixed-rans -------------------------------------------------------------

CODE_LIES = {
    "no codes": {"codes_bytes": 0},
    "negative codes": {"codes_bytes": -1},
    "more codes than body": {"codes_bytes": 2**40},
    "codes of half a byte": {"codes_bytes": 1.5},
    "codes of text": {"codes_bytes": "7"},
    "no excesses": {"excesses": 0},
    "negative excesses": {"excesses": -1},
    "excesses of text": {"excesses": "7"},
    "more excesses than codes": {"excesses": 2**28},
}


@pytest.mark.parametrize("lie", CODE_LIES)
def test_lies_about_the_codes(tmp_path, lie):
    content = encode(stored_state("mixed-rans"), CONFIG, TOKENIZER, "mixed-rans")
    manifest, body = parse(content)
    missing = {key: value for key, value in manifest.items() if key not in CODE_LIES[lie]}
    for broken in (manifest | CODE_LIES[lie], missing):
        message = refused(tmp_path / "artifact.sg", seal(broken, body, content))
        assert "cannot be read" in message


def test_a_damaged_stream_behind_a_repaired_checksum_is_noticed(tmp_path):
    """The coder's states do not end where they must; only a flip that keeps them may pass."""
    path = tmp_path / "artifact.sg"
    content = encode(stored_state("mixed-rans"), CONFIG, TOKENIZER, "mixed-rans")
    manifest, body = parse(content)
    choose = random.Random(0)
    for _ in range(100):
        broken = bytearray(body)
        broken[-1 - choose.randrange(manifest["codes_bytes"])] ^= 1 << choose.randrange(8)
        assert "cannot be read" in refused(path, seal(manifest, bytes(broken), content))


def test_codes_take_memory_in_proportion_to_their_bytes(tmp_path):
    """A class of one symbol takes no bits: the states alone bound how many codes there can be."""
    path = tmp_path / "artifact.sg"
    content = encode(stored_state("mixed-rans"), CONFIG, TOKENIZER, "mixed-rans")
    manifest, body = parse(content)
    lie = manifest | {"tensors": [["w", [2**14, 2**13], "mixed"]]}
    path.write_bytes(seal(lie, body, content))
    tracemalloc.start()
    try:
        assert "134217728 codes in" in refused(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * len(content) + 2**20


@pytest.mark.parametrize(("version", "scheme"), [(2, "int8-brotli"), (1, "mixed-rans")])
def test_a_scheme_in_the_format_of_another(tmp_path, version, scheme):
    content = encode(stored_state(scheme), CONFIG, TOKENIZER, scheme)
    manifest, body = parse(content)
    lie = seal(manifest, body, b"scangolf" + struct.pack("<I", version))
    assert f"scheme {scheme} in format {version}" in refused(tmp_path / "artifact.sg", lie)
