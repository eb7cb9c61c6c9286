"""Markdown, HTML and drawings: complete, escaped, and loading nothing."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.reports import PROMPT, make
from hasten.bench.html import to_html
from hasten.bench.markdown import to_markdown
from hasten.bench.schema import STATEMENT, BenchReport, read_report, write_over
from hasten.bench.svg import Point, scatter, ticks, timeline
from hasten.bench.tables import overview
from hasten.errors import HastenError

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture(scope="module")
def report(folder: Path) -> BenchReport:
    return make(folder)


@pytest.fixture(scope="module")
def page(report: BenchReport, folder: Path) -> str:
    return to_html(report, folder)


def test_the_overview_holds_hand_computed_figures(report: BenchReport) -> None:
    rows = {row[0]: row for row in overview(report).rows}
    assert rows["reference"][1:6] == ("4.100 s", "1.00×", "10 of 10", "390.0 ms", "∞")
    assert rows["taylorseer"][1] == "2.000 s"
    assert rows["taylorseer"][2].startswith("2.00× (")
    assert rows["taylorseer"][3:8] == ("5 of 10", "180.0 ms", "31.00 dB", "0.9000", "0.1000")
    assert rows["fewer-steps 5"][5] == "26.00 dB"


def test_markdown_has_every_table_in_shape(report: BenchReport) -> None:
    text = to_markdown(report)
    for line in (
        "## Speed and quality",
        "## Where the time goes",
        "## GPU",
        "## Several images in one call",
        STATEMENT,
    ):
        assert line in text
    assert "`` hasten bench --prompt 'a `red` circle' ``" in text
    for block in re.findall(r"(?:^\|.*\n)+", text, re.M):
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}
        assert len(widths) == 1


def test_a_variant_that_failed_or_differs_is_marked(report: BenchReport) -> None:
    first, second, third = report.variants
    second = second.model_copy(update={"differs": ("steps 30 instead of 10",)})
    third = third.model_copy(update={"error": "no <such> thing"})
    marked = report.model_copy(update={"variants": (first, second, third)})
    text, page = to_markdown(marked), to_html(marked)
    assert "taylorseer \\*" in text
    assert "not comparable: taylorseer steps 30 instead of 10" in text
    assert "did not run: no \\<such\\> thing" in text
    assert 'class="apart"' in page
    assert 'class="error"' in page
    assert "no &lt;such&gt; thing" in page


def test_the_page_is_whole_and_escapes_what_others_wrote(page: str) -> None:
    class Tags(HTMLParser):
        """Every opened tag is closed by itself."""

        def __init__(self) -> None:
            super().__init__()
            self.stack: list[str] = []
            self.seen: list[str] = []

        def handle_starttag(self, tag: str, attrs: object) -> None:
            self.seen.append(tag)
            if tag not in ("meta", "link", "img", "br"):
                self.stack.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert self.stack.pop() == tag

    tags = Tags()
    tags.feed(page)
    assert tags.stack == []
    assert "b" in tags.seen  # figcaption's own
    assert "script" not in tags.seen
    assert PROMPT not in page
    assert "a &lt;b&gt;red&lt;/b&gt; circle &amp; a | pipe" in page
    assert tags.seen.count("img") == 3 + 2  # three images, two differences
    assert tags.seen.count("svg") == 2


def test_the_page_names_no_other_place(page: str) -> None:
    assert not re.findall(r"""(?:src|href|url\()\s*=?\s*["'(]?(?!data:)[a-z]*:?//""", page)
    assert set(re.findall(r'(?:src|href)="([a-z]+:)', page)) == {"data:"}
    assert "http" not in page.replace("http-equiv", "")


def test_images_out_of_the_reports_folder_are_not_shown(report: BenchReport, folder: Path, tmp_path: Path) -> None:
    samples = tuple(s.model_copy(update={"image": f"../{folder.name}/{s.image}"}) for s in report.samples)
    assert "<img" not in to_html(report.model_copy(update={"samples": samples}), tmp_path)


def test_without_jinja_the_way_out_is_told(report: BenchReport, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(HastenError, match=r"pip install 'hasten\[bench\]'"):
        to_html(report)


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_the_page_without_errors_or_requests(page: str, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    file.write_text(page, "utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
        *("--v=0", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={tmp_path / 'net.json'}"),
        f"--screenshot={tmp_path / 'page.png'}",
    ]
    done = subprocess.run([str(CHROMIUM), *flags, file.as_uri()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 10_000
    assert "CONSOLE" not in done.stderr
    # The log also holds what the browser does for itself; a page's requests name their file as the initiator or are
    # plain URLs of other places.
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', (tmp_path / "net.json").read_text("utf-8")))
    assert not [url for url in asked if "google" not in url and "gvt1" not in url]


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=10))
def test_ticks_are_few_and_span_all_values(values: list[float]) -> None:
    found = ticks(values)
    slack = 1e-6 * max(1, *map(abs, values))
    assert found[0] <= min(values) + slack
    assert found[-1] >= max(values) - slack
    assert 2 <= len(found) <= 10
    assert found == sorted(set(found))


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(5, 90), st.text(max_size=9)), min_size=1, max_size=8))
def test_a_scatter_is_sound_xml_inside_its_frame(points: list[tuple[float, float, str]]) -> None:
    printable = [
        Point(x, y, "".join(c for c in text if c.isprintable()), "plan", x / 2, x * 2) for x, y, text in points
    ]
    root = ElementTree.fromstring(scatter(printable, "speed-up <×>", "PSNR & more"))
    circles = list(root.iter("circle"))
    assert len(circles) == len(points)
    for circle in circles:
        assert 0 <= float(circle.attrib["cx"]) <= 760
        assert 0 <= float(circle.attrib["cy"]) <= 400


def test_nothing_to_draw_is_nothing() -> None:
    assert scatter([], "x", "y") == timeline([]) == ""


def test_a_timeline_has_a_cell_for_each_step(report: BenchReport) -> None:
    cells = list(ElementTree.fromstring(timeline(report.variants[1].steps)).iter("rect"))
    assert [cell.attrib["class"] for cell in cells] == ["computed", "skipped"] * 5


def test_a_report_that_cannot_be_read_says_why(report: BenchReport, tmp_path: Path) -> None:
    for text, message in (
        ("{", "is no report"),
        ("[]", "is no report"),
        ('{"version": 1}', "is no report of hasten bench: command"),
        ('{"version": 4}', "report of version 4"),
    ):
        (tmp_path / "report.json").write_text(text)
        with pytest.raises(HastenError, match=message):
            read_report(tmp_path)
    with pytest.raises(HastenError, match="no such file"):
        read_report(tmp_path / "none.json")


def test_a_report_is_plain_json_and_replaces_itself(report: BenchReport, tmp_path: Path) -> None:
    for _ in range(2):
        report.save(tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["report.json"]
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["version"] == 3
    assert data["summary"][1]["speedup"] == pytest.approx(4.1 / 2.05, rel=0.05)
    with pytest.raises(HastenError, match="cannot write"):
        write_over(tmp_path / "none" / "report.json", "")
