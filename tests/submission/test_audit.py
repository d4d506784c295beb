"""A good submission passes every rule; each broken one fails its own rule and no other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bundles import EVALUATES, SEQ_LEN, Bundle, make_bundle, printed

from scangolf.cli import main
from scangolf.data.shards import (
    describe_shard,
    open_dataset,
    read_manifest,
    read_shard,
    write_shard,
)
from scangolf.errors import UserError
from scangolf.score.bpb import bits_per_byte, byte_table
from scangolf.submission.audit import audit
from scangolf.submission.rules.finding import Finding
from scangolf.submission.rules.limits import Limits
from scangolf.submission.rules.sandbox import has_namespaces

UNCHECKED = "cannot be checked by software"
RULES = [
    "files", "byte limit", "claimed bytes", "training time", "causality", "distribution",
    "validation split", "claimed score", "byte table", "no network in evaluation",
    "no training data in evaluation", "evaluation time", "self-contained code",
    "the script's score", "the script on other tokens", "no training on unscored tokens",
    "no n-gram cache keyed with the target", "record",
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_bundle(tmp_path_factory.mktemp("good"))


@pytest.fixture
def bundle(good: Bundle, tmp_path: Path) -> Bundle:
    """A copy to break."""
    return good.copy(tmp_path)


def check(bundle: Bundle, **options: Any) -> dict[str, Finding]:
    findings = audit(bundle.folder, data=bundle.data, **options)
    json.dumps([finding.evidence for finding in findings], allow_nan=False)
    assert sorted(finding.rule for finding in findings) == sorted(RULES)
    return {finding.rule: finding for finding in findings}


def only_failure(bundle: Bundle, **options: Any) -> Finding:
    """The one rule that a broken submission fails."""
    failed = [finding for finding in check(bundle, **options).values() if finding.failed]
    assert len(failed) == 1, failed
    return failed[0]


# --- good ones ----------------------------------------------------------------------------------


def test_a_good_submission_passes_all_that_can_be_checked(good: Bundle) -> None:
    found = check(good)
    assert {r for r, f in found.items() if f.verdict != "pass"} == {"record"}
    assert found["record"].verdict == UNCHECKED
    assert found["byte limit"].evidence["bytes_artifact"] == (
        (good.folder / "artifact.sg").stat().st_size
    )
    score = found["claimed score"].evidence
    assert score["artifact"] == pytest.approx(good.score.bpb, abs=1e-9)
    assert score["tolerance"] == 1e-4
    assert f"in sequences of {SEQ_LEN}, plain" in found["claimed score"].why
    assert found["byte table"].evidence["bytes_by_decoding"] == good.score.bytes
    assert found["causality"].evidence["tolerance"] == 0.0
    assert len(found["causality"].evidence["positions"]) >= 3
    assert found["distribution"].evidence["largest_sum_error"] < 1e-5
    assert "not the challenge's split" in found["validation split"].why
    isolation = "network namespace and Python hook" if has_namespaces() else "Python hook"
    assert found["no network in evaluation"].evidence["isolation"] == isolation


def test_a_script_that_really_evaluates(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    bundle.write_script(EVALUATES)
    main(["audit", str(bundle.folder), "--data", str(bundle.data), "--json"])
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is True
    rules = {rule["rule"]: rule for rule in report["rules"]}
    unseen = rules["the script on other tokens"]
    assert (unseen["verdict"], unseen["evidence"]["targets"]) == ("pass", 4 * SEQ_LEN)
    assert abs(unseen["evidence"]["difference"]) < 1e-5
    assert rules["the script's score"]["verdict"] == "pass"
    # It is not whole: most of its code lies in the installed package and is not counted.
    assert rules["self-contained code"]["verdict"] == UNCHECKED
    assert "scangolf" in rules["self-contained code"]["why"]


# --- broken ones: the folder --------------------------------------------------------------------


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
    bundle.claim(val_bpb=bundle.score.bpb - 2e-4)
    assert only_failure(bundle).rule == "the script's score"


# --- broken ones: the score ---------------------------------------------------------------------


def test_a_claimed_score_that_the_artifact_does_not_give(bundle: Bundle) -> None:
    bundle.claim(val_bpb=bundle.score.bpb - 0.9e-4)
    assert not any(finding.failed for finding in check(bundle).values())
    bundle.claim(val_bpb=bundle.score.bpb - 1.1e-4)
    finding = only_failure(bundle)
    assert finding.rule == "claimed score"
    assert finding.evidence["difference"] == pytest.approx(-1.1e-4, rel=1e-3)


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


# --- broken ones: the evaluation ----------------------------------------------------------------


def test_an_evaluation_that_asks_the_network(bundle: Bundle) -> None:
    bundle.cheat("""
