"""docs/tutorial.md from its text to its audit, as it stands; docs/bytes.md on the run it leaves."""

import json
import re
from pathlib import Path

import pytest
from pages import DOCS, blocks, commands

from scangolf.cli import main

VERBS = ("data", "train", "report", "eval", "generate", "quantize", "submit", "audit")


def give(page: str, capsys: pytest.CaptureFixture[str]) -> list[tuple[list[str], str]]:
    """The page's commands, each with what it printed."""
    printed = []
    for program, *words in commands("".join(blocks(page, "sh"))):
        assert program == "scangolf"
        main(words)
        printed.append((words, capsys.readouterr().out))
    return printed


def figure(shown: str, name: str) -> float:
    found = re.search(rf"^ +{name} +([\d.,]+)", shown, re.MULTILINE)
    assert found is not None, name
    return float(found[1].replace(",", ""))


def test_from_text_to_a_submission(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """On the paragraphs of these pages."""
    monkeypatch.chdir(tmp_path)
    pages = (page.read_text() for page in sorted(DOCS.glob("*.md")))
    paragraphs = [" ".join(text.split()) for page in pages for text in page.split("\n\n")]
    Path("notes.txt").write_text("\n".join(paragraphs))
    the_tutorial_does_what_it_says(capsys)
    the_bytes_of_its_submission(capsys)


def the_tutorial_does_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    printed = give("tutorial.md", capsys)
    assert list(dict.fromkeys(words[0] for words, _ in printed)) == list(VERBS)
    (inspected,) = (shown for words, shown in printed if words[:2] == ["data", "inspect"])
    (trained,) = (shown for words, shown in printed if words[0] == "train")
    scores = [shown for words, shown in printed if words[0] == "eval"]
    (rounded,) = (shown for words, shown in printed if words[0] == "quantize")
    (audited,) = (shown for words, shown in printed if words[0] == "audit")

    assert figure(trained, "val_bpb") < 3.2  # an untrained one has about 4.2
    assert figure(scores[0], "val_bpb") == figure(trained, "artifact_val_bpb")
    for shown in scores:
        assert figure(shown, "val_tokens") == figure(inspected, "targets")
        assert figure(shown, "val_bytes") == figure(inspected, "bytes")
    plain, *others = (figure(shown, "val_bpb") for shown in scores[:3])
    for other in others:  # the same targets with more before them
        assert other != plain
        assert other == pytest.approx(plain, rel=0.02)
    size = Path("runs/notes/60k.sg").stat().st_size
    assert 59_000 < size <= 60_000
    assert size == figure(rounded, "artifact_bytes") == figure(scores[3], "artifact_bytes")
    assert figure(scores[3], "val_bpb") == figure(rounded, "val_bpb") > plain
    assert "19 rules: 0 failed, 1 cannot be checked here" in audited
    assert Path("notes.png").stat().st_size > 10_000


def the_bytes_of_its_submission(capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/bytes.md has them."""
    give("bytes.md", capsys)
    exec(blocks("bytes.md", "python")[-1], {})
    found = re.fullmatch(r"code (.*) \+ artifact (.*) = (.*) bytes\n", capsys.readouterr().out)
    assert found is not None
    code, artifact, both = (int(number.replace(",", "")) for number in found.groups())
    assert both == code + artifact
    claims = json.loads(Path("bytes-of-notes/submission.json").read_text())
    assert (claims["bytes_code"], claims["bytes_artifact"]) == (code, artifact)
