"""`hasten bench`, as a person meets it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.metrics.networks import save_clip
from typer.testing import CliRunner, Result

import prompted
from hasten.bench.schema import read_report
from hasten.cli.main import app

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(prompted.save(prompted.qwen(), tmp_path_factory.mktemp("models") / "tiny", prompted.NATIVE))


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["bench", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_three_reports_are_written_and_resume_finds_nothing_to_do(model: str, here: Path) -> None:
    (here / "mine.yaml").write_text("cache: {method: reuse, interval: 3}\n")
    result = run(
        "-m", model, "--plans", "mine.yaml", "--prompt", PROMPT, "--rounds", 1, "--batch-sizes", "1", "-o", "b"
    )
    assert sorted(path.name for path in (here / "b").iterdir()) == ["images", "report.html", "report.json", "report.md"]
    for word in ("speed-up", "mine", "fewer-steps", "b/report.html"):
        assert word in result.stdout
    report = read_report(here / "b")
    assert report.complete
    assert [batch.size for batch in report.batches] == [1, 1]
    assert report.load_seconds is not None
    assert "data:image/png" in (here / "b" / "report.html").read_text()

    arguments = ("-m", model, "-p", "mine.yaml", "--prompt", PROMPT, "--rounds", 1, "--batch-sizes", 1, "-o", "b")
    assert "--resume" in run(*arguments, code=2).stderr
    again = json.loads(run(*arguments, "--resume", "--json").stdout)
    assert again["samples"] == report.model_dump(mode="json")["samples"]
    assert again["sessions"] == 2


def test_the_table_keeps_the_names_where_not_all_columns_fit(
    model: str, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hasten.cli.console.out.width", 80)
    save_clip(here / "clip")
    result = run("-m", model, "-p", "reuse", "--prompt", PROMPT, "--rounds", 1, "--clip", "clip", "-o", "b")
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert [line.split()[0] for line in lines[:3]] == ["variant", "reference", "reuse"]
    assert "PSNR" in lines[0]
    assert "CLIP score" not in lines[0]
    assert "CLIP score" in (here / "b" / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plans", "taylorser"], "did you mean 'taylorseer'"),
        (["--sweep", "cache.interval"], "--sweep cache.interval"),
        (["--sweep", "cache.intervall=2"], "did you mean 'interval'"),
        (["--batch-sizes", "1,x"], "--batch-sizes 1,x"),
        (["--prompts", "none.txt"], "builtin:20"),
        (["--steps", "0"], "--steps 0"),
        (["--peers", "--peer", "tgate"], "did you mean 't-gate'"),
        (["--peer", "deepcache:interval=3"], "allowed: cache_interval"),
    ],
)
def test_mistakes_end_in_one_message_before_anything_is_loaded(
    model: str, here: Path, arguments: list[str], message: str
) -> None:
    result = run("-m", model, *arguments, code=2)
    assert message in " ".join(result.stderr.split())
    assert not (here / "outputs").exists()


def test_ctrl_c_leaves_a_report_and_resume_ends_it(model: str, here: Path) -> None:
    arguments = ["bench", "-m", model, "--prompt", PROMPT, "--seeds", "400", "-o", "b", "--quiet"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "hasten", *arguments], stderr=subprocess.PIPE, env=environment, text=True
    )
    deadline = time.monotonic() + 240
    while not (here / "b" / "report.json").exists() and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130, stderr
    assert "interrupted" in stderr
    assert "Traceback" not in stderr
    report = read_report(here / "b")
    assert not report.complete
    assert report.summary
    assert "interrupted: this is what was measured" in (here / "b" / "report.md").read_text()
    assert (here / "b" / "report.html").exists()
