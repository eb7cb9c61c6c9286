"""`hasten tune` from end to end on a tiny pipeline."""

from __future__ import annotations

import json
from pathlib import Path
from unittest import mock

import pytest
from tests.metrics.networks import save_clip
from typer.testing import CliRunner, Result

import prompted
from hasten import load_plan
from hasten.cli.main import app
from hasten.tune.search import Tuner
from hasten.tune.trials import Log

pytest.importorskip("optuna")

PROMPTS = "\n".join(["a red circle", "two squares", "a blue star", "a green ring", "a white cross"])


def run(*arguments: object, code: int = 0) -> Result:
    typed = ["tune", *map(str, arguments)]
    with mock.patch("sys.argv", ["hasten", *typed]):
        result = CliRunner().invoke(app, typed)
    assert result.exit_code == code, result.output
    return result


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tune")
    prompted.save(prompted.qwen(), folder / "tiny", {**prompted.NATIVE, "num_inference_steps": 10})
    (folder / "prompts.txt").write_text(PROMPTS)
    run(*command(folder))
    return folder


def command(folder: Path) -> list[object]:
    more = ["--floor", "psnr=12", "--budget", "20s", "--no-compile", "--tune-prompts", 2]
    return ["-m", folder / "tiny", *more, "--prompts", folder / "prompts.txt", "-o", folder / "out"]


def test_the_best_plan_loads_and_carries_its_evidence(tuned: Path) -> None:
    text = (tuned / "out/best.yaml").read_text()
    assert text.startswith(f"# Found by: hasten tune {' '.join(map(str, command(tuned)))}\n")
    assert load_plan(tuned / "out/best.yaml").generation.num_inference_steps == 10
    assert "held on 3 prompts" in text or "reference is already the fastest" in text or "no plan to recommend" in text
    for row in json.loads((tuned / "out/pareto.json").read_text()):
        load_plan({**row["plan"], "generation": {"num_inference_steps": 10, **row["plan"].get("generation", {})}})
    assert "hasten tune: " in (tuned / "out/report.html").read_text()


def test_every_trial_is_on_disk(tuned: Path) -> None:
    log = Log(tuned / "out/trials.jsonl")
    log.read()
    stages = [trial.stage for trial in log.trials]
    assert stages[0] == "reference"
    assert {"part", "joint"} <= set(stages)
    assert all(trial.samples or trial.skipped or trial.error for trial in log.trials)


def test_it_goes_on_where_it_was_only_when_asked(tuned: Path) -> None:
    before = (tuned / "out/trials.jsonl").read_text()
    more = ("--floor", "psnr=12", "--prompts", tuned / "prompts.txt", "--tune-prompts", 2, "-o", tuned / "out")
    assert "is there already" in run("-m", tuned / "tiny", *more, code=2).stderr
    run("-m", tuned / "tiny", *more, "--budget", "1s", "--no-compile", "--resume")
    assert (tuned / "out/trials.jsonl").read_text().startswith(before)


def test_the_clip_score_can_be_the_floor(tuned: Path, tmp_path: Path) -> None:
    save_clip(tmp_path / "clip")
    more = ("--prompts", tuned / "prompts.txt", "--tune-prompts", 2, "--no-compile", "--budget", "10s")
    floor = ("--floor", "clip=-0.5", "--clip", tmp_path / "clip")
    run("-m", tuned / "tiny", *more, *floor, "-o", tmp_path / "out")
    log = Log(tmp_path / "out/trials.jsonl")
    log.read()
    assert all(sample.clip is not None for trial in log.trials for sample in trial.samples)
    assert "clip ≥ -0.5" in (tmp_path / "out/best.yaml").read_text()


def test_an_interrupt_leaves_what_is_known(tuned: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(self: Tuner) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Tuner, "_calibrate", interrupted)
    more = ("--prompts", tuned / "prompts.txt", "--tune-prompts", 1, "--no-compile", "--budget", "5s")
    run("-m", tuned / "tiny", *more, "-o", tmp_path, code=130)
    assert (tmp_path / "trials.jsonl").exists()
    assert "no plan to recommend" in (tmp_path / "best.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--floor", "beauty=1"], "write one of psnr, ssim, latent_error, accuracy"),
        (["--floor", "clip=-0.01"], "name its folder (--clip FOLDER)"),
        (["--budget", "soon"], "write a time with its unit"),
        (["--objective", "fame"], "latency or memory"),
        (["--max-memory", "lots"], "must be bytes with a unit"),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_is_loaded(arguments: list[str], message: str) -> None:
    assert message in run(*arguments, code=2).stderr
