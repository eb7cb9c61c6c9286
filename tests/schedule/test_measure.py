"""Measured on tiny pipelines: responses of schedulers, the factor of the Gram matrix, and schedules that are run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from typer.testing import CliRunner, Result

import prompted
from hasten.cli.main import app
from hasten.errors import HastenError
from hasten.generation import Session
from hasten.plan import load_plan
from hasten.schedule import store
from hasten.schedule.measure import Measured, Run, measure, responses, timetable, watch
from hasten.schedule.search import evenly
from hasten.schedule.solve import Job, Point, Tried, at_steps, closed_loop, problem_of, solve

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

JOBS = [("a red circle", 0), ("two squares", 1)]


@pytest.fixture(scope="module")
def session() -> Session:
    plan = load_plan({"generation": {"num_inference_steps": 10, "width": 32, "height": 32}})
    return Session.open(plan, [prompt for prompt, _ in JOBS], pipe=prompted.qwen())


@pytest.fixture(scope="module")
def measured(session: Session) -> Measured:
    return measure(session, JOBS, gain_jobs=1, gain_steps=3)


def test_an_euler_step_of_a_flow_responds_with_its_step_in_sigma() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler.set_timesteps(7)
    found = responses(scheduler, (7,), {})
    assert found == pytest.approx(np.diff(scheduler.sigmas.numpy()), abs=1e-6)


@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False, prediction_type="v_prediction"),
        DPMSolverMultistepScheduler(),
        EulerDiscreteScheduler(),
    ],
    ids=lambda one: type(one).__name__,
)
def test_responses_add_up_to_what_a_run_of_the_scheduler_gives(scheduler: Any) -> None:
    """A deterministic scheduler is linear: its last sample is that of silence plus the responses to each output."""
    steps = 6
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(steps, generator=generator)
    finals = []
    for factor in (0.0, 1.0):
        scheduler.set_timesteps(steps)
        sample = torch.full((1, 1, 1, 1), 0.5)
        for timestep, value in zip(scheduler.timesteps, values * factor, strict=True):
            sample = scheduler.step(value.view(1, 1, 1, 1), timestep, sample, return_dict=False)[0]
        finals.append(float(sample))
    scheduler.set_timesteps(steps)
    assert finals[1] - finals[0] == pytest.approx(float(responses(scheduler, (steps,), {}) @ values.numpy()), abs=1e-4)


def test_watching_changes_nothing_and_sees_the_whole_run(session: Session) -> None:
    plain = session.run(*JOBS[0], accelerated=False).latents
    run = watch(session, *JOBS[0])
    assert plain is not None
    assert torch.equal(plain.flatten(), run.final)
    assert len(run.outputs) == len(run.response) == 10
    assert "step" not in vars(session.pipe.scheduler)
    # The run itself is the sum of its outputs times the responses, beside the noise that it began with.
    other = watch(session, "two squares", JOBS[0][1])
    moved = sum(a * (y - z) for a, y, z in zip(run.response, run.outputs, other.outputs, strict=True))
    assert torch.allclose(run.final - other.final, moved.float(), atol=1e-4)


def test_the_factor_is_the_gram_matrix_of_the_outputs(session: Session, measured: Measured) -> None:
    runs = [torch.stack(watch(session, *job).outputs).double() for job in JOBS]
    gram = sum(outputs @ outputs.T / outputs.shape[1] for outputs in runs) / len(runs)
    assert measured.factor @ measured.factor.T == pytest.approx(gram.numpy(), rel=1e-5)
    assert measured.prompts == 2
    assert np.isfinite(measured.gains).all()
    assert (measured.gains > 0).all()


def test_the_measured_levels_need_no_interpolation(session: Session, measured: Measured) -> None:
    problem = problem_of(session, measured, 10)
    assert problem.gram == pytest.approx(measured.factor @ measured.factor.T, rel=1e-6)
    assert problem.impact == pytest.approx(measured.gains * timetable(session, 10).response, rel=1e-6)


def test_solved_schedules_are_what_the_cache_computes(session: Session, measured: Measured) -> None:
    points = solve(session, measured, 10, [4, 6, 99], jobs=JOBS[:1], tries=2)
    assert [point.budget for point in points] == [4, 6]
    for point in points:
        assert point.measured is not None
        reference = watch(session, *JOBS[0])
        assert closed_loop(session, point, JOBS[0], reference) == pytest.approx((point.measured, point.psnr))
        cache = load_plan({"cache": point.forecast.section(point.mask)})
        assert cache.cache is not None
        assert cache.cache.mask == list(point.mask)


def test_what_is_kept_is_no_worse_than_even_gaps(session: Session, measured: Measured) -> None:
    problem, reference = problem_of(session, measured, 10), watch(session, *JOBS[0])
    for point in solve(session, measured, 10, [3, 4, 5], jobs=JOBS[:1], tries=1):
        even = evenly(problem, point.budget)
        assert even.mask[0] == 0
        assert even.mask[-1] == 9
        assert set(np.diff(even.mask)) <= {9 // (point.budget - 1), -(-9 // (point.budget - 1))}
        other = Point(10, even.mask, even.forecast, even.error, weights=problem.fitted(even.mask, even.forecast))
        assert point.measured is not None
        assert point.measured <= closed_loop(session, other, JOBS[0], reference).error


def test_the_better_half_is_run_for_the_next_two_prompts(
    session: Session, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: dict[Job, list[Point]] = {}

    def closed_loop(session: Session, point: Point, job: Job, reference: Run) -> Tried:
        runs.setdefault(job, []).append(point)
        # The patient image bears everything alike; the other one bears the third candidate best.
        return Tried(1.0 if job != jobs[1] or len(runs[job]) != 3 else 0.1, 30.0)

    monkeypatch.setattr("hasten.schedule.solve.closed_loop", closed_loop)
    jobs = [*JOBS, ("a star", 2), ("a ring", 3)]
    (point,) = solve(session, measured, 10, [4], jobs=jobs, tries=7)
    every, half = len(runs[jobs[0]]), len(runs[jobs[2]])
    assert runs[jobs[1]] == runs[jobs[0]]
    assert runs[jobs[3]] == runs[jobs[2]]
    assert 2 < every <= 8
    assert half == -(-every // 2)
    assert runs[jobs[2]][0] == runs[jobs[1]][2]
    assert set(runs[jobs[2]]) <= set(runs[jobs[0]])
    assert (point.mask, point.forecast) == (runs[jobs[1]][2].mask, runs[jobs[1]][2].forecast)
    assert point.psnr == 30.0


def test_a_schedule_that_comes_to_nothing_is_never_kept(
    session: Session, measured: Measured, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[Point] = []

    def closed_loop(session: Session, point: Point, job: Job, reference: Run) -> Tried:
        tried.append(point)
        return Tried(0.5 if len(tried) == 3 else float("nan"), 30.0)

    monkeypatch.setattr("hasten.schedule.solve.closed_loop", closed_loop)
    (point,) = solve(session, measured, 10, [4], jobs=JOBS[:1], tries=7)
    assert (point.mask, point.forecast, point.measured) == (tried[2].mask, tried[2].forecast, pytest.approx(0.5))


def test_other_step_counts_are_solved_without_measuring(session: Session, measured: Measured) -> None:
    (point,) = solve(session, measured, 14, [6])
    assert point.steps == 14
    assert point.measured is None
    assert len(at_steps(session, 14).run(*JOBS[0]).record.report or {}) == 0


def test_a_calibration_survives_the_disk_and_holds_for_its_model_only(
    session: Session, measured: Measured, tmp_path: Path
) -> None:
    calibration = store.calibration_of(session, measured)
    path = tmp_path / "tiny.json"
    path.write_text(store.text(calibration))
    assert store.read(path) == calibration
    assert store.read(path).measured.factor == pytest.approx(measured.factor, rel=1e-5, abs=1e-6)
    assert [len(row) for row in calibration.factor] == list(range(1, len(calibration.sigmas) + 1))
    store.check_fits(calibration, session.pipe, "tiny")
    with pytest.raises(HastenError, match="of another scheduler"):
        store.check_fits(calibration.model_copy(update={"scheduler": "DDIMScheduler"}), session.pipe, "tiny")
    path.write_text(store.text(calibration).replace('"gains"', '"pains"'))
    with pytest.raises(HastenError, match="gains: Field required"):
        store.read(path)
    path.write_text(store.text(calibration.model_copy(update={"factor": []})))
    with pytest.raises(HastenError, match="factor: List should have at least 1 item"):
        store.read(path)
    with pytest.raises(HastenError, match="hasten schedule MODEL"):
        store.read(tmp_path / "none.json")


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["schedule", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_the_command_writes_a_calibration_and_plans_and_solves_again_from_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = prompted.save(prompted.qwen(), tmp_path / "tiny", {**prompted.NATIVE, "num_inference_steps": 8})
    few = ("--prompts", "builtin:1", "--gain-prompts", 0, "--tries", 1)
    result = run(model, *few, "--budgets", "3,5")
    assert "expected error" in result.stdout
    stored = json.loads(Path("schedules/tiny.json").read_text())
    assert [(point["steps"], point["computed"]) for point in stored["frontier"]] == [(8, 3), (8, 5)]
    plan = load_plan(Path("schedules/tiny_8_steps_5_computed.yaml"))
    assert plan.cache is not None
    assert plan.cache.mask == stored["frontier"][1]["cache"]["mask"]

    run(model, *few, "--from", "schedules/tiny.json", "--for", 6, "--budgets", 3, "-o", "six")
    assert load_plan(Path("six/tiny_6_steps_3_computed.yaml")).generation.num_inference_steps == 6
    assert "whole numbers" in run(model, "--budgets", "few", code=2).stderr
