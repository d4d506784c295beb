"""The report page: its numbers are the run's, and it needs and runs nothing from elsewhere."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from report_cases import CONFIG, SUMMARY, Page, make_run, training_line

from scangolf.errors import UserError
from scangolf.report.curves import MAX_POINTS, smooth, thin, y_limits
from scangolf.report.page import write_report
from scangolf.report.plots import curve_png
from scangolf.report.words import duration, megabytes, short, three_figures, visible


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    run = make_run(tmp_path_factory.mktemp("reports") / "run")
    path = write_report(run)
    assert path == run / "report.html"
    assert sorted(p.name for p in run.iterdir()) == [
        "config.json", "metrics.jsonl", "report.html", "summary.json",
    ]  # fmt: skip
    return Page(path)


def test_every_number_of_the_summary_is_on_the_page(page: Page) -> None:
    numbers = {key: v for key, v in SUMMARY.items() if type(v) in (int, float)}
    assert set(numbers.values()) <= {value for value, _text in page.data}
    for value, text in page.data:
        shown = re.fullmatch(r"([\d,.]+)\s?([kM]?)( s)?", text.replace("1 min 50 s", "110"))
        assert shown is not None, text
        scale = {"": 1, "k": 1e3, "M": 1e6}[shown[2]]
        assert float(shown[1].replace(",", "")) * scale == pytest.approx(value, rel=2e-3)


def test_the_table_reads_as_the_summary(page: Page) -> None:
    assert page.rows["Artifact's score"] == ["2.0571", "bits per byte"]
    assert page.rows["Validation score"] == ["2.0305", "bits per byte"]
    assert page.rows["Total"] == ["903,243", "bytes (903.2\N{NO-BREAK SPACE}kB)"]
    assert page.rows["Limit"] == ["16,000,000", "bytes (16.00\N{NO-BREAK SPACE}MB)"]
    assert page.rows["Training time"] == ["109.88", "s"]
    assert page.rows["Fits"] == ["yes"]
    assert page.rows["Device"] == ["x86_64 CPU, 2 threads"]
    assert page.rows["Tokenizer (SHA-256)"] == ["f567ea89" * 8]
    assert page.rows["Peak GPU memory"] == ["not recorded"]
    assert len(page.rows) == 20 + (1 + 10) + 1  # steps of training, and evaluations, with heads


def test_the_bar_is_to_scale(page: Page) -> None:
    widths = [style for style in page.attributes("span", "style") if "width" in style]
    shares = [float(style.split(":")[1].rstrip("%")) for style in widths]
    assert shares == pytest.approx([100 * 745419 / 16e6, 100 * 157824 / 16e6], abs=1e-3)


def test_too_many_bytes_are_told_and_marked(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    sizes = {"artifact_bytes": 19_842_176, "total_bytes": 20_000_000, "fits": False}
    (run / "summary.json").write_text(json.dumps(SUMMARY | sizes))
    page = Page(write_report(run))
    assert "4,000,000 bytes over the limit" in page.text
    assert page.rows["Fits"] == ["no"]
    assert page.attributes("i", "style") == ["left: 80.000%"]


def test_the_sample_is_shown_and_never_run(page: Page) -> None:
    assert "script" not in {tag for tag, _ in page.tags}
    assert "Say <b> & </pre><script>alert('x')</script>␀␛[31m�" in page.text
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page.source)


def test_nothing_comes_from_elsewhere(page: Page) -> None:
    assert "http:" not in page.source
    assert "https:" not in page.source
    assert "@import" not in page.source
    assert not {"link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for name in ("src", "href", "clip-path"):
        for _tag, values in page.tags:
            reference = values.get(name, "#").removeprefix("url(")
            assert reference.startswith("#")
    assert all("url(" not in style for style in page.attributes("path", "style"))


def test_ids_are_unique_and_every_reference_has_one(page: Page) -> None:
    ids = [values["id"] for _tag, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids)) > 0
    references = set(re.findall(r'(?:url\(|href=")#([\w-]+)', page.source))
    assert references <= set(ids)


def test_plots_take_their_colours_from_the_page_and_speak(page: Page) -> None:
    plots = re.findall(r"<svg.*?</svg>", page.source, flags=re.S)
    assert len(plots) == 7
    axes = ["time (s)"] * 2 + ["steps", "tokens"] + ["time (s)"] * 3
    for plot, axis in zip(plots, axes, strict=True):
        ElementTree.fromstring(plot)  # what is opened is closed
        assert not re.search(r"#[0-9a-f]{6}\b", plot)
        assert 'role="img"' in plot
        assert axis in plot
    last = training_line(40)
    labels = page.attributes("svg", "aria-label")
    assert f"training {last['train_bpb']:.4f} " in labels[0]
    assert "validation 2.0305, artifact 2.0571." in labels[0]
    assert "against steps, to 40. " in labels[2]
    assert "against tokens, to 164\N{NO-BREAK SPACE}k. " in labels[3]
    assert f"training {last['loss']:.4f} " in labels[4]
    assert labels[4].endswith(", validation 3.2930.")
    assert labels[5].endswith("1,540 tokens a second.")
    assert labels[6].endswith("0.000.")


def test_the_curves_stand_there_in_numbers(page: Page) -> None:
    assert page.rows["Step"][:3] == ["Tokens", "Time (s)", "Loss, smoothed (nats)"]
    first = training_line(1)
    assert page.rows["1"] == [
        "4,096", f"{first['seconds']:.1f}", f"{first['loss']:.4f}", f"{first['train_bpb']:.4f}",
        "1,501", f"{first['lr']:.3f}",
    ]  # fmt: skip
    assert page.rows["40"] == ["109.9", "3.2930", "2.0305"]  # the evaluation, the later table


def test_layers_settings_and_command(page: Page) -> None:
    assert page.attributes("li", "class") == SUMMARY["layers"]
    assert "model.s6.d_state" in page.text
    assert "scangolf train tiny --seconds 110 --seed 7 --data 'my data'\n" in page.text


def test_a_run_of_steps_is_repeated_by_steps(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "config.json").write_text(json.dumps(CONFIG | {"steps": 40}))
    assert "scangolf train tiny --steps 40 --seed 7" in Page(write_report(run)).text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    first, second = (write_report(make_run(tmp_path / name)).read_bytes() for name in "ab")
    assert first == second


def test_an_unfinished_run_has_a_page_of_what_there_is(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", done=10, finished=False)
    page = Page(write_report(run))
    assert "This run has not finished" in page.text
    last = training_line(10)
    assert (last["train_bpb"], f"{last['train_bpb']:.4f}") in page.data
    assert (0.25, "25 %") in page.data
    assert "3 s6 : 1 attention, over 4 blocks" in page.text
    looped = CONFIG | {"model": CONFIG["model"] | {"loops": 3}}
    (run / "config.json").write_text(json.dumps(looped))
    assert "over 4 blocks, passed 3 times" in Page(write_report(run)).text
    assert "Artifact" not in page.rows
    assert "analysis.json" not in page.text


def test_the_summary_of_an_earlier_end_is_not_that_of_a_resumed_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(training_line(41, 80)) + "\n")
    page = Page(write_report(run))
    assert "This run has not finished" in page.text
    assert "2.0571" not in page.text


def test_a_last_line_cut_short_is_left_out(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", done=10, finished=False)
    whole = write_report(run).read_bytes()
    with (run / "metrics.jsonl").open("a") as metrics:
        metrics.write(json.dumps(training_line(11))[:60])
    assert write_report(run).read_bytes() == whole


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_the_shortest_runs(tmp_path: Path, steps: int) -> None:
    run = make_run(tmp_path / "run", steps=steps, done=steps, analysed=True)
    page = Page(write_report(run))
    assert len(page.attributes("svg", "viewbox")) == 7 + 8
    assert "nan" not in page.text


def test_a_hundred_thousand_steps_stay_a_small_page(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", steps=100_000, done=100_000)
    path = write_report(run)
    assert path.stat().st_size < 400_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "run: not a run folder, it has no config.json; name the --out"),
        ("config.json", '{"preset"', "config.json: not JSON"),
        ("config.json", '{"preset": "tiny"}', "config.json: lacks data, model, seconds, seed"),
        ("metrics.jsonl", None, "metrics.jsonl: not there"),
        ("metrics.jsonl", "", "metrics.jsonl: holds no training step"),
        ("metrics.jsonl", "{\n{}\n", "metrics.jsonl: line 1 is not JSON; remove that line"),
        ("metrics.jsonl", '{"step": 1}\n', "line 1 is no record of training or evaluation"),
        ("metrics.jsonl", json.dumps(training_line(1) | {"loss": math.nan}) + "\n", "line 1 is no"),
        ("summary.json", "[]", "summary.json: not a JSON object; delete it"),
        ("summary.json", "{}", "summary.json: lacks artifact_bytes"),
        ("summary.json", '{"val_bpb": NaN}', "summary.json: not JSON (NaN is no number); delete"),
        ("analysis.json", "{", "analysis.json: not JSON"),
        ("analysis.json", "{}", "analysis.json: lacks gates"),
    ],
)
def test_what_cannot_be_reported(
    tmp_path: Path, name: str, content: str | None, message: str
) -> None:
    run = make_run(tmp_path / "run")
    (run / "report.html").write_text("the last report")
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UserError) as refusal:
        write_report(run)
    assert message in str(refusal.value)
    assert "\n" not in str(refusal.value)
    assert (run / "report.html").read_text() == "the last report"


def test_the_curve_alone_is_a_picture(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    for name in ("a.png", "b.png"):
        curve_png(run, tmp_path / name)
    content = (tmp_path / "a.png").read_bytes()
    assert content.startswith(b"\x89PNG\r\n")
    assert int.from_bytes(content[16:20]) == pytest.approx(1600, rel=0.05)  # 800 points, 144 dpi
    assert content == (tmp_path / "b.png").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.png", "b.png", "run"]


def test_matplotlib_waits_until_something_is_drawn() -> None:
    check = "import sys, scangolf.report.page; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_smooth_keeps_lines_and_lowers_noise() -> None:
    line = np.linspace(3.0, 1.0, 500)
    assert smooth(line)[:-13] == pytest.approx(line[:-13], abs=1e-12)  # centred
    assert smooth(line)[-1] == pytest.approx(line[-13:].mean(), abs=1e-12)  # 500 // 40 before it
    noise = np.random.default_rng(0).normal(size=10_000)
    assert smooth(noise)[2000:-300].std() == pytest.approx(501**-0.5, rel=0.3)


def test_thin_keeps_ends_and_extremes() -> None:
    x = np.arange(100_000.0)
    y = np.random.default_rng(0).normal(size=x.size)
    y[[777, 55_555]] = -50, 50
    thin_x, thin_y = thin(x, y)
    assert len(thin_x) <= MAX_POINTS
    assert (np.diff(thin_x) > 0).all()
    assert thin_x[[0, -1]].tolist() == [0, 99_999]
    assert (thin_y.min(), thin_y.max()) == (-50, 50)
    assert (y[thin_x.astype(int)] == thin_y).all()


def test_limits_leave_out_an_opening_that_would_flatten_the_rest() -> None:
    seconds = np.linspace(1, 1000, 1000)
    gentle = np.linspace(3, 2, 1000)
    steep = np.where(seconds < 10, 50.0, gentle)
    assert y_limits(seconds, gentle, []) == pytest.approx((1.95, 3.05), abs=0.02)
    assert y_limits(seconds, steep, [])[1] < 4
    low, high = y_limits(seconds, gentle, [1.0, 5.0])
    assert low < 1 < 5 < high  # scores are always in the picture


def test_words() -> None:
    assert visible("a\r\nb\tc\rd\x85\x7f\u202e\ud800é") == "a\nb\tc␍d�␡��é"
    assert [duration(s) for s in (0.279, 59.8, 99.97, 119.4)] == [
        "0.279 s",
        "59.8 s",
        "100 s",
        "119 s",
    ]
    assert [duration(s) for s in (600, 119.7, 7199.7)] == [
        "10 min 00 s",
        "2 min 00 s",
        "2 h 00 min",
    ]
    assert [short(n) for n in (7, 775_684, 999_600)] == ["7", "776\xa0k", "1\xa0M"]
    assert [three_figures(n) for n in (0.0000123, 0.00123, 12.34, 999.4, 1234, 1e9)] == [
        "0.000012", "0.00123", "12.3", "999", "1.23\xa0k", "1\xa0B",
    ]  # fmt: skip
    assert [megabytes(n) for n in (512, 999_949, 999_950)] == [
        "0.5\xa0kB",
        "999.9\xa0kB",
        "1.00\xa0MB",
    ]
