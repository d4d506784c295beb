"""The audit of a good submission, and its command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from audit_cases import RULES, UNCHECKED, check, only_failure
from bundles import EVALUATES, SEQ_LEN, Bundle, make_bundle

from scangolf.cli import main
from scangolf.data.shards import (
    read_manifest,
)
from scangolf.errors import UserError
from scangolf.submission.audit import audit
from scangolf.submission.rules.sandbox import has_namespaces

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
    assert score["tolerance"] == 2e-4
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


# --- the command --------------------------------------------------------------------------------


def test_exit_codes(bundle: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    def exit_code(*args: str) -> object:
        with pytest.raises(SystemExit) as end:
            main(["audit", *args])
        return end.value.code

    main(["audit", str(bundle.folder)])  # nothing failed: it returns
    out = capsys.readouterr().out
    assert "byte limit" in out
    assert f"{len(RULES)} rules: 0 failed, 11 cannot be checked here" in out
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
