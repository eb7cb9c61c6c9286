"""`hasten prune`: what it says, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

import prompted
from hasten.cli.main import app


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["prune", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_a_folder_is_pruned_and_said_to_be(tmp_path: Path) -> None:
    saved = prompted.save(prompted.qwen(blocks=4), tmp_path / "tiny", prompted.NATIVE)
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a\n")
    told = run(
        saved,
        "--to",
        tmp_path / "less",
        "--ratio",
        0.2,
        "--prompts",
        prompts,
        "--steps",
        2,
        "--device",
        "cpu",
        "--json",
    )
    document = json.loads(told.stdout[: told.stdout.rindex("}") + 1])
    assert document["class"] == "QwenImageTransformer2DModel"
    assert document["left"]["macs"] <= 0.8
    assert (tmp_path / "less" / "hasten.json").is_file()
    assert "is there already" in run(saved, "--to", tmp_path / "less", code=2).stderr
    assert "between 0 and 1" in run(saved, "--to", tmp_path / "x", "--ratio", 2, code=2).stderr
