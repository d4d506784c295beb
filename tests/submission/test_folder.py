"""The folder of a submission: what is in it, and what is refused in one line."""

import hashlib
import json
import math
import shutil
from pathlib import Path

import pytest

from scangolf.artifact.codec import save_artifact
from scangolf.artifact.load import load
from scangolf.cli import main
from scangolf.config import RunConfig
from scangolf.errors import UserError
from scangolf.submission.folder import write_submission
from scangolf.submission.forms import train_gpt


@pytest.mark.parametrize("packed", [False, True], ids=["readable", "packed"])
def test_what_is_in_the_folder(
    packed: bool, finished: Path, config: RunConfig, tmp_path: Path
) -> None:
    folder = tmp_path / "entry"
    args = ["submit", str(finished), "--out", str(folder), "--author", "A. Person"]
    main([*args, "--packed"] if packed else args)
    names = {"README.md", "submission.json", "train.log", "artifact.sg", "train_gpt.py"}
    assert {path.name for path in folder.iterdir()} == names
    for name in ("train.log", "artifact.sg"):
        assert (folder / name).read_bytes() == (finished / name).read_bytes()
    assert (folder / "train_gpt.py").read_bytes() == train_gpt(config, packed=packed)

    values = json.loads((folder / "submission.json").read_text())
    summary = json.loads((finished / "summary.json").read_text())
    assert (values["name"], values["author"]) == ("entry", "A. Person")
    assert values["bytes_code"] == (folder / "train_gpt.py").stat().st_size
    assert values["bytes_artifact"] == (folder / "artifact.sg").stat().st_size
    assert values["bytes_total"] == values["bytes_code"] + values["bytes_artifact"]
    assert (summary["code_bytes"] == values["bytes_code"]) == packed
    assert values["val_bpb"] == summary["artifact_val_bpb"]
    bits = values["val_loss"] / math.log(2) * values["val_tokens"]
    assert bits / values["val_bytes"] == pytest.approx(values["val_bpb"])
    assert values["train_seconds"] == summary["train_seconds"]

    page = (folder / "README.md").read_text()
    for figure in (f"**{values['val_bpb']:.4f}**", f"{values['bytes_total']:,}", "1 x `ssd`"):
        assert figure in page
    assert "{" not in page


def test_a_run_that_is_not_finished(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    (run / "summary.json").unlink()
    refused(run, tmp_path, "its run is not finished")


def test_a_folder_that_holds_something(finished: Path, tmp_path: Path) -> None:
    (tmp_path / "entry").mkdir()
    (tmp_path / "entry" / "notes").write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_submission(finished, tmp_path / "entry", packed=True, author="")
    assert (tmp_path / "entry" / "notes").read_text() == "mine"


def test_a_run_over_the_limit_is_told_by_how_much(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    config = json.loads((run / "config.json").read_text())
    summary = json.loads((run / "summary.json").read_text())
    # The limit is a part of the script, so that its length varies a little with it.
    twice = summary["artifact_bytes"] + 2 * summary["code_bytes"]
    for limit, packed, advice in (
        (twice, False, "pass --packed"),
        (summary["artifact_bytes"], True, "train a smaller model"),
    ):
        config["artifact"]["limit_bytes"] = limit
        (run / "config.json").write_text(json.dumps(config))
        line = refused(run, tmp_path, f"of {limit:,} bytes", packed)
        assert "bytes too large; " in line
        assert line.endswith(advice)


def test_an_artifact_that_is_not_the_runs(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    content = bytearray((run / "artifact.sg").read_bytes())
    content[-1] ^= 1
    (run / "artifact.sg").write_bytes(content)
    refused(run, tmp_path, "is damaged")
    (run / "artifact.sg").unlink()
    refused(run, tmp_path, "artifact.sg: No such file")
    shutil.copyfile(finished / "artifact.sg", run / "artifact.sg")
    summary = json.loads((run / "summary.json").read_text())
    del summary["artifact_sha256"]  # as older versions wrote it
    (run / "summary.json").write_text(json.dumps(summary | {"artifact_bytes": 5}))
    refused(run, tmp_path, "is not the artifact that this run wrote and scored")


def test_an_artifact_of_equal_size_with_another_score(finished: Path, tmp_path: Path) -> None:
    """As another seed's may be: whole, and made of the same shapes."""
    run = shutil.copytree(finished, tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    digest = hashlib.sha256((run / "artifact.sg").read_bytes()).hexdigest()
    assert summary["artifact_sha256"] == digest
    model, tokenizer = load(run / "artifact.sg")
    other = {name: -p.detach() for name, p in model.named_parameters()}
    groups = model.parameter_groups()
    size = save_artifact(run / "artifact.sg", other, groups, model.config, tokenizer, "int8-brotli")
    (run / "summary.json").write_text(json.dumps(summary | {"artifact_bytes": size}))
    refused(run, tmp_path, "is not the artifact that this run wrote and scored")


def refused(run: Path, folder: Path, message: str, packed: bool = True) -> str:
    before = sorted(folder.iterdir())
    with pytest.raises(UserError, match=message) as error:
        write_submission(run, folder / "entry", packed=packed, author="")
    assert "\n" not in str(error.value)
    assert sorted(folder.iterdir()) == before
    return str(error.value)
