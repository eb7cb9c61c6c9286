"""The quality dial: what a word comes to, with a schedule stored for the model and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import prompted
from hasten import accelerate, load_plan
from hasten.cli.main import app
from hasten.errors import PlanError
from hasten.generation import Session
from hasten.loading import load
from hasten.models import bundled_folder, bundled_models
from hasten.quality import FLOORS, allowed_error, resolve_quality
from hasten.schedule import store
from tiny import qwen, qwen_call

STEPS = 8


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted.qwen()


@pytest.fixture
def schedules(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A calibration where `hasten schedule tiny` would have left it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path / "home"))
    points = [
        {"steps": STEPS, "computed": n, "predicted_error": e, "measured_error": m, "cache": {"mask": [*range(n)]}}
        for n, e, m in ((3, 0.07, 0.1), (4, 0.03, 0.035), (6, 0.015, None))
    ]
    stored = {
        "model": "tiny",
        "denoiser": store._denoiser(pipe),
        "scheduler": "FlowMatchEulerDiscreteScheduler",
        "adapters": [],
        "steps": STEPS,
        "prompts": 1,
        "size": [32, 32],
        "sigmas": [1.0],
        "gains": [1.0],
        "power": 1.0,
        "factor": [[1.0]],
        "frontier": points,
    }
    path = Path("schedules/tiny.json")
    path.parent.mkdir()
    path.write_text(json.dumps(stored))
    return path


def test_the_cheapest_stored_schedule_that_is_good_enough_is_taken(pipe: Any, schedules: Path) -> None:
    counts = {}
    for name in ("near-lossless", "high", "draft"):
        plan, note = resolve_quality(load_plan({"quality": name, "model": "tiny"}), pipe, STEPS)
        assert plan.quality is None
        assert str(schedules) in note
        counts[name] = len(plan.caches[0].mask or ())
    assert counts == {"near-lossless": 6, "high": 4, "draft": 3}


def test_what_the_decoder_makes_of_errors_is_counted(pipe: Any, schedules: Path) -> None:
    stored = json.loads(schedules.read_text()) | {"decoder": 20.0}
    schedules.write_text(json.dumps(stored))
    plan, _ = resolve_quality(load_plan({"quality": "near-lossless", "model": "tiny"}), pipe, STEPS)
    assert plan.caches[0].mask == [*range(4)]
    plan, _ = resolve_quality(load_plan({"quality": "high", "model": "tiny"}), pipe, STEPS)
    assert plan.caches[0].mask == [*range(3)]


@pytest.mark.parametrize(
    ("change", "steps", "why"),
    [
        ({}, 20, "has schedules for 8 steps, not for 20"),
        ({}, None, "not for an unknown number of"),
        ({"denoiser": "another"}, STEPS, "of another denoiser"),
    ],
)
def test_otherwise_a_tolerance_takes_its_place_and_the_note_says_why(
    pipe: Any, schedules: Path, change: dict[str, Any], steps: int | None, why: str
) -> None:
    schedules.write_text(json.dumps(json.loads(schedules.read_text()) | change))
    plan, note = resolve_quality(load_plan({"quality": "balanced", "model": "tiny"}), pipe, steps)
    assert plan.caches[0].method == "tolerance"
    assert plan.caches[0].tolerance == pytest.approx(allowed_error(FLOORS["balanced"]), rel=0.05)
    assert why in note


def test_better_quality_is_a_smaller_tolerance() -> None:
    errors = [allowed_error(floor) for floor in FLOORS.values()]
    assert errors == sorted(errors)


def test_the_record_carries_what_the_word_came_to(pipe: Any, schedules: Path) -> None:
    plan = {"quality": "draft", "generation": {"num_inference_steps": 12, "width": 32, "height": 32}}
    session = Session.open(plan, "a red circle", pipe=pipe)
    record = session.run("a red circle", 0).record
    assert record.plan.quality is None
    assert record.plan.caches[0].method == "tolerance"
    assert any(note.startswith("quality draft (PSNR of 30 dB): tolerance") for note in record.notes)
    again = session.run("a red circle", 0, accelerated=False).record
    assert not any(note.startswith("quality") for note in again.notes)


def test_a_pipeline_takes_the_word_too() -> None:
    pipe = qwen(blocks=2)
    with accelerate(pipe, {"quality": "draft"}) as handle:
        pipe(**qwen_call(steps=10))
        report = handle.report()
    assert handle.plan.caches[0].method == "tolerance"
    assert report.notes[0].startswith("quality draft")


def test_a_word_and_a_cache_exclude_each_other() -> None:
    with pytest.raises(PlanError, match="chooses the cache, which is given, too"):
        load_plan({"quality": "high", "cache": "reuse"})
    with pytest.raises(PlanError, match="near-lossless"):
        load_plan({"quality": "best"})
    result = CliRunner().invoke(app, ["generate", "a red circle", "--quality", "high", "--interval", "3"])
    assert result.exit_code == 2
    assert "--quality high" in result.stderr
    result = CliRunner().invoke(app, ["generate", "a red circle", "--quality", "high", "--dry-run"])
    assert "quality: high" in result.stdout


@pytest.mark.parametrize("model", bundled_models())
def test_the_bundled_models_come_with_schedules(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bundled = load(load_plan({"model": model, "device": "cpu"}))
    for steps in (50, 28, 20):
        computed = []
        for name in FLOORS:
            plan, note = resolve_quality(load_plan({"quality": name, "model": model}), bundled, steps)
            assert f"of {steps} steps by {bundled_folder() / model / 'hasten-schedule.json'}" in note
            computed.append(len(plan.caches[0].mask or ()))
        assert computed == sorted(computed, reverse=True)
        assert computed[0] < steps / 2
