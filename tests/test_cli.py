"""The command line: one-line refusals, and every verb once from text to sample."""

import json
import math
import re
import shutil
import tomllib
from pathlib import Path
from typing import Any

import pytest

from scangolf.artifact import save
from scangolf.artifact.calibrate import calibrate
from scangolf.cli import main
from scangolf.data.shards import open_dataset
from scangolf.recipes import PRESETS, tiny
from scangolf.submission.forms import code_bytes
from scangolf.train import pace

STORY = [
    f"The {a} {b} went to the {c} and met a {b} from the {c}."
    for a in ("old", "young", "small", "quiet", "clever")
    for b in ("fox", "owl", "bear", "cat", "hare", "wolf")
    for c in ("river", "hill", "town", "wood", "lake", "field", "cave")
]


def refusal(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """The one line that a command line is refused with."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main(list(args))
    assert end.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("scangolf: ")
    assert line.count("\n") == 1
    return line


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
    capsys: pytest.CaptureFixture[str], workplace: Path, tmp_path: Path
) -> None:
    (tmp_path / "notes").write_text("mine")
    told = refusal(
        capsys, *TRAIN, "--data", str(workplace / "data"), "--out", str(tmp_path / "notes")
    )
    assert f"{tmp_path}/notes: cannot be made: File exists; choose another --out" in told
    assert (tmp_path / "notes").read_text() == "mine"


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--version"])
    pyproject = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())
    assert capsys.readouterr().out == pyproject["project"]["version"] + "\n"


def test_presets_show_what_they_are_and_what_fits(capsys: pytest.CaptureFixture[str]) -> None:
    main(["presets", "--json"])
    rows = json.loads(capsys.readouterr().out)
    assert rows.keys() == PRESETS.keys()
    assert rows["baseline"]["parameters"] == 17_059_912
    assert rows["seed"]["parameters"] == 30_299_152
    assert rows["tiny"]["fits"] is True
    assert rows["seed"]["fits"] is None
    for name, bits, fits in (("hybrid", 4.66, True), ("parallel", 3.69, True)):
        room = 16_000_000 - rows[name]["code_bytes_at_most"]
        assert rows[name]["bits_per_weight"] == 8 * room / rows[name]["parameters"]
        assert rows[name]["bits_per_weight"] == pytest.approx(bits, abs=0.005)
        assert rows[name]["fits"] is fits

    main(["presets"])
    lines = capsys.readouterr().out.splitlines()
    (hybrid,) = (line.split() for line in lines if line.strip().startswith("hybrid "))
    row = "hybrid 9: 3 ssd : 1 attention 27,299,696 mixed-rans 4.66 bits a weight yes"
    assert hybrid == row.split()

    main(["presets", "hybrid", "--bits", "4.0", "--json"])
    larger = json.loads(capsys.readouterr().out)
    main(["presets", "hybrid", "--bits", "4.0"])
    shown = capsys.readouterr().out
    assert larger.keys() == {"--model.mlp-width 2496", "--model.n-layers 10"}
    for options, row in larger.items():
        assert f"{options} {row['parameters']:,} {row['bits_per_weight']:.2f}" in " ".join(
            shown.split()
        )
    assert "hybrid cannot be larger" in refusal(capsys, "presets", "hybrid", "--bits", "6")
    assert "of which preset?" in refusal(capsys, "presets", "--bits", "4")
    assert "needs a number above 0" in refusal(capsys, "presets", "hybrid", "--bits", "0")

    main(["presets", "tiny", "--json"])
    assert json.loads(capsys.readouterr().out)["preset"] == "tiny"
    main(["presets", "tiny"])
    shown = capsys.readouterr().out
    assert re.search(r"^ +seed +1337 *$", shown, re.MULTILINE)  # as one would type it
    assert re.search(r"^ +model.vocab_size +1,024 *$", shown, re.MULTILINE)


def test_presets_that_fit_in_coarse_steps_only_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("scangolf.artifact.room.MIXED_BITS", 4.0)
    main(["presets"])
    (parallel,) = (line for line in capsys.readouterr().out.splitlines() if "parallel" in line)
    assert parallel.split()[-8:] == ["3.69", "bits", "a", "weight", "in", "steps", "that", "cost"]


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "story.txt").write_text("\n".join(STORY))
    main(
        [
            *("data", "text", str(folder / "story.txt"), "--out", str(folder / "data")),
            *("--val-share", "0.2", "--vocab-size", "300"),
        ]
    )
    return folder


TRAIN = [
    "train", "tiny", "--device", "cpu", "--steps", "12", "--evals", "1",
    "--model.vocab-size", "300", "--model.d-model", "32", "--model.mlp-width", "64",
    "--batch.tokens", "512", "--batch.seq-len", "64", "--batch.micro-tokens", "512",
]  # fmt: skip


def test_from_text_to_a_scored_artifact(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(workplace / "data"), workplace / "run"
    main([*TRAIN, "--data", data, "--out", str(run)])
    assert "artifact_val_bpb" in capsys.readouterr().out
    names = {path.name for path in run.iterdir()}
    assert names == {
        "config.json", "metrics.jsonl", "checkpoint", "artifact.sg", "summary.json",
        "analysis.json", "report.html", "train.log",
    }  # fmt: skip

    summary = json.loads((run / "summary.json").read_text())
    assert summary["steps"] == 12
    assert summary["tokens"] == 12 * 512
    assert summary["epochs"] == 12 * 512 / sum(map(len, open_dataset(Path(data)).train))
    assert summary["artifact_bytes"] == (run / "artifact.sg").stat().st_size
    assert summary["total_bytes"] == summary["artifact_bytes"] + summary["code_bytes"]
    assert summary["fits"] is True
    assert summary["artifact_val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.01)
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records if "val_bpb" in record] == [6, 12]
    assert records[-1]["val_bpb"] == summary["val_bpb"]

    analysis = json.loads((run / "analysis.json").read_text())
    assert analysis["steps"] == 12
    assert [scan["kind"] for scan in analysis["scans"]] == ["s6", "s6", "s6"]
    nats, n_bytes = (sum(analysis["positions"][name]) for name in ("nats", "bytes"))
    bits = nats / math.log(2) / n_bytes
    assert bits == pytest.approx(summary["artifact_val_bpb"], rel=1e-6)
    assert "What the scans remember" in (run / "report.html").read_text()

    main(["eval", str(run), "--device", "cpu", "--json"])
    score = json.loads(capsys.readouterr().out)
    assert score["val_bpb"] == pytest.approx(summary["artifact_val_bpb"], rel=1e-6)
    assert score["val_tokens"] == summary["val_tokens"]
    assert score["val_bytes"] == summary["val_bytes"]
    main(["eval", str(run / "artifact.sg"), "--data", data, "--seq-len", "64", "--json"])
    assert json.loads(capsys.readouterr().out)["val_bpb"] == pytest.approx(score["val_bpb"])

    main(["quantize", str(run), "--bytes", "19000", "--device", "cpu", "--json"])
    smaller = json.loads(capsys.readouterr().out)
    assert smaller["artifact"] == str(run / "quantized.sg")
    # Codes of so small a file are coarse.
    assert 0.98 * 19_000 < smaller["artifact_bytes"] <= 19_000 < summary["artifact_bytes"]
    assert smaller["val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.06)
    assert smaller["val_tokens"] == summary["val_tokens"]
    main(["eval", str(run / "quantized.sg"), "--data", data, "--seq-len", "64", "--json"])
    assert json.loads(capsys.readouterr().out)["val_bpb"] == pytest.approx(smaller["val_bpb"])
    assert "do not fit into 99 bytes" in refusal(capsys, "quantize", str(run), "--bytes", "99")

    for out in ("config.json", "artifact.sg"):
        before = (run / out).read_bytes()
        quantize = ("quantize", str(run), "--bytes", "19000", "--out", str(run / out))
        assert "is the run's own artifact, or none at all" in refusal(capsys, *quantize)
        assert (run / out).read_bytes() == before

    for options, message in (
        (["--temperature", "nan"], "--temperature nan: needs"),
        (["--seed", str(2**63)], "needs a whole number of 64 bits"),
        (["--prompt", "bad \udcff"], r"--prompt 'bad \udcff': is not UTF-8"),
    ):
        assert message in refusal(capsys, "generate", str(run), *options)
    coldest = ["generate", str(run), "--tokens", "8", "--temperature"]
    main([*coldest, "0"])
    likeliest = capsys.readouterr().out
    main([*coldest, "1e-45"])
    assert capsys.readouterr().out == likeliest

    main(["generate", str(run), "--prompt", "The old", "--tokens", "8", "--seed", "3"])
    first = capsys.readouterr().out
    main(["generate", str(run), "--prompt", "The old", "--tokens", "8", "--seed", "3"])
    assert capsys.readouterr().out == first
    assert first.startswith("The old")


def test_an_artifact_in_calibrated_steps(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(workplace / "data"), workplace / "mixed"
    limit = code_bytes(tiny()) + 19_000
    options = ["--artifact.scheme", "mixed-rans", "--artifact.limit-bytes", str(limit)]
    main([*TRAIN, "--data", data, "--out", str(run), *options])
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fits"] is True
    room = limit - summary["code_bytes"]  # the script of this very configuration
    assert room == pytest.approx(19_000, abs=1000)
    assert 0.98 * room < summary["artifact_bytes"] <= room
    assert summary["artifact_val_bpb"] == pytest.approx(summary["val_bpb"], abs=0.05)


def test_the_curve_of_bits_per_byte_against_bytes(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of its artifacts is that of the size alone, from one calibration for all."""
    run, picture = workplace / "curve", workplace / "curve.png"
    main([*TRAIN, "--data", str(workplace / "data"), "--out", str(run)])
    summary = json.loads((run / "summary.json").read_text())
    quantize = ["quantize", str(run), "--device", "cpu"]
    assert "needs several sizes" in refusal(capsys, *quantize, "--png", str(picture))
    assert "do not fit into 99 bytes" in refusal(capsys, *quantize, "--bytes", "19000", "99")
    assert not list(run.glob("quantized*"))

    calibrations = []

    def calibrate_counted(*args: Any) -> Any:
        calibrations.append(args)
        return calibrate(*args)

    monkeypatch.setattr(save, "calibrate", calibrate_counted)
    main([*quantize, "--bytes", "24000", "18000", "21000", "--json", "--png", str(picture)])
    curve = json.loads(capsys.readouterr().out)
    assert len(calibrations) == 1
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert curve["val_bpb"] == pytest.approx(summary["val_bpb"], rel=1e-6)
    assert curve["parameters"] == summary["parameters"]
    for point, size in zip(curve["points"], (18_000, 21_000, 24_000), strict=True):
        file = run / f"quantized-{size}.sg"
        assert point["artifact"] == str(file)
        assert point["artifact_bytes"] == file.stat().st_size <= size
        bits = 8 * file.stat().st_size / summary["parameters"]
        assert point["bits_per_weight"] == pytest.approx(bits)
        assert point["lost_bpb"] == pytest.approx(point["val_bpb"] - curve["val_bpb"])
        main(["eval", str(file), "--data", str(workplace / "data"), "--seq-len", "64", "--json"])
        score = json.loads(capsys.readouterr().out)
        assert score["val_bpb"] == pytest.approx(point["val_bpb"])
    small, middle, large = curve["points"]
    assert small["artifact_bytes"] < middle["artifact_bytes"] < large["artifact_bytes"]
    assert small["predicted_loss"] > 2 * large["predicted_loss"]
    assert small["lost_bpb"] > large["lost_bpb"]

    main([*quantize, "--bytes", "21000"])
    capsys.readouterr()
    assert (run / "quantized.sg").read_bytes() == (run / "quantized-21000.sg").read_bytes()
    main([*quantize, "--bytes", "18000", "21000"])
    lines = capsys.readouterr().out.splitlines()
    (row,) = (line.split() for line in lines if line.strip().endswith("quantized-18000.sg"))
    assert row[0] == f"{small['artifact_bytes']:,}"
    assert row[2:4] == [f"{small['val_bpb']:.4f}", f"{small['lost_bpb']:+.4f}"]


def test_a_run_that_does_not_fit_says_so_while_it_trains(
    workplace: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "FIRST_SIZE", 0.01)
    run = workplace / "over"
    args = [*TRAIN, "--data", str(workplace / "data"), "--out", str(run)]
    main([*args, "--artifact.limit-bytes", "90000"])
    said = capsys.readouterr().out
    sizes = re.findall(r"by now about ([\d,]+) of 90,000 bytes: TOO LARGE", said)
    summary = json.loads((run / "summary.json").read_text())
    assert summary["fits"] is False
    assert sizes
    assert int(sizes[-1].replace(",", "")) == pytest.approx(summary["total_bytes"], rel=0.05)
    assert f"by now about {sizes[0]}" in (run / "train.log").read_text()


def test_a_run_is_never_overwritten_and_resumes_only_as_itself(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(workplace / "data"), str(workplace / "resumed")
    args = [*TRAIN, "--data", data, "--out", run]
    main(args)
    before = (workplace / "resumed" / "summary.json").read_text()
    assert "holds a run already" in refusal(capsys, *args)
    assert "cannot change model.d_model from 32 to 48" in refusal(
        capsys, "train", "tiny", "--out", run, "--resume", "--model.d-model", "48"
    )
    assert "is a run of preset tiny, not ssm" in refusal(
        capsys, "train", "ssm", "--out", run, "--resume"
    )
    config = (workplace / "resumed" / "config.json").read_text()
    assert "has done 12 already" in refusal(
        capsys, "train", "tiny", "--out", run, "--resume", "--steps", "5"
    )
    assert (workplace / "resumed" / "config.json").read_text() == config
    assert (workplace / "resumed" / "summary.json").read_text() == before
    capsys.readouterr()
    wide = ["--model.d-model", str(PRESETS["tiny"]().model.d_model)]  # as if it were not typed
    main(["train", "tiny", "--out", run, "--resume", "--steps", "15", *wide])
    told = capsys.readouterr().out.splitlines()[0]
    assert told.startswith("settings of this run: steps = 15, ")
    assert ", model.d_model = 32, " in told
    assert json.loads((workplace / "resumed" / "summary.json").read_text())["steps"] == 15
    assert json.loads((workplace / "resumed" / "analysis.json").read_text())["steps"] == 15
    page, picture = workplace / "page.html", workplace / "curve.png"
    twin = shutil.copytree(run, workplace / "twin")
    main(["report", run, str(twin), run, "--out", str(page), "--png", str(picture)])
    assert "<h1>2 runs</h1>" in page.read_text()
    assert picture.stat().st_size > 0


def test_a_run_without_a_checkpoint_resumes_from_its_start(workplace: Path) -> None:
    """As one killed before its first checkpoint is."""
    data, run = str(workplace / "data"), workplace / "early"
    main([*TRAIN, "--data", data, "--out", str(run)])
    before = json.loads((run / "summary.json").read_text())
    shutil.rmtree(run / "checkpoint")
    main(["train", "tiny", "--out", str(run), "--resume"])
    after = json.loads((run / "summary.json").read_text())
    assert (after["steps"], after["val_bpb"]) == (before["steps"], before["val_bpb"])
    assert len((run / "metrics.jsonl").read_text().splitlines()) == 12 + 2


def test_a_device_that_is_not_there_leaves_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = workplace / "elsewhere"
    args = [*TRAIN, "--data", str(workplace / "data"), "--out", str(run), "--device", "cuda:99"]
    assert "--device cuda:99" in refusal(capsys, *args)
    assert not run.exists()


def test_data_that_does_not_fit_the_model(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = str(workplace / "data")
    line = refusal(capsys, "train", "tiny", "--data", data, "--out", str(workplace / "no"))
    assert "its tokenizer has 300 tokens" in line
    assert "--model.vocab-size 300" in line
    line = refusal(
        capsys, *TRAIN, "--data", data, "--out", str(workplace / "no"),
        "--batch.seq-len", "4096", "--batch.tokens", "4096", "--batch.micro-tokens", "4096",
    )  # fmt: skip
    assert "the validation split has" in line
    assert not (workplace / "no").exists()


def test_a_full_disk_is_one_line_and_loses_nothing(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = str(workplace / "data"), workplace / "full"
    main([*TRAIN, "--data", data, "--out", str(run)])
    (run / "metrics.jsonl").rename(run / "kept.jsonl")
    checkpoint = (run / "checkpoint" / "latest.json").read_text()
    (run / "train.log").unlink()
    (run / "train.log").symlink_to("/dev/full")
    line = refusal(capsys, "train", "tiny", "--out", str(run), "--resume", "--steps", "14")
    assert "No space left on device" in line
    assert (run / "checkpoint" / "latest.json").read_text() == checkpoint


def test_a_damaged_artifact_is_refused(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, run = str(workplace / "data"), workplace / "damaged"
    main([*TRAIN, "--data", data, "--out", str(run)])
    content = bytearray((run / "artifact.sg").read_bytes())
    content[len(content) // 2] ^= 1
    (run / "artifact.sg").write_bytes(content)
    assert "damaged" in refusal(capsys, "eval", str(run))
    assert "--seq-len 0" in refusal(capsys, "eval", str(run), "--seq-len", "0")
    (run / "artifact.sg").write_bytes(content[:-7])
    assert "damaged" in refusal(capsys, "generate", str(run))
