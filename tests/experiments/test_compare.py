"""Comparisons of runs that were written down, not trained: every number is known beforehand."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from scangolf.cli import main
from scangolf.config import RunConfig, to_dict
from scangolf.errors import UserError
from scangolf.experiments.compare import Comparison, compare
from scangolf.experiments.groups import read_groups
from scangolf.recipes import PRESETS
from scangolf.settings import with_settings

TOKENS, BYTES = 1000, 2500
NATS = math.log(2) * BYTES / TOKENS
"""A bit a byte in nats a token."""
SUMMARY: dict[str, Any] = {
    "preset": "tiny", "device": "a CPU", "layers": ["s6"], "parameters": 10, "tokens": 100,
    "tokens_per_second": 1.0, "val_loss": 3.0, "val_bpb": 2.0, "artifact_bytes": 700,
    "code_bytes": 300, "total_bytes": 1000, "limit_bytes": 16_000_000, "fits": True,
    "tokenizer_sha256": "f567", "val_tokens": TOKENS, "val_bytes": BYTES,
    "sample": {"prompt": "", "text": ""},
}  # fmt: skip


def write_run(
    folder: Path,
    seed: int,
    bpb: float,
    *,
    settings: dict[str, Any] | None = None,
    steps: int = 10,
    step_seconds: float = 1.0,
    evaluated: tuple[int, ...] = (),
    **summary: Any,
) -> Path:
    """A finished run whose curves fall by 0.1 a step and end at `bpb`, if no step is smoothed."""
    config: RunConfig = with_settings(PRESETS["tiny"](), {"seed": seed} | (settings or {}))
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(to_dict(config)))
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        place = {
            "step": step,
            "tokens": step,
            "seconds": step * step_seconds,
            "share": step / steps,
        }
        bits = bpb + 0.1 * (steps - step)
        training = {"loss": 2 * bits, "train_bpb": bits, "lr": 1.0, "tokens_per_second": 1.0}
        lines.append(place | training)
        if step in evaluated or step == steps:
            lines.append(place | {"val_loss": 2 * bits, "val_bpb": bits})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {"seed": seed, "steps": steps, "train_seconds": steps * step_seconds}
    whole = SUMMARY | values | {"artifact_val_bpb": bpb} | summary
    (folder / "summary.json").write_text(json.dumps(whole))
    return folder


WIDE: dict[str, Any] = {"model.s6.expand": 3, "optim.matrix_lr": 0.01}


@pytest.fixture
def plan(tmp_path: Path) -> Path:
    """Three configurations with three seeds; `wide` leads `base` by 0.2, 0.1 and 0.3."""
    for seed, base in ((1, 2.0), (2, 2.1), (3, 2.05)):
        write_run(tmp_path / "base" / f"seed-{seed}", seed, base)
        lead = {1: 0.2, 2: 0.1, 3: 0.3}[seed]
        write_run(tmp_path / "wide" / f"seed-{seed}", seed, base - lead, settings=WIDE)
        write_run(
            tmp_path / f"slow-seed{seed}", seed, base + 0.01 * seed,
            settings={"model.pattern": "s6"}, fits=False, total_bytes=17_000_000,
        )  # fmt: skip
    return tmp_path


def p_of_two_degrees(t: float) -> float:
    return 1 - abs(t) / math.sqrt(t * t + 2)


def test_groups_names_and_what_differs(plan: Path) -> None:
    comparison = compare([plan])
    assert [row.name for row in comparison.rows] == ["wide", "base", "slow"]
    wide, base, slow = comparison.rows
    assert wide.differs == {
        "model.pattern": "3 s6 : 1 attention", "model.s6.expand": 3, "optim.matrix_lr": 0.01,
    }  # fmt: skip
    assert (base.differs["model.s6.expand"], slow.differs["model.pattern"]) == (2, "s6")
    assert base.scores == {1: 2.0, 2: 2.1, 3: 2.05}
    assert (base.mean, base.std) == (pytest.approx(2.05), pytest.approx(0.05))
    assert base.nats == pytest.approx(2.05 * NATS)
    half = 0.95 / math.sqrt(2 * 0.975 * 0.025) * 0.05 / math.sqrt(3)
    assert base.interval == pytest.approx((2.05 - half, 2.05 + half))
    assert (base.fits, slow.fits, slow.total_bytes) == (True, False, 17_000_000)


def test_all_pairs_are_tested_and_corrected(plan: Path) -> None:
    pairs = {(pair.a, pair.b): pair for pair in compare([plan]).pairs}
    assert [*pairs] == [("wide", "base"), ("wide", "slow"), ("base", "slow")]
    # Differences -0.2, -0.1, -0.3; -0.21, -0.12, -0.33; -0.01, -0.02, -0.03.
    t = {
        ("wide", "base"): 0.2 / (0.1 / math.sqrt(3)),
        ("wide", "slow"): 0.22 / (math.sqrt(0.0111) / math.sqrt(3)),
        ("base", "slow"): 0.02 / (0.01 / math.sqrt(3)),
    }
    p = {pair: p_of_two_degrees(value) for pair, value in t.items()}
    for pair, found in pairs.items():
        assert found.test.p == pytest.approx(p[pair])
        assert found.record is None
    # The largest t has the smallest p, which counts thrice. The others count twice, which would
    # make less of them than of the first, and so they come out as it does.
    for found in pairs.values():
        assert found.p_holm == pytest.approx(3 * p["wide", "slow"])
    assert pairs["wide", "base"].nats == pytest.approx(-0.2 * NATS)


def test_the_rule_for_records(tmp_path: Path) -> None:
    """Ahead by 0.005 nats, not by 0.005 bits, at p < 0.01, corrected, and within the limit."""
    margin = 0.005 / NATS
    for seed, noise in ((1, -1e-4), (2, 0.0), (3, 1e-4), (4, 0.0)):
        write_run(tmp_path / "old" / f"seed-{seed}", seed, 2.0)
        for i, (name, lead) in enumerate({"new": 2 * margin, "near": 1.001 * margin}.items()):
            bpb, more = 2.0 - lead + noise, {"model.s6.d_state": 9 + i}
            write_run(tmp_path / name / f"seed-{seed}", seed, bpb, settings=more)
        write_run(
            tmp_path / "large" / f"seed-{seed}", seed, 2.0 - 2 * margin + noise,
            settings={"model.s6.d_state": 20}, fits=False,
        )  # fmt: skip
    comparison = compare([tmp_path], against="old")
    assert {(pair.a, pair.b) for pair in comparison.pairs} == {
        ("new", "old"), ("near", "old"), ("large", "old"),
    }  # fmt: skip
    records = {pair.a: pair for pair in comparison.pairs}
    assert {name: pair.record for name, pair in records.items()} == {
        "new": True, "near": False, "large": False,
    }  # fmt: skip
    assert (records["near"].p_holm or 1) < 0.01  # certainly better, but not by enough
    assert (records["large"].record_p or 1) < 0.01
    with pytest.raises(UserError, match="--against odl: no such configuration; did you mean old"):
        compare([tmp_path], against="odl")


def test_one_seed_says_nothing_about_chance(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 1, 2.0)
    write_run(tmp_path / "b", 1, 1.9, settings=WIDE)
    comparison = compare([tmp_path / "a", tmp_path / "b"])
    (pair,) = comparison.pairs
    assert (pair.a, pair.test.p, pair.p_holm) == ("b", None, None)
    assert comparison.rows[0].interval is None
    main(["compare", str(tmp_path)])
    assert "nothing can be said about chance" in capsys.readouterr().out


def test_names_are_as_long_as_it_takes_to_tell_them_apart(tmp_path: Path) -> None:
    for i, plan in enumerate(("long", "short")):
        for seed in (1, 2):
            more = {"batch.seq_len": 64 * (i + 1)}
            write_run(tmp_path / plan / "wide" / f"seed-{seed}", seed, 2.0, settings=WIDE | more)
        write_run(
            tmp_path / plan / f"only-{plan}" / "seed-1", 1, 1.5 + i, settings={"model.loops": i + 1}
        )
    groups, _ = read_groups([tmp_path])
    assert {group.name: len(group.runs) for group in groups} == {
        "long/wide": 2, "short/wide": 2, "only-long": 1, "only-short": 1,
    }  # fmt: skip
    with pytest.raises(UserError, match=r"wide: no such configuration; did you mean .*/wide"):
        compare([tmp_path], against="wide")


def test_what_most_configurations_have_is_said_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "a", 1, 2.0)
    write_run(tmp_path / "b", 1, 1.9, settings={"model.n_layers": 5})
    write_run(tmp_path / "c", 1, 1.8, settings={"model.s6.d_state": 4, "model.loops": 3})
    main(["compare", str(tmp_path)])
    lines = capsys.readouterr().out.splitlines()
    most = PRESETS["tiny"]().model
    assert lines[:4] == [
        f"most: model.n_layers = {most.n_layers}, model.loops = 1, "
        f"model.s6.d_state = {most.s6.d_state}",
        "c: model.loops = 3, model.s6.d_state = 4",
        "b: model.n_layers = 5",
        "a: as most",
    ]


def test_no_record_where_nothing_varies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for seed, bpb in ((1, 1.0), (2, 1.1)):
        write_run(tmp_path / "new" / f"seed-{seed}", seed, bpb, settings=WIDE)
        write_run(tmp_path / "old" / f"seed-{seed}", seed, bpb + 0.25)
    (pair,) = compare([tmp_path], against="old").pairs
    assert (pair.test.p, pair.record_p, pair.record) == (None, None, None)
    main(["compare", str(tmp_path), "--against", "old"])
    shown = capsys.readouterr().out
    assert "new and old differ by the same in every seed: no spread to test by" in shown
    assert "yes" not in shown


def views(comparison: Comparison) -> dict[str, tuple[float, str]]:
    return {view.unit: (view.at, view.source) for view in comparison.views}


def test_equal_steps_and_equal_time_from_evaluations(tmp_path: Path) -> None:
    write_run(tmp_path / "short", 1, 2.0, steps=10, step_seconds=2.0, evaluated=(4,))
    write_run(tmp_path / "long", 1, 1.5, steps=40, evaluated=(8, 12), settings=WIDE)
    comparison = compare([tmp_path])
    assert views(comparison) == {"steps": (10, "validation"), "seconds": (20, "validation")}
    rows = {row.name: row for row in comparison.rows}
    assert rows["long"].equal_steps == pytest.approx(1.5 + 0.1 * 30)
    assert rows["long"].equal_seconds == pytest.approx(1.5 + 0.1 * 20)
    assert rows["short"].equal_steps == rows["short"].equal_seconds == pytest.approx(2.0)


def test_equal_steps_from_training_where_evaluations_do_not_reach(tmp_path: Path) -> None:
    write_run(tmp_path / "short", 1, 2.0, steps=10)
    write_run(tmp_path / "long", 1, 1.5, steps=30, settings=WIDE)
    comparison = compare([tmp_path])
    assert views(comparison) == {"steps": (10, "training"), "seconds": (10, "training")}
    rows = {row.name: row for row in comparison.rows}
    assert rows["long"].equal_steps == pytest.approx(1.5 + 0.1 * 20)


def test_runs_that_are_not_finished_are_left_out(plan: Path) -> None:
    (plan / "wide" / "seed-3" / "summary.json").unlink()
    (plan / "base" / "seed-2" / "metrics.jsonl").unlink()
    comparison = compare([plan])
    assert {row.name: [*row.scores] for row in comparison.rows} == {
        "wide": [1, 2], "base": [1, 3], "slow": [1, 2, 3],
    }  # fmt: skip
    assert comparison.left_out.keys() == {
        str(plan / "wide" / "seed-3"), str(plan / "base" / "seed-2"),
    }  # fmt: skip
    # One common seed: no pairs, so Welch's test.
    assert comparison.pairs[0].test.pairs == 1


def test_settings_from_before_they_existed_are_at_their_default(plan: Path) -> None:
    path = plan / "base" / "seed-1" / "config.json"
    config = json.loads(path.read_text())
    del config["model"]["loops"]
    path.write_text(json.dumps(config))
    groups, _ = read_groups([plan])
    assert sorted(len(group.runs) for group in groups) == [3, 3, 3]


def test_what_cannot_be_compared(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one run folder"):
        compare([])
    with pytest.raises(UserError, match="nowhere: no run folder"):
        compare([tmp_path / "nowhere"])
    write_run(tmp_path / "a", 1, 2.0)
    write_run(tmp_path / "b", 1, 2.0)
    with pytest.raises(UserError, match="the same configuration and seed"):
        compare([tmp_path])
    write_run(tmp_path / "c", 1, 2.0, settings=WIDE, val_bytes=BYTES + 100)
    with pytest.raises(UserError, match=r"was scored on 2,600 bytes of text, .* on 2,500"):
        compare([tmp_path / "a", tmp_path / "c"])
    alike = [tmp_path / "a", write_run(tmp_path / "d", 1, 2.0, settings=WIDE, val_bytes=BYTES + 1)]
    with pytest.raises(UserError, match=r"d: was scored on other text than .*a; compare runs"):
        compare(alike)
    write_run(tmp_path / "e", 1, 2.0, settings=WIDE, val_bytes=BYTES + 1, tokenizer_sha256="0")
    compare([tmp_path / "a", tmp_path / "e"])
    (tmp_path / "a" / "summary.json").unlink()
    with pytest.raises(UserError, match="no finished run to compare"):
        compare([tmp_path / "a"])


@pytest.mark.parametrize(("split", "verb"), [("val", "scored"), ("train", "trained")])
def test_seeds_of_other_text(tmp_path: Path, split: str, verb: str) -> None:
    """Which only fingerprints tell, where it is as long."""
    text = {"train": "ab", "val": "cd"}
    write_run(tmp_path / "seed-1", 1, 2.0, text=text)
    write_run(tmp_path / "seed-2", 2, 2.1)  # of a version without fingerprints
    write_run(tmp_path / "seed-3", 3, 2.2, text=text)
    compare([tmp_path])
    write_run(tmp_path / "seed-4", 4, 2.3, text=text | {split: "other"})
    with pytest.raises(UserError, match=f"seed-4: was {verb} on other text than .*seed-1; compare"):
        compare([tmp_path])


def test_other_training_text_is_a_question_of_its_own(tmp_path: Path) -> None:
    for name, train in (("small", "ab"), ("large", "ef")):
        text = {"train": train, "val": "cd"}
        write_run(tmp_path / name, 1, 2.0, settings={"data": name}, text=text)
    groups, _ = read_groups([tmp_path])
    assert [group.name for group in groups] == ["large", "small"]


def test_one_folder_under_two_names_is_one_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "seed-1", 1, 2.0)
    monkeypatch.chdir(tmp_path)
    groups, _ = read_groups([Path("seed-1"), tmp_path])
    assert [len(group.runs) for group in groups] == [1]


def test_one_configuration_alone(tmp_path: Path) -> None:
    write_run(tmp_path / "seed-1", 1, 2.0)
    write_run(tmp_path / "seed-2", 2, 2.2)
    comparison = compare([tmp_path])
    assert (len(comparison.rows), comparison.pairs) == (1, [])
    assert comparison.rows[0].differs == {}
    assert comparison.rows[0].name == tmp_path.name


def test_the_command(plan: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(["compare", str(plan), "--against", "base", "--png", str(plan / "plot.png")])
    shown = capsys.readouterr().out
    assert "wide: model.s6.expand = 3, optim.matrix_lr = 0.01\n" in shown
    assert "p is corrected for 2 comparisons" in shown
    assert "at equal steps after 10 steps, on validation" in shown
    assert "too large" in shown
    assert (plan / "plot.png").read_bytes().startswith(b"\x89PNG")
    main(["compare", str(plan), "--json"])
    values = json.loads(capsys.readouterr().out)
    assert values == json.loads(json.dumps(compare([plan]).to_dict()))
    assert values["rows"][0]["scores"] == pytest.approx({"1": 1.8, "2": 2.0, "3": 1.75})


def test_what_is_kept_of_runs_compares_as_they_did(tmp_path: Path) -> None:
    """By results/keep.py: a tenth of the lines, and all that a comparison says but the curves."""
    for seed, bpb in ((1, 1.25), (2, 1.26)):
        run = tmp_path / "runs" / "tiny" / f"seed-{seed}"
        write_run(run, seed, bpb, steps=34, evaluated=(17,))
    (tmp_path / "runs" / "unfinished").mkdir()
    script = Path(__file__).parents[2] / "results" / "keep.py"
    folders = [str(tmp_path / "runs"), str(tmp_path / "kept")]
    subprocess.run([sys.executable, str(script), *folders], check=True, capture_output=True)
    kept = tmp_path / "kept" / "tiny" / "seed-2"
    lines = [json.loads(line) for line in (kept / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 10, 20, 30, 34]
    assert [line["step"] for line in lines if "val_bpb" in line] == [17, 34]
    assert (kept / "command.txt").read_text() == (
        "scangolf train tiny --seconds 110 --seed 2 --data data/local\n"
    )
    (whole,), (group,) = (read_groups([Path(folder)])[0] for folder in folders)
    assert (group.scores, group.settings) == (whole.scores, whole.settings)
    assert group.scores == {1: 1.25, 2: 1.26}
