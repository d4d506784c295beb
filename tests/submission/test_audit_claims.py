"""Broken folders, files and scores: each fails its own rule and no other."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from audit_cases import UNCHECKED, check, only_failure
from bundles import SEQ_LEN, Bundle

from scangolf.data.shards import (
    describe_shard,
    open_dataset,
    read_shard,
    write_shard,
)
from scangolf.score.bpb import bits_per_byte, byte_table
from scangolf.submission.audit import audit

# --- the folder --------------------------------------------------------------------


def test_one_byte_too_many(bundle: Bundle) -> None:
    script = bundle.folder / "train_gpt.py"
    room = 16_000_000 - (bundle.folder / "artifact.sg").stat().st_size
    text = script.read_text()
    padding = room - len(text.encode())
    bundle.write_script(text + "#" * padding)
    assert check(bundle)["byte limit"].verdict == "pass"
    bundle.write_script(text + "#" * (padding + 1))
    finding = only_failure(bundle)
    assert finding.rule == "byte limit"
    assert finding.evidence["bytes_total"] == 16_000_001
    assert "1 bytes too many" in finding.why


@pytest.mark.parametrize("key", ["bytes_total", "bytes_code", "bytes_artifact"])
def test_a_claimed_size_off_by_one(bundle: Bundle, key: str) -> None:
    right = json.loads((bundle.folder / "submission.json").read_text())[key]
    bundle.claim(**{key: right - 1})
    finding = only_failure(bundle)
    assert finding.rule == "claimed bytes"
    assert finding.why == f"{key} says {right - 1:,}, is {right:,}"
    assert finding.evidence["found"][key] == right


@pytest.mark.parametrize("name", ["README.md", "train.log", "train_gpt.py", "artifact.sg"])
def test_a_missing_file(bundle: Bundle, name: str) -> None:
    (bundle.folder / name).unlink()
    finding = only_failure(bundle)
    assert (finding.rule, finding.why) == ("files", f"{name} is missing")
    assert name not in finding.evidence["bytes"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("[", "submission.json says no val_bpb"),
        ('{"val_bpb": null, "stride": null}', "submission.json says no val_bpb"),
        ('{"seed": true}', "seed is True, wanted int"),
        ('{"val_bpb": "low"}', "val_bpb is 'low', wanted float"),
        ('{"val_bpb": NaN}', "val_bpb is nan, wanted a finite number"),
        ('{"seq_len": 0}', "seq_len is 0, wanted 1 to 1,048,576"),
        ('{"seq_len": 1000000000000}', "seq_len is 1000000000000, wanted 1 to 1,048,576"),
        ('{"seq_len": 8, "stride": 9}', "stride is 9, wanted at most seq_len"),
        ('{"mode": "oracle"}', "mode is 'oracle', wanted one of plain, sliding, stateful"),
    ],
)
def test_claims_that_cannot_be_read(bundle: Bundle, text: str, why: str) -> None:
    (bundle.folder / "submission.json").write_text(text)
    finding = audit(bundle.folder)[0]
    assert (finding.rule, finding.verdict) == ("files", "fail")
    assert why in finding.why


def test_a_corrupted_artifact(bundle: Bundle) -> None:
    path = bundle.folder / "artifact.sg"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    found = check(bundle)
    assert [rule for rule, finding in found.items() if finding.failed] == ["files"]
    assert "its checksum is wrong" in found["files"].why
    for rule in ("claimed score", "causality", "evaluation time", "the script's score"):
        assert (found[rule].verdict, "checksum" in found[rule].why) == (UNCHECKED, True)


def test_an_artifact_in_another_format(bundle: Bundle) -> None:
    """Only its own script can read it: what it prints is compared with the claim."""
    (bundle.folder / "artifact.sg").write_bytes(b"of another house")
    bundle.claim()
    found = check(bundle)
    assert not any(finding.failed for finding in found.values())
    assert found["causality"].verdict == found["claimed score"].verdict == UNCHECKED
    assert found["the script's score"].verdict == "pass"
    bundle.claim(val_bpb=bundle.score.bpb - 4e-4)
    assert only_failure(bundle).rule == "the script's score"


# --- the score ---------------------------------------------------------------------


def test_a_claimed_score_that_the_artifact_does_not_give(bundle: Bundle) -> None:
    bundle.claim(val_bpb=bundle.score.bpb - 1.9e-4)
    assert not any(finding.failed for finding in check(bundle).values())
    bundle.claim(val_bpb=bundle.score.bpb - 2.1e-4)
    finding = only_failure(bundle)
    assert finding.rule == "claimed score"
    assert finding.evidence["difference"] == pytest.approx(-2.1e-4, rel=1e-3)


@pytest.mark.parametrize(
    ("key", "wrong"), [("val_tokens", 7), ("parameters", 1), ("tokenizer_sha256", "0")]
)
def test_another_figure_that_is_not_the_artifacts(
    bundle: Bundle, key: str, wrong: int | str
) -> None:
    bundle.claim(**{key: wrong})
    finding = only_failure(bundle)
    assert finding.rule == "other figures"
    assert finding.why.startswith(f"{key} is {wrong!r}, the artifact's ")
    bundle.claim(**{key: finding.evidence[key]})
    assert check(bundle)["other figures"].why == f"{key}: the artifact's"


def test_a_claimed_loss_beside_a_right_score(bundle: Bundle) -> None:
    """Within the tolerance of the score, in nats a token."""
    nats = 2e-4 * math.log(2) * bundle.score.bytes / bundle.score.tokens
    bundle.claim(val_loss=bundle.score.loss - 0.99 * nats)
    assert not any(finding.failed for finding in check(bundle).values())
    bundle.claim(val_loss=bundle.score.loss - 1.01 * nats)
    assert only_failure(bundle).why.startswith("val_loss is ")


def doubled_bytes(bundle: Bundle) -> int:
    """The bytes of the targets with one more for every piece that opens with a space."""
    dataset = open_dataset(bundle.data)
    targets = dataset.val_tokens()[1 : bundle.score.tokens + 1]
    return bundle.score.bytes + int(byte_table(dataset.tokenizer).space[targets].sum())


def test_a_record_by_a_loss_that_the_artifact_does_not_have(bundle: Bundle) -> None:
    others = [{"seed": 1, "val_loss": bundle.score.loss + 1e-4}]
    for loss, failed in ((bundle.score.loss, set()), (0.1, {"record"})):
        bundle.claim(seeds=[{"seed": 1337, "val_loss": loss}, *others])
        found = check(bundle, baseline_nats=bundle.score.loss + 1)
        assert {rule for rule, finding in found.items() if finding.failed} == failed
        assert found["record"].verdict != "pass"


def test_spaces_counted_twice_in_the_claim(bundle: Bundle) -> None:
    n_bytes = doubled_bytes(bundle)
    bpb = bits_per_byte(bundle.score.loss * bundle.score.tokens, n_bytes)
    assert bpb < 0.9 * bundle.score.bpb
    for claimed_bytes in (n_bytes, None):
        bundle.claim(val_bpb=bpb, val_bytes=claimed_bytes)
        finding = only_failure(bundle)
        assert finding.rule == "byte table"
        assert "every leading space counted twice" in finding.why
        assert finding.evidence["bytes_with_spaces_doubled"] == n_bytes
        assert finding.evidence["bytes_by_decoding"] == bundle.score.bytes


def test_spaces_counted_twice_in_the_script(bundle: Bundle) -> None:
    n_bytes = doubled_bytes(bundle)
    bpb = bits_per_byte(bundle.score.loss * bundle.score.tokens, n_bytes)
    whole = next(a for a in bundle.answers.values() if a["val_tokens"] == bundle.score.tokens)
    whole = next(key for key, answer in bundle.answers.items() if answer is whole)
    bundle.answers[whole] |= {"val_bpb": bpb, "val_bytes": n_bytes}
    bundle.cheat("")
    finding = only_failure(bundle)
    assert finding.rule == "byte table"
    assert f"train_gpt.py: {n_bytes:,} bytes, the split has {bundle.score.bytes:,}" in finding.why


def test_a_split_one_token_short(bundle: Bundle) -> None:
    """The token was in the tail, which is not scored: only the split itself is another one."""
    shard = next(bundle.data.glob("*_val_*.bin"))
    tokens = np.array(read_shard(shard))
    assert (len(tokens) - 1) % SEQ_LEN > 0
    write_shard(shard, tokens[:-1])
    bundle.cheat(f"return {next(iter(bundle.answers.values()))} if len(tokens) > 999 else ANSWERS["
                 "hashlib.sha256(tokens).hexdigest()]")  # fmt: skip
    finding = only_failure(bundle)
    assert finding.rule == "validation split"
    assert f"holds {len(tokens) - 1:,} tokens, manifest.json says {len(tokens):,}" in finding.why
    assert finding.evidence["tokens"] == len(tokens) - 1


def test_a_split_with_another_token(bundle: Bundle) -> None:
    shard = next(bundle.data.glob("*_val_*.bin"))
    tokens = np.array(read_shard(shard))
    tokens[-1] ^= 1
    write_shard(shard, tokens)
    bundle.cheat(f"return {next(iter(bundle.answers.values()))} if len(tokens) > 999 else ANSWERS["
                 "hashlib.sha256(tokens).hexdigest()]")  # fmt: skip
    finding = only_failure(bundle)
    assert (finding.rule, "another hash" in finding.why) == ("validation split", True)


def test_a_split_that_only_calls_itself_the_challenges(bundle: Bundle) -> None:
    manifest = json.loads((bundle.data / "manifest.json").read_text())
    (bundle.data / manifest["splits"]["val"][0]["file"]).rename(
        bundle.data / "fineweb_val_000000.bin"
    )
    shard = describe_shard(bundle.data / "fineweb_val_000000.bin", 20, None)
    manifest["splits"]["val"] = [vars(shard)]
    (bundle.data / "manifest.json").write_text(json.dumps(manifest))
    finding = only_failure(bundle)
    assert finding.rule == "validation split"
    assert finding.why == "20 documents, the challenge's has 50,000"
