"""Several runs on one page."""

import json
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
from report_cases import ANALYSIS, CONFIG, SUMMARY, Page, make_run

from scangolf.cli import main
from scangolf.errors import UserError
from scangolf.report.compare import line
from scangolf.report.page import write_report


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("compared")
    runs = [
        make_run(folder / "_first <b> & $x^2$", analysed=True),
        make_run(folder / "second", analysed=True),
        make_run(folder / "third", done=7, finished=False),
    ]
    better = SUMMARY | {"artifact_val_bpb": 1.9, "seed": 8}
    (runs[1] / "summary.json").write_text(json.dumps(better))
    (runs[1] / "config.json").write_text(json.dumps(CONFIG | {"seed": 8}))
    return runs


def test_numbers_curves_and_differences(runs: list[Path]) -> None:
    path = write_report(*runs)
    assert path == runs[0].parent / "report.html"
    page = Page(path)
    head, first, second, third = page.lines[:4]
    assert head[:5] == ["Run", "artifact", "validation", "training", "time"]
    assert first[:3] == ["_first <b> & $x^2$", "2.0571", "2.0305"]
    assert first[-3:] == ["903.2\N{NO-BREAK SPACE}kB", "yes", "61,234.57\N{NO-BREAK SPACE}MB"]
    assert second[1] == "1.9000"
    assert third[1:3] == ["-", "-"]
    assert third[5] == "7"
    assert "<strong>1.9000</strong>" in page.source
    assert page.rows["seed"] == ["7", runs[0].name + ", third", "8", "second"]
    assert page.text.count("scangolf train tiny --seconds 110 --seed 7 --data 'my data'") == 2
    assert len(page.attributes("svg", "viewbox")) == 3 + 5 + 1 + 3  # keys and curves, twice
    for plot in re.findall(r"<svg.*?</svg>", page.source, flags=re.S):
        ElementTree.fromstring(plot)  # what is opened is closed
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "nan" not in page.text


def test_loss_by_position_of_those_that_were_analysed(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_report(*runs, out=tmp_path / "page.html"))
    octaves = page.rows["Position"]
    assert octaves[:3] == ["1", "2", "3 to 4"]
    mean = sum(ANALYSIS["positions"]["nats"][2:4]) / 2
    for run in runs[:2]:
        assert page.rows[run.name][2] == f"{mean / 2.5 / 0.6931472:.3f}"
    assert page.rows["third"] == ["-"] * len(octaves)
    assert not (tmp_path / "page.html.part").exists()
    alone = Page(write_report(runs[2], runs[2], out=tmp_path / "page.html"))
    assert "Loss by position" not in alone.text


def test_what_cannot_be_read_is_named_and_does_not_stop_the_page(tmp_path: Path) -> None:
    good, bad = make_run(tmp_path / "good"), make_run(tmp_path / "bad")
    (bad / "metrics.jsonl").write_text("")  # not begun
    page = Page(write_report(bad, good, tmp_path / "nowhere"))
    assert [line[0] for line in page.lines[:2]] == ["Run", "good"]
    assert f"Left out: {bad}, metrics.jsonl: holds no training step" in page.text
    assert f"Left out: {tmp_path}/nowhere, not a run folder" in page.text
    with pytest.raises(UserError, match="holds no training step"):
        write_report(bad, tmp_path / "nowhere")


def test_the_best_is_one_that_fits(tmp_path: Path) -> None:
    large, small = make_run(tmp_path / "large"), make_run(tmp_path / "small")
    for run, score in ((large, 1.8), (small, 1.9)):
        summary = SUMMARY | {"artifact_val_bpb": score, "fits": run == small}
        (run / "summary.json").write_text(json.dumps(summary))
    assert "<strong>1.9000</strong>" in Page(write_report(large, small)).source


def test_it_needs_and_runs_nothing_from_elsewhere(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_report(*runs, out=tmp_path / "page.html"))
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for name in ("src", "href"):
        assert all(v.get(name, "#").startswith("#") for _tag, v in page.tags)
    ids = [values["id"] for _tag, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))


def test_folders_of_one_name_are_told_apart_and_the_same_run_twice_is_not(tmp_path: Path) -> None:
    for parent in "ab":
        (tmp_path / parent).mkdir()
    runs = [make_run(tmp_path / parent / "run") for parent in "ab"]
    page = Page(write_report(*runs, out=tmp_path / "page.html"))
    assert "a/run, b/run" in page.text
    assert "Nothing: all runs have the same configuration." in page.text
    assert "run, run" in Page(write_report(runs[0], runs[0], out=tmp_path / "page.html")).text


def test_the_shortest_runs_beside_a_longer_one(tmp_path: Path) -> None:
    runs = [make_run(tmp_path / f"{n}", steps=n, done=n, analysed=True) for n in (1, 2, 40)]
    page = Page(write_report(*runs))
    assert "nan" not in page.text
    assert page.lines[3][5:7] == ["40", "164\N{NO-BREAK SPACE}k"]


def test_a_hundred_thousand_steps_each_stay_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100_000, done=100_000)
    path = write_report(*[run] * 3, out=tmp_path / "page.html")
    assert path.stat().st_size < 400_000


def test_a_whole_study_looks_different() -> None:
    assert len({line(i) for i in range(24)}) == 24


def test_a_folder_of_runs_has_its_page(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / "plan" / name).mkdir(parents=True)
        make_run(tmp_path / "plan" / name / "seed-7")
    main(["report", str(tmp_path / "plan")])
    page = Page(tmp_path / "plan" / "report.html")
    assert {"a/seed-7", "b/seed-7"} <= page.rows.keys()


def test_no_run_and_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="name at least one run folder"):
        write_report()
    with pytest.raises(UserError, match="nowhere: not a run folder"):
        write_report(tmp_path / "nowhere", tmp_path / "elsewhere")
    assert not (tmp_path / "report.html").exists()
