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
    rows = {label: cells for label, cells in page.rows.items() if len(cells) == 11}
    head, first, second, third = rows.items()
    assert head[1][:4] == ["artifact", "validation", "training", "time"]
    assert first[0] == "_first <b> & $x^2$"
    assert first[1][:2] == ["2.0571", "2.0305"]
    assert first[1][-3:] == ["903.2\N{NO-BREAK SPACE}kB", "yes", "61,234.57\N{NO-BREAK SPACE}MB"]
    assert second[1][0] == "1.9000"
    assert third[1][:2] == ["-", "-"]
    assert third[1][4] == "7"
    assert page.rows["seed"] == ["7", runs[0].name + ", third", "8", "second"]
    assert page.text.count("scangolf train tiny --seconds 110 --seed 7 --data 'my data'") == 2
    assert len(page.attributes("svg", "viewbox")) == 3 + 5  # keys in the table, curves
    for plot in re.findall(r"<svg.*?</svg>", page.source, flags=re.S):
        ElementTree.fromstring(plot)  # what is opened is closed
    assert not {"script", "b"} & {tag for tag, _ in page.tags}
    assert "nan" not in page.text


def test_loss_by_position_needs_all_of_them(runs: list[Path], tmp_path: Path) -> None:
    page = Page(write_report(*runs[:2], out=tmp_path / "page.html"))
    assert len(page.attributes("svg", "viewbox")) == 2 + 6
    mean = sum(ANALYSIS["positions"]["nats"][2:4]) / 2
    assert page.rows["3 to 4"] == [f"{mean / 2.5 / 0.6931472:.3f}"] * 2
    assert not (tmp_path / "page.html.part").exists()


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
    assert page.rows["40"][4:6] == ["40", "164\N{NO-BREAK SPACE}k"]


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
    run = make_run(tmp_path / "run")
    with pytest.raises(UserError, match="nowhere: not a run folder"):
        write_report(run, tmp_path / "nowhere")
    assert not (tmp_path / "report.html").exists()
