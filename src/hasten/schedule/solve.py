"""From measurements to schedules that were tried: search by the Gram matrix, run the best few, keep the winner."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from math import log10
from statistics import fmean
from typing import NamedTuple

import torch

from hasten.generation import Session
from hasten.metrics.fidelity import psnr
from hasten.plan import load_plan
from hasten.schedule.measure import Measured, Run, timetable, watch
from hasten.schedule.problem import FORECASTS, Fitted, Forecast, Mask, Problem
from hasten.schedule.search import Candidate, evenly, frontier

Job = tuple[str, int]
"""Prompt and seed."""
ENOUGH = 4
"""Fewer prompts than these, and weights by least squares would be those of these prompts only."""
_PERFECT = 100.0
"""PSNR of an image that equals its reference, in means."""


@dataclass(frozen=True)
class Point:
    """One schedule of the frontier.

    Attributes:
        steps: the length of the run it is for.
        mask: the computed steps.
        predicted: the error that the Gram matrix expects in the final latent, relative to its root mean square.
        measured: the mean of that error over real runs; None where none was made.
        psnr: likewise of the images, in dB.
        weights: see `Forecast.section`.
    """

    steps: int
    mask: Mask
    forecast: Forecast
    predicted: float
    measured: float | None = None
    psnr: float | None = None
    weights: Fitted | None = None

    @property
    def section(self) -> dict[str, object]:
        """The `cache` section of a plan."""
        return self.forecast.section(self.mask, self.weights)

    @property
    def budget(self) -> int:
        return len(self.mask)


def problem_of(session: Session, measured: Measured, steps: int) -> Problem:
    """The search problem for a number of steps, measured or not."""
    table = timetable(session, steps)
    return measured.problem(table.sigmas[: len(table.response)], table.response)


def solve(
    session: Session,
    measured: Measured,
    steps: int,
    budgets: Sequence[int],
    jobs: Sequence[Job] = (),
    tries: int = 0,
    forecasts: Sequence[Forecast] = FORECASTS,
    progress: Callable[[str], None] = lambda what: None,
) -> list[Point]:
    """The best schedule for each number of computed steps.

    Args:
        session: the pipeline with the reference's plan.
        budgets: numbers of computed steps; those that leave nothing to skip are left out.
        jobs, tries: so many candidates per budget, and even gaps beside them, are run for these prompts, and the best
            is kept; without them the Gram matrix decides alone.
        forecasts: the predictors to choose among.
        progress: told what is being done.
    """
    problem = problem_of(session, measured, steps)
    length = problem.steps
    wanted = sorted({budget for budget in budgets if 1 <= budget < length})
    progress(f"searching masks for {length} steps")
    if measured.prompts < ENOUGH:
        forecasts = [forecast for forecast in forecasts if not forecast.fitted]
    found = frontier(problem, wanted, forecasts, keep=max(64, 4 * tries)) if wanted else {}
    session = at_steps(session, steps)
    references = {}
    if tries:
        for number, job in enumerate(jobs, start=1):
            progress(f"reference {number} of {len(jobs)} at {steps} steps")
            references[job] = watch(session, *job)
    points = []
    for budget in wanted:
        best = found[budget][0]
        point = _point(problem, best)
        trials = []
        candidates = [*_varied(found[budget], tries), *([evenly(problem, budget, forecasts)] if tries else [])]
        for number, candidate in enumerate(candidates, start=1):
            progress(f"{budget} of {length} computed: trying schedule {number} of {len(candidates)}")
            one = _point(problem, candidate)
            tried = [closed_loop(session, one, job, reference) for job, reference in references.items()]
            error, ratio = (fmean(column) for column in zip(*tried, strict=True))
            trials.append(replace(one, measured=error, psnr=ratio))
        points.append(min(trials, key=lambda trial: trial.measured or 0.0, default=point))
    return points


def at_steps(session: Session, steps: int) -> Session:
    """The same session for another number of steps."""
    generation = session.plan.generation.model_copy(update={"num_inference_steps": steps})
    return replace(session, plan=session.plan.model_copy(update={"generation": generation, "cache": None}))


def decoder_of(points: Sequence[Point]) -> float | None:
    """PSNR of an image whose latent is wrong by its whole size, in dB, by what was run; None where nothing was."""
    found = [point.psnr + 20 * log10(point.measured) for point in points if point.psnr and point.measured]
    return fmean(found) if found else None


class Tried(NamedTuple):
    """What became of a schedule: the relative error of the final latent, and the PSNR in dB."""

    error: float
    psnr: float


def _point(problem: Problem, candidate: Candidate) -> Point:
    error, mask, forecast = candidate
    return Point(problem.steps, mask, forecast, error, weights=problem.fitted(mask, forecast))


def closed_loop(session: Session, point: Point, job: Job, reference: Run) -> Tried:
    """Really run a schedule."""
    cache = load_plan({"cache": point.section}).cache
    accelerated = replace(session, plan=session.plan.model_copy(update={"cache": cache}))
    result = accelerated.run(*job)
    assert result.latents is not None
    moved = torch.linalg.vector_norm(result.latents.float().flatten() - reference.final)
    ratio = min(psnr(result.pixels, reference.pixels), _PERFECT)
    return Tried(float(moved / torch.linalg.vector_norm(reference.final)), ratio)


def _varied(candidates: Sequence[Candidate], count: int) -> list[Candidate]:
    """The best of every predictor first, then the next best: what the linear theory misses differs by predictor."""
    first = {candidate.forecast: candidate for candidate in reversed(candidates)}
    best = sorted(first.values(), key=lambda one: (one.error, FORECASTS.index(one.forecast)))
    rest = (candidate for candidate in candidates if candidate not in best)
    return [*islice((*best, *rest), count)]
