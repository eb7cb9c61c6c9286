"""One drawing of a model: sound SVG, every edge labelled, nothing asked for from elsewhere, and a browser shows it."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from hasten.cli.main import app
from hasten.inspect.diagram import Touched, draw, to_html
from hasten.inspect.inspection import Inspection, Size, inspect_model
from hasten.inspect.sources import find_source

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def unet() -> Inspection:
    return inspect_model(find_source("sd15"), only=["unet"])


@pytest.fixture(scope="module")
def transformer() -> Inspection:
    return inspect_model(find_source("scenes-qwen"), Size(text=20), only=["transformer"])


def drawn(found: Inspection, touched: Touched | None = None) -> ElementTree.Element:
    return ElementTree.fromstring(draw(found, found.components[0], touched))


def words(root: ElementTree.Element, kind: str) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text") if kind in text.attrib["class"].split()]


def test_a_unet_has_a_rung_for_each_skip_connection(unet: Inspection) -> None:
    rungs = words(drawn(unet), "skipped")
    assert len(rungs) == len(unet.components[0].skips) == 12
    assert rungs[0] == "320 × 64×64"
    assert rungs[-1] == "1280 × 8×8"


def test_every_edge_says_channels_and_resolution(unet: Inspection) -> None:
    edges = words(drawn(unet), "edge")
    assert len(edges) >= 24
    assert all(re.fullmatch(r"\d+ × \d+×\d+", edge) for edge in edges)
    assert set(words(drawn(unet), "band")) >= {"64×64", "32×32", "16×16", "8×8"}


def test_a_transformer_has_its_streams_and_folds_its_blocks(transformer: Inspection) -> None:
    root = drawn(transformer)
    assert any(name.startswith("×8   transformer_blocks.0…7") for name in words(root, "name"))
    assert "joint 3×64" in words(root, "what")
    inputs = words(root, "pilltext")
    assert any("encoder_hidden_states" in text for text in inputs)
    assert any(text.startswith("hidden_states") for text in inputs)


def test_boxes_lie_inside_and_do_not_overlap(unet: Inspection, transformer: Inspection) -> None:
    for found in (unet, transformer):
        root = drawn(found)
        _, _, width, height = map(float, root.attrib["viewBox"].split())
        kinds = ("convolution", "attention", "feed", "sampling", "other", "condition")
        boxes = [
            tuple(float(box.attrib[key]) for key in ("x", "y", "width", "height"))
            for box in root.iter(f"{SVG}rect")
            if set(box.attrib.get("class", "").split()) & set(kinds) and float(box.attrib["height"]) > 20
        ]
        assert boxes
        for x, y, w, h in boxes:
            assert 0 <= x <= x + w <= width
            assert 0 <= y <= y + h <= height
        for index, (x, y, w, h) in enumerate(boxes):
            for ox, oy, ow, oh in boxes[index + 1 :]:
                assert x + w <= ox or ox + ow <= x or y + h <= oy or oy + oh <= y


def test_what_a_plan_leaves_out_is_coloured(unet: Inspection) -> None:
    touched = Touched("deepcache", {"mid_block", "down_blocks.1"}, "site unet_branch 0")
    root = drawn(unet, touched)
    titles = [
        box.findtext(f"{SVG}title") or "" for box in root.iter(f"{SVG}rect") if "touched" in box.attrib.get("class", "")
    ]
    assert any(title.startswith("mid_block.") for title in titles)
    assert all(not title or title.startswith(("mid_block", "down_blocks.1")) for title in titles)
    assert any("left out at a skipped step by deepcache" in text for text in words(root, "figure"))


def test_the_command_draws_the_plan_of_a_bundled_model(tmp_path: Path) -> None:
    file = tmp_path / "qwen.html"
    done = CliRunner().invoke(
        app, ["inspect", "scenes-qwen", "--text", "20", "--diagram", str(file), "--plan", "taylorseer"]
    )
    assert done.exit_code == 0, done.output
    assert 'class="box touched"' in file.read_text("utf-8")
    for arguments, said in (
        (["sd15", "--diagram", "x.png"], "ends in .svg or .html"),
        (["sd15", "--plan", "deepcache"], "name its file with --diagram"),
    ):
        done = CliRunner().invoke(app, ["inspect", *arguments])
        assert said in done.output


@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
def test_a_browser_draws_it_without_errors_or_requests(unet: Inspection, tmp_path: Path) -> None:
    page = to_html(draw(unet, unet.components[0]), "sd15")
    file = tmp_path / "sd15.html"
    file.write_text(page, "utf-8")
    flags = [
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-dev-shm-usage"),
        *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--enable-logging=stderr"),
        *("--v=0", f"--user-data-dir={tmp_path / 'profile'}", f"--log-net-log={tmp_path / 'net.json'}"),
        *(f"--screenshot={tmp_path / 'page.png'}", "--window-size=1400,1600"),
    ]
    done = subprocess.run([str(CHROMIUM), *flags, file.as_uri()], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "page.png").stat().st_size > 30_000
    assert "CONSOLE" not in done.stderr
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', (tmp_path / "net.json").read_text("utf-8")))
    assert not [url for url in asked if "google" not in url and "gvt1" not in url]
    assert not re.findall(
        r"""(?:src|href|url\()\s*=?\s*["'(]?(?!data:|#)[a-z]*:?//""", page.replace('xmlns="http:', "")
    )
