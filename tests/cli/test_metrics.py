"""`hasten metrics`: the tables, the JSON, and the errors."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner, Result

from hasten.cli.main import app


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["metrics", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders: a picture that is one byte off, one that is identical, and one without a partner."""
    for side, level in (("a", 100), ("b", 101)):
        (tmp_path / side).mkdir()
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / side / "one.png")
        Image.new("RGB", (32, 32)).save(tmp_path / side / "same.png")
    Image.new("RGB", (32, 32)).save(tmp_path / "a" / "alone.png")
    return tmp_path / "a", tmp_path / "b"


def test_a_pair_is_a_table_of_values_and_of_what_is_missing(pair: tuple[Path, Path]) -> None:
    result = run(*(folder / "one.png" for folder in pair))
    assert "PSNR ↑" in result.stdout
    assert "48.13 dB" in result.stdout
    assert "0.0039" in result.stdout
    assert "not computed: MS-SSIM: MS-SSIM at 5 scales needs 176 pixels a side; these have 32" in result.stdout
    assert "not computed: LPIPS: no weights were named" in result.stdout
    assert result.stderr == ""


def test_identical_pictures_are_infinitely_alike(pair: tuple[Path, Path]) -> None:
    arguments = tuple(folder / "same.png" for folder in pair)
    assert "∞ (identical)" in run(*arguments).stdout
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["identical"] is True
    assert document["pairs"][0]["values"]["psnr"] is None


def test_folders_have_means_and_worst_values_and_say_what_is_alone(pair: tuple[Path, Path]) -> None:
    result = run(*pair)
    assert "1 identical left out" in result.stdout
    assert "scenes features" in result.stdout
    assert "FID" not in result.stdout
    assert "Inception" not in result.stdout
    assert result.stderr == "no partner: alone.png of A has none in B\n"
    document = json.loads(run(*pair, "--json").stdout)
    assert document["unmatched"] == {"image": ["alone.png"], "reference": []}
    assert document["summary"]["psnr"]["mean"] == pytest.approx(48.1308, abs=1e-3)
    assert {one["metric"]: one["features"] for one in document["distances"]} == {
        "frechet_distance": "scenes features",
        "kernel_distance": "scenes features",
    }
    assert "distances" in document
    assert "Distance of the sets" not in run(*pair, "--features", "none").stdout


def test_a_folder_is_a_film_when_asked_for(pair: tuple[Path, Path]) -> None:
    (pair[0] / "alone.png").unlink()
    result = run(*pair, "--video")
    assert "temporal L1" in result.stdout
    assert "pairs" not in result.stdout


def test_prompts_are_read_from_files(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    (tmp_path / "prompts.txt").write_text("a red circle\n\na red circle on a gray background\nno scene\n")
    result = run(pair[0], "--prompts", tmp_path / "prompts.txt", "--json")
    told = {one["metric"]: one["image"] for one in json.loads(result.stdout)["adherence"]}
    assert told["scenes_right"] == 0
    assert told["scenes_background"] == 0.5  # alone.png is black and was asked for in white
    (tmp_path / "prompts.json").write_text('{"one": "a red circle on a gray background"}')
    told = {
        one["metric"]: one["image"]
        for one in json.loads(run(pair[0], "--prompts", tmp_path / "prompts.json", "--json").stdout)["adherence"]
    }
    assert told["scenes_background"] == 1
    assert "scenes: objects" in run(pair[0], "--prompt", "a red circle").stdout


def test_latents_are_told_apart_from_pictures(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([3.0, 0.0]))
    np.save(tmp_path / "b.npy", np.array([0.0, 4.0]))
    result = run(tmp_path / "a.npy", tmp_path / "b.npy")
    assert "latent relative L2 ↓" in result.stdout
    assert "1.2500" in result.stdout
    assert "PSNR" not in result.stdout


def test_a_pair_that_cannot_be_compared_is_said(tmp_path: Path, pair: tuple[Path, Path]) -> None:
    Image.new("RGB", (32, 40)).save(pair[1] / "alone.png")
    assert "not compared: alone.png: pictures of different sizes" in run(*pair).stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.png", "one.png"], "none.png: no such file or folder"),
        (["one.png", "small.png"], "different sizes"),
        (["one.png", "same.png", "--clip", "no-model"], "nothing is downloaded"),
        (["one.png", "same.png", "--lpips", "no-model"], "LPIPS needs a file"),
        (["one.png", "same.png", "--features", "inception"], "no extractor"),
        (["one.png", "same.png", "--scores", "none.csv"], "cannot be read"),
        (["one.png", "--prompt", "a", "--prompts", "b"], "choose one"),
        (["one.png", "same.png", "--reference-prompts", "list.json"], "also needs the captions of A"),
        (["one.png", "--prompts", "none.txt"], "none.txt: cannot be read"),
        (["one.png", "--prompts", "bad.json"], 'prompts are {"name": "prompt"}'),
        (["one.png", "--prompts", "broken.json"], "is no JSON"),
    ],
)
def test_what_the_user_can_mend_is_one_line(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(pair[0])
    Image.new("RGB", (8, 8)).save("small.png")
    Path("bad.json").write_text("[1]")
    Path("broken.json").write_text("[")
    Path("list.json").write_text('["a"]')
    result = run(*arguments, code=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
