"""The page in a real browser, where one is installed: no complaint, nothing wider than a phone."""

import json
import shutil
import subprocess
from html import escape
from pathlib import Path

import pytest
from report_cases import SUMMARY, Page, make_run

from scangolf.report.page import write_report

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
MEASURE = """<iframe id="page" width="{width}" height="900" srcdoc="{page}"></iframe>
<script>onload = () => {{
  const root = page.contentDocument.documentElement;
  const plots = root.querySelectorAll("svg").length;
  document.title = JSON.stringify([root.scrollWidth - root.clientWidth, plots]);
}}</script>"""


def browse(path: Path, profile: Path, *args: str) -> tuple[str, str]:
    """What the browser printed, and what it complained of."""
    assert BROWSER is not None
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={profile}", *args, path.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, timeout=120, check=True)
    return done.stdout.decode(), done.stderr.decode(errors="replace")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("browser")
    first = make_run(folder / "first <b> & more", analysed=True)
    second = make_run(folder / "second", analysed=True)
    return [write_report(first), write_report(first, second)]


def test_it_opens_from_disk_without_a_complaint(pages: list[Path], tmp_path: Path) -> None:
    for i, (path, plots) in enumerate(zip(pages, (15, 2 + 6 + 2), strict=True)):
        dom, complaints = browse(path, tmp_path / f"profile{i}", "--dump-dom")
        assert "CONSOLE" not in complaints
        seen = tmp_path / f"seen{i}.html"
        seen.write_text(dom)
        page, written = Page(seen), Page(path)
        assert len(page.attributes("svg", "viewbox")) == plots
        assert page.text.split() == written.text.split()
        assert page.data == written.data
    numbers = {v for v in SUMMARY.values() if type(v) in (int, float)}
    assert numbers <= {value for value, _text in Page(pages[0]).data}


@pytest.mark.parametrize("width", [360, 400, 1100])
def test_it_is_as_wide_as_the_screen(pages: list[Path], tmp_path: Path, width: int) -> None:
    for i, (path, plots) in enumerate(zip(pages, (15, 2 + 6 + 2), strict=True)):
        frame = tmp_path / f"frame{i}.html"
        page = escape(path.read_text(encoding="utf-8"))
        frame.write_text(MEASURE.format(width=width, page=page), encoding="utf-8")
        dom, _ = browse(frame, tmp_path / f"profile{i}", "--dump-dom")
        title = dom.split("<title>")[1].split("</title>")[0]
        assert json.loads(title) == [0, plots]


def test_it_prints(pages: list[Path], tmp_path: Path) -> None:
    for i, path in enumerate(pages):
        pdf = tmp_path / f"{i}.pdf"
        browse(path, tmp_path / f"profile{i}", f"--print-to-pdf={pdf}")
        assert pdf.read_bytes().startswith(b"%PDF")