import socket
socket.create_connection(("192.0.2.1", 80), timeout=1)
""")
    finding = only_failure(bundle)
    assert finding.rule == "no network in evaluation"
    assert finding.evidence["attempts"] == ("socket.getaddrinfo 192.0.2.1",)


def test_an_evaluation_that_tries_the_network_and_goes_on(bundle: Bundle) -> None:
    bundle.cheat("""
import socket
for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    try:
        socket.socket(socket.AF_INET, kind).connect(("192.0.2.1", 80))
    except OSError:
        pass
""")
    finding = only_failure(bundle)
    assert finding.rule == "no network in evaluation"
    assert finding.evidence["attempts"] == ("socket.connect 192.0.2.1",)


def test_an_evaluation_that_reads_training_shards(bundle: Bundle) -> None:
    """They are not in its data folder, and where they are it must not read them."""
    shard = next(bundle.data.glob("*_train_*.bin"))
    for cheat in (
        f"open({str(shard)!r}, 'rb').read()",
        "[open(p) for p in Path(args.data).iterdir()]; open(Path(args.data) / 'a_train_0.bin')",
    ):
        bundle.cheat(cheat)
        finding = only_failure(bundle)
        assert finding.rule == "no training data in evaluation"
        assert finding.evidence["attempts"][0].endswith(".bin")
        assert len(finding.evidence["attempts"]) == 1


def test_an_evaluation_that_gives_up_without_training_shards(bundle: Bundle) -> None:
    bundle.cheat("raise SystemExit('data/tiny_train_000000.bin: cannot be read')")
    finding = only_failure(bundle)
    assert finding.rule == "no training data in evaluation"
    assert finding.evidence["attempts"] == ("data/tiny_train_000000.bin",)


def test_an_evaluation_that_takes_too_long(bundle: Bundle) -> None:
    bundle.cheat("""
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
time.sleep(60)
""")
    finding = only_failure(bundle, limits=Limits(evaluation_seconds=1.0))
    assert finding.rule == "evaluation time"
    assert 1.0 <= finding.evidence["seconds"] < 20.0
    assert finding.evidence["limit"] == 1.0


def test_an_evaluation_that_trains_on_what_it_will_score(bundle: Bundle) -> None:
    bundle.cheat("""
if len(tokens) < 0:
    model, optimizer = make(), None
    for chunk in tokens:
        model(chunk).backward()
        optimizer.step()
""")
    finding = only_failure(bundle)
    assert finding.rule == "no training on unscored tokens"
    assert "train_gpt.evaluate, line" in finding.evidence["found"][0]


def test_an_evaluation_with_a_cache_of_targets(bundle: Bundle) -> None:
    bundle.cheat("""
seen = {}
for context, target in zip(tokens[:-1], tokens[1:]):
    log_prob = seen.get((context, target), 0.0)
    seen[context, target] = log_prob + 1.0
