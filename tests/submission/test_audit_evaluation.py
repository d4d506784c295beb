"""Evaluations that cheat: each fails its own rule and no other."""

from __future__ import annotations

import pytest
from audit_cases import UNCHECKED, check, only_failure
from bundles import Bundle, printed

from scangolf.submission.audit import audit
from scangolf.submission.rules.limits import Limits


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
