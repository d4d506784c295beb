"""What is said of a size before training, against what is stored and against plain arithmetic."""

import dataclasses

import pytest
from artifact_cases import TOKENIZER

from scangolf.artifact.codec import save_artifact
from scangolf.artifact.quantize import quantize
from scangolf.artifact.room import Room, uncompressed_bytes
from scangolf.config import ArtifactConfig
from scangolf.errors import UserError

ROOM = Room(
    parameters=1_000_000,
    code_bytes=20_000,
    limit_bytes=1_000_000,
    scheme="int8-brotli",
    uncompressed_bytes=1_050_000,
)


@pytest.mark.parametrize("scheme", ["int8-brotli", "int8-zlib", "mixed-rans"])
def test_bytes_by_shape_are_those_of_the_stored_tensors(trained, scheme):
    groups = trained.model.parameter_groups()
    stored = (quantize(n, p, groups[n], scheme) for n, p in trained.model.named_parameters())
    wanted = sum(part.nbytes for tensor in stored for part in tensor.parts)
    assert uncompressed_bytes(trained.model, scheme) == wanted


def test_the_artifact_is_smaller(trained, tmp_path):
    model, scheme = trained.model, "int8-brotli"
    room = Room.of(model, ArtifactConfig(scheme), 0)
    state = {name: p.detach() for name, p in model.named_parameters()}
    path = tmp_path / "artifact.sg"
    n_bytes = save_artifact(path, state, model.parameter_groups(), model.config, TOKENIZER, scheme)
    beside = len(TOKENIZER.model_bytes) + 5000  # and the manifest
    assert 0.7 * room.uncompressed_bytes < n_bytes < room.uncompressed_bytes + beside


def test_mixed_rans_needs_some_bits_for_every_weight():
    room = dataclasses.replace(ROOM, scheme="mixed-rans")
    assert room.bits_per_weight == 7.84
    assert room.say_before() == ("1,000,000 bytes leave 7.84 bits a weight beside the code: fits")
    exactly = dataclasses.replace(room, limit_bytes=426_250)
    assert exactly.bits_per_weight == 3.25
    assert exactly.fits is True
    coarser = dataclasses.replace(exactly, code_bytes=20_001)
    assert coarser.fits is False
    assert "below 3.25 the score suffers; a smaller model" in (coarser.say_before() or "")
    least = dataclasses.replace(room, limit_bytes=207_500)
    least.check()
    with pytest.raises(UserError, match=r"leaves 1\.50 bits for each of 1,000,000 weights"):
        dataclasses.replace(least, code_bytes=20_001).check()
    dataclasses.replace(least, code_bytes=20_001, scheme="int8-brotli").check()


def test_eight_bits_are_certain_only_where_they_fit_uncompressed():
    certain = dataclasses.replace(ROOM, limit_bytes=1_070_000)
    assert certain.fits is True
    assert certain.say_before() == "1,070,000 of 1,070,000 bytes before compression: fits"
    assert dataclasses.replace(ROOM, limit_bytes=1_069_999).fits is None
    assert ROOM.trained_bytes == 900_000
    assert ROOM.say_before() is None


def test_trained_weights_tell():
    said = "artifact and code by now about {} of 1,000,000 bytes: {}"
    assert ROOM.say_now(980_000) == said.format("1,000,000", "fits so far")
    assert ROOM.say_now(734_567) == said.format("754,600", "fits so far")
    assert ROOM.say_now(981_000).startswith(said.format("1,001,000", "TOO LARGE; a smaller model"))
