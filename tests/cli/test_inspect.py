"""`hasten inspect`: its tables, its other forms, and its errors."""

from __future__ import annotations

import csv
import json

import pytest
from typer.testing import CliRunner, Result

from hasten.cli.main import app


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["inspect", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def document() -> dict[str, object]:
    found: dict[str, object] = json.loads(
        run("scenes-qwen", "--text", 20, "--component", "transformer", "--time", "--device", "cpu", "--json").stdout
    )
    return found


def test_json_has_the_stages_the_layers_and_their_times(document: dict[str, object]) -> None:
    (transformer,) = document["components"]  # type: ignore[misc]
    assert transformer["class"] == "QwenImageTransformer2DModel"
    assert transformer["bytes"]["bf16"] == 2 * transformer["parameters"]
    assert transformer["calls"] == 100
    blocks = next(layer for layer in transformer["layers"] if layer["path"] == "transformer_blocks.0…7")
    assert blocks["count"] == 8
    assert 0 < blocks["seconds"] < 1.5 * transformer["seconds"]  # each is a median of its own
    attention = next(layer for layer in transformer["layers"] if layer["attention"])["attention"][0]
    assert attention["kind"] == "joint"
    assert attention["q"]["streams"] == ["encoder_hidden_states", "hidden_states"]
    assert sum(stage["parameters"] for stage in transformer["stages"]) == transformer["parameters"]


def test_the_terminal_shows_stages_and_folded_layers() -> None:
    shown = run("scenes-qwen", "--text", 20, "--component", "transformer", "--code").stdout
    assert "an image is 50 steps × 2 passes" in shown
    assert "transformer_blocks ×8" in shown
    assert "█" in shown
    assert "attn ×8" in shown
    assert "attention of Attention" in shown
    assert "transformer_qwenimage.py" in shown


def test_markdown_and_csv_hold_the_same_layers() -> None:
    markdown = run("scenes-qwen", "--text", 20, "-c", "transformer", "--match", "to_q$", "--markdown").stdout
    assert "| transformer_blocks.0…7.attn.to_q ×8 | Linear | 192 → 192 |" in markdown
    table = list(
        csv.DictReader(
            run("scenes-qwen", "--text", 20, "-c", "transformer", "--match", "to_q$", "--csv").stdout.splitlines()
        )
    )
    assert [row["layer"] for row in table] == ["transformer_blocks.0…7.attn.to_q ×8"]
    assert table[0]["inputs"] == "input 1×256×192"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--size", "big"), "--size big: write WIDTHxHEIGHT"),
        (("--depth", "deep"), "--depth deep: a whole number, or all"),
        (("--json", "--csv"), "choose one"),
        (("--sort", "time"), "times are measured with --time"),
        (("--component", "unet"), "has no component 'unet'; it has text_encoder, transformer, vae"),
    ],
)
def test_what_cannot_be_done_is_said(arguments: tuple[str, ...], said: str) -> None:
    assert said in " ".join(run("scenes-qwen", *arguments, code=2).stderr.split())
