"""The page of a run with analysis.json: its tables hold the numbers, its text its surprisal."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
from report_cases import ANALYSIS, SUMMARY, Page, make_run

from scangolf.report.anatomy import stretches
from scangolf.report.contents import bytes_by_part, bytes_by_place, passage
from scangolf.report.page import write_report
from scangolf.report.style import PALETTE, SURPRISAL_BITS, tints


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    return Page(write_report(make_run(tmp_path_factory.mktemp("anatomy") / "run", analysed=True)))


def test_every_plot_is_there_and_named(page: Page) -> None:
    labels = page.attributes("svg", "aria-label")
    assert len(labels) == 7 + 2 + 5 + 1
    assert all(labels)
    ids = [values["id"] for _tag, values in page.tags if "id" in values]
    assert len(ids) == len(set(ids))
    assert "nan" not in page.text


def test_memory_in_tokens(page: Page) -> None:
    memory = np.quantile(ANALYSIS["scans"][1]["memory"], [0, 0.5, 1])
    row = next(line for line in page.lines if line[:2] == ["2 s6", "256 x 8"])
    assert row[2] == "0.01"
    assert [float(row[i]) for i in (3, 5, 7)] == pytest.approx(memory, rel=5e-3)
    assert "1 / (mean dt · |A|)" in page.text


def test_gates_and_skips(page: Page) -> None:
    assert page.rows["3 + 2"] == ["0.70 (0.50 to 0.90)"] * 4 + ["0.90 (0.70 to 1.10)"]
    assert "“4 + 1”: what block 1 put out is added to what block 4 reads." in page.text


def test_loss_by_position_in_octaves(page: Page) -> None:
    nats = np.array(ANALYSIS["positions"]["nats"])
    assert page.rows["1"][-2:] == ["5.0000", f"{5 / math.log(2) / 2.5:.4f}"]
    mean = nats[128:].mean()
    assert page.rows["129 to 256"] == [f"{mean:.4f}", f"{mean / math.log(2) / 2.5:.4f}"]
    parts = stretches(ANALYSIS["positions"])
    assert [part.first for part in parts] == [1, 2, 3, 5, 9, 17, 33, 65, 129]
    total = sum(part.nats * (part.last - part.first + 1) for part in parts)
    assert total == pytest.approx(nats.sum())
    assert [(s.first, s.last) for s in stretches({"nats": [1.0] * 5, "bytes": [0.0] * 5})] == [
        (1, 1), (2, 2), (3, 4), (5, 5),
    ]  # fmt: skip


def test_bytes_by_part_and_place_are_the_body(page: Page) -> None:
    layers = SUMMARY["layers"]
    body = 1000 + sum(t["bytes"] for t in ANALYSIS["tensors"])
    for shares in (bytes_by_part(ANALYSIS, layers), bytes_by_place(ANALYSIS, layers)):
        assert sum(share.bytes for share in shares) == body == 9000
        assert sum(share.percent for share in shares) == pytest.approx(100)
        assert sum(share.tensors for share in shares) == len(ANALYSIS["tensors"])
    parts = {share.name: share for share in bytes_by_part(ANALYSIS, layers)}
    assert list(parts) == [
        "embedding", "s6: in_proj", "tokenizer", "attention: q_proj", "the rest",
    ]  # fmt: skip
    assert parts["s6: in_proj"].bytes == 3000
    assert parts["s6: in_proj"].bits_per_weight == f"{8 * 1500 / (3 * 512 * 128):.2f}"
    assert parts["s6: in_proj"].error == "0.300\N{NO-BREAK SPACE}%"
    assert [share.name for share in bytes_by_place(ANALYSIS, layers)] == [
        "embedding", "1 s6", "2 s6", "3 s6", "4 attention", "tokenizer",
    ]  # fmt: skip
    assert page.rows["blocks.3.mixer.q_proj.weight"][:3] == ["128 x 128", "float16", "990"]
    assert "9,000 bytes of tensors and tokenizer become" in page.text


def test_text_is_tinted_by_surprisal_and_never_run(page: Page) -> None:
    spans = [values for tag, values in page.tags if tag == "span" and "title" in values]
    assert [(span.get("class"), span["title"]) for span in spans] == [
        (None, "0.2 bits"), ("t1", "1.5 bits"), ("t2", "3.0 bits"), ("t5", "12.2 bits"),
        ("t3", "5.0 bits"), ("t4", "6.5 bits"), ("t2", "2.0 bits"),
    ]  # fmt: skip
    assert "The <b>\n&amp; owl" in page.text
    assert "Say <b> & </pre>" in page.text
    assert "Most surprising: “owl” 12.2, " in " ".join(page.text.split())
    assert "script" not in {tag for tag, _ in page.tags}
    # What is of the prompt, "Say <b>", is bold.
    bold = re.findall(r"<b>(.*?)</b>", page.source)
    assert bold == ["Say", " &lt;b&gt;"]


def test_surprisal_in_bits_a_byte() -> None:
    found = passage([("é", 3.0), ("ab", 5.0)])
    assert found is not None
    assert (found.bits_per_byte, found.bits_per_piece) == (2.0, 4.0)
    assert passage([]) is None
    levels = [passage([("x", bits)]).pieces[0].tint for bits in np.linspace(0, 12, 100)]  # type: ignore[union-attr]
    assert levels == sorted(levels)
    assert set(levels) == set(range(len(SURPRISAL_BITS) + 1))


def luminance(colour: str) -> float:
    """Relative luminance, as the Web Content Accessibility Guidelines define it."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_tints_are_monotone_and_text_stays_readable(theme: int) -> None:
    paper, ink = PALETTE["paper"][theme], PALETTE["ink"][theme]
    colours = [tint[theme] for tint in tints()]
    assert colours[0] == paper
    away = [contrast(colour, paper) for colour in colours]
    assert away == sorted(away)
    assert len(set(away)) == len(away)
    assert min(contrast(colour, ink) for colour in colours) >= 4.5