""")
    finding = only_failure(bundle)
    assert finding.rule == "no n-gram cache keyed with the target"
    assert finding.evidence["tables"] == ["seen"]


def test_a_script_that_knows_its_score_by_heart(bundle: Bundle) -> None:
    bundle.cheat(f"return {printed(bundle.score)}")
    found = check(bundle)
    assert found["the script's score"].verdict == "pass"
    finding = only_failure(bundle)
    assert finding.rule == "the script on other tokens"
    assert finding.evidence["claimed"] == pytest.approx(bundle.score.bpb)
    assert finding.evidence["artifact"] > bundle.score.bpb + 1  # random tokens surprise the model


@pytest.mark.parametrize(
    ("cheat", "why"),
    [
        ("raise ValueError('no such device')", "exit code 1: ValueError: no such device"),
        ("import os; os._exit(0)", "exit code 0: it printed no JSON line with val_bpb"),
        ("return ANSWERS[hashlib.sha256(tokens).hexdigest()] | {'val_tokens': 64}", "scored 64 "),
        ("return {'val_bpb': float('nan')}", "train_gpt.py says inf"),
        (
            "answer = ANSWERS[hashlib.sha256(tokens).hexdigest()]\n"
            "return answer | {'val_bpb': answer['val_bpb'] - 0.01}",
            "difference -0.01000",
        ),
    ],
    ids=["fails", "prints nothing", "scores a part", "prints NaN", "prints too little"],
)
def test_a_script_without_the_right_score(bundle: Bundle, cheat: str, why: str) -> None:
    bundle.cheat(cheat)
    found = check(bundle)
    assert found["the script's score"].verdict == "fail"
    assert why in found["the script's score"].why


@pytest.mark.parametrize(
    ("seconds", "log", "verdict"),
    [
        (600.0, "", "pass"),
        (600.1, "", "fail"),
        (600.0, "step:9 train_time:599999ms\nstep:10 train_time:600001ms", "fail"),
        (590.0, '{"train_seconds": 590.0}', "pass"),
        (590.0, "train_seconds: 601", "fail"),
        (0.0, "", "fail"),
        (None, "", UNCHECKED),
    ],
)
def test_training_time(bundle: Bundle, seconds: float | None, log: str, verdict: str) -> None:
    bundle.claim(train_seconds=seconds)
    (bundle.folder / "train.log").write_text(log + "\n")
    found = {finding.rule: finding for finding in audit(bundle.folder)}
    assert found["training time"].verdict == verdict
    assert found["training time"].evidence.get("claimed") == seconds


# --- the command --------------------------------------------------------------------------------


def test_exit_codes(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    def exit_code(*args: str) -> object:
        with pytest.raises(SystemExit) as end:
            main(["audit", *args])
        return end.value.code

    main(["audit", str(bundle.folder)])  # nothing failed: it returns
    out = capsys.readouterr().out
    assert "byte limit" in out
    assert f"{len(RULES)} rules: 0 failed, 10 cannot be checked here" in out
    bundle.claim(bytes_code=1)
    assert exit_code(str(bundle.folder), "--json") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["passed"] is False
    assert [r["rule"] for r in report["rules"] if r["verdict"] == "fail"] == ["claimed bytes"]
    for args, message in (
        ((str(bundle.folder / "no"),), "no such folder"),
        ((str(bundle.folder), "--data", "nowhere"), "--data nowhere: no such folder"),
        ((str(bundle.folder), "--data", str(bundle.folder)), "has 0 *_val_*.bin and 0 *.model"),
    ):
        assert exit_code(*args) == 2
        line = capsys.readouterr().err
        assert message in line
        assert line.count("\n") == 1


def test_data_of_another_tokenizer_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = make_bundle(tmp_path / "other", vocab_size=330)
    with pytest.raises(UserError, match="another tokenizer than the artifact"):
        audit(bundle.folder, data=other.data)


def test_a_bare_download_is_enough(bundle: Bundle) -> None:
    """No manifest, no training shards: the split cannot be compared, all the rest can."""
    manifest = read_manifest(bundle.data)
    for shard in manifest.splits["train"]:
        (bundle.data / shard.file).unlink()
    (bundle.data / "manifest.json").unlink()
    found = check(bundle)
    open_rules = {rule for rule, finding in found.items() if finding.verdict != "pass"}
    assert open_rules == {"record", "validation split"}
    assert found["validation split"].evidence["sha256"]


def test_the_hook_alone_keeps_the_network_away(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scangolf.submission.rules.sandbox.has_namespaces", lambda: False)
    bundle.cheat(
        "import urllib.request; urllib.request.urlopen('http://localhost.example.com', timeout=5)"
    )
    finding = only_failure(bundle)
    assert finding.rule == "no network in evaluation"
    assert finding.evidence == {
        "attempts": ("socket.getaddrinfo localhost.example.com",),
        "isolation": "Python hook",
    }


def test_numbers_beyond_a_float_are_findings(bundle: Bundle) -> None:
    bundle.cheat("return {'val_bpb': 10**400, 'val_bytes': 10**400}")
    bundle.claim(val_bpb=10**400, val_bytes=10**400, train_seconds=10**400)
    found = check(bundle)
    assert "train_gpt.py says inf" in found["the script's score"].why
    assert "val_bytes is 1000" in found["files"].why
    assert "wanted a finite number" in found["files"].why
    (bundle.folder / "submission.json").write_text("[" * 100_000)
    assert "submission.json says no val_bpb" in audit(bundle.folder)[0].why
