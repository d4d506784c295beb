"""Mistakes are told in one line, and lose nothing."""

import tomllib
from pathlib import Path

import pytest
from cli_cases import TRAIN, refusal

from scangolf.cli import main


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["tarin"], "did you mean train? Choose from data, train, presets, eval, quantize"),
        (["train", "tinny"], "did you mean tiny? Choose from tiny, baseline, seed, hybrid"),
        (["train", "tinny"], "hybrid-lti, parallel, golf\n"),
        (
            ["presets", "hybird"],
            "invalid choice 'hybird' for argument 'name'; did you mean hybrid?",
        ),
        (["ablate", "a", "--against", "b"], "scangolf ablate has no --against, b; see"),
        (["train", "tiny", "--steps", "five"], "could be instantiated from ['five']; see --help\n"),
        (["train", "tiny", "--sedonds", "3"], "did you mean --seconds?"),
        (["train", "tiny", "--batch.token", "3"], "did you mean --batch.tokens?"),
        (["train", "tiny", "--model.d-modle", "3"], "did you mean --model.d-model?"),
        (["train", "tiny", "--seconds", "long"], "--seconds"),
        (["train", "tiny", "--seconds", "0"], "--seconds 0.0: needs a budget above 0 seconds"),
        (["train", "tiny", "--model.pattern", "mamba"], "cannot read 'mamba'"),
        (["train", "tiny", "--data", "nowhere"], "nowhere"),
        (["eval", "nowhere"], "nowhere: no such file or folder"),
        (["eval", "."], ".: not a run folder"),
        (["eval", ".", "--stride", "4"], "--stride 4: is of --mode sliding, not plain"),
        (["generate", "nowhere"], "nowhere: no such file or folder"),
        (["report", "nowhere"], "nowhere"),
        (["ablate", "nowhere"], "nowhere: no such plan"),
        (["compare", "nowhere"], "nowhere: no run folder"),
        (["compare"], "name at least one run folder"),
        (["submit", "nowhere", "--out", "entry"], "nowhere"),
        (["audit", "nowhere"], "nowhere: no such folder"),
        (["report"], "report: name at least one run folder"),
        (["data", "text", "nowhere.txt"], "nowhere.txt"),
        (["data", "text"], "name at least one file"),
        (["data", "text", "a", "--val-share", "1.5"], "--val-share 1.5: needs a share above 0"),
        (["data", "inspect", "nowhere.bin"], "nowhere.bin: no such file or folder"),
        (["data", "inspect", "nowhere.txt"], "nowhere.txt: no such file or folder"),
        (["data", "local", "--out", "."], "--out .: is the folder you are in; name a new one"),
        (
            ["data", "inspect", ".", "--tokenizer", "t"],
            "--tokenizer t: . has its own; leave it out",
        ),
        (["presets", "tinny"], "tiny"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    args: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *args)
    assert list(tmp_path.iterdir()) == []


def test_text_that_all_goes_to_validation(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    text = tmp_path / "two.txt"
    text.write_text("One line with words.\nAnother line with words.\n")
    told = refusal(capsys, "data", "text", str(text), "--val-share", "0.9999")
    assert "the train split would be empty, of 2 documents; use more text, another --val" in told


def test_a_run_needs_a_folder(
    capsys: pytest.CaptureFixture[str], dataset: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("mine")
    told = refusal(capsys, *TRAIN, "--data", str(dataset), "--out", str(tmp_path / "notes"))
    assert f"{tmp_path}/notes: cannot be made: File exists; choose another --out" in told
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert capsys.readouterr().out == pyproject["project"]["version"] + "\n"


def test_a_device_that_is_not_there_leaves_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "elsewhere"
    args = [*TRAIN, "--data", str(dataset), "--out", str(run), "--device", "cuda:99"]
    assert "--device cuda:99" in refusal(capsys, *args)
    assert not run.exists()


def test_data_that_does_not_fit_the_model(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(dataset)
    line = refusal(capsys, "train", "tiny", "--data", data, "--out", str(tmp_path / "no"))
    assert "its tokenizer has 300 tokens" in line
    assert "--model.vocab-size 300" in line
    line = refusal(
        capsys, *TRAIN, "--data", data, "--out", str(tmp_path / "no"),
        "--batch.seq-len", "4096", "--batch.tokens", "4096", "--batch.micro-tokens", "4096",
    )  # fmt: skip
    assert "the validation split has" in line
    assert not (tmp_path / "no").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(dataset), tmp_path / "full"
    main([*TRAIN, "--data", data, "--out", str(run)])
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    checkpoint = (run / "checkpoint" / "latest.json").read_text()
    (run / "train.log").unlink()
    (run / "train.log").symlink_to("/dev/full")
    line = refusal(capsys, "train", "tiny", "--out", str(run), "--resume", "--steps", "14")
    assert "No space left on device" in line
    assert (run / "checkpoint" / "latest.json").read_text() == checkpoint


def test_a_damaged_artifact_is_refused(
    dataset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(dataset), tmp_path / "damaged"
    main([*TRAIN, "--data", data, "--out", str(run)])
    content = bytearray((run / "artifact.sg").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "artifact.sg").write_bytes(content)
    assert "damaged" in refusal(capsys, "eval", str(run))
    assert "--seq-len 0" in refusal(capsys, "eval", str(run), "--seq-len", "0")
    (run / "artifact.sg").write_bytes(content[:-7])
    assert "damaged" in refusal(capsys, "generate", str(run))