@pytest.mark.parametrize("theme", [0, 1], ids=["light", "dark"])
def test_lines_and_words_stand_out(theme: int) -> None:
    paper = PALETTE["paper"][theme]
    for role, colours in PALETTE.items():
        if role not in ("paper", "rule", "raw"):
            assert contrast(colours[theme], paper) >= (4.5 if role == "muted" else 3), role


def test_peak_memory_is_a_number_of_the_page(page: Page) -> None:
    assert page.rows["Peak GPU memory"] == [
        "61,234,567,890", "bytes (61,234.57\N{NO-BREAK SPACE}MB)",
    ]  # fmt: skip


def test_a_finished_run_of_an_older_version_says_what_is_missing(tmp_path: Path) -> None:
    page = Page(write_report(make_run(tmp_path / "run")))
    assert "This run folder has no analysis.json" in page.text
    assert "What the scans remember" not in page.text


def test_an_analysis_of_another_end_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", analysed=True)
    (run / "analysis.json").write_text(json.dumps(ANALYSIS | {"steps": 20}))
    assert "What the scans remember" not in Page(write_report(run)).text


def test_a_model_without_scans_skips_and_text(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    gates = [g for g in ANALYSIS["gates"] if g["block"] == 0]
    bare = {"scans": [], "gates": gates, "passage": [], "sample": [], "peak_memory_bytes": None}
    positions = {"targets": 9, "split_targets": 9, "nats": [2.0], "bytes": [0.0]}
    (run / "analysis.json").write_text(json.dumps(ANALYSIS | bare | {"positions": positions}))
    page = Page(write_report(run))
    assert "What the scans remember" not in page.text
    assert "Sample of the artifact" in page.text
    assert len(page.attributes("svg", "viewbox")) == 7 + 4 + 1
