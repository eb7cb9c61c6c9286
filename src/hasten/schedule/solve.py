"""From measurements to schedules that were tried: search by the Gram matrix, run the best few, keep the winner."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, zip_longest
from math import ceil, exp, inf, isfinite, log, log10
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
        measured: the geometric mean of that error over real runs; None where none was made.
        psnr: the mean of the images' PSNR, in dB.
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
        jobs, tries: so many candidates per budget, and even gaps beside them, are run for two of these prompts, the
            better half of them for the next two, and the best is kept; without them the Gram matrix decides alone.
        forecasts: the predictors to choose among.
        progress: told what is being done.
    """
    problem = problem_of(session, measured, steps)
    length = problem.steps
    wanted = sorted({budget for budget in budgets if 1 <= budget < length})
    progress(f"searching masks for {length} steps")
    if measured.prompts < ENOUGH:
        forecasts = [forecast for forecast in forecasts if not forecast.fitted]
    found = frontier(problem, wanted, forecasts) if wanted else {}
    # How much of what cancels on paper remains differs by model: candidates that count on it and such that do not.
    linear = frontier(replace(problem, leak=0.0), wanted, forecasts) if wanted and tries > 1 else {}
    session = at_steps(session, steps)
    references = {}
    if tries:
        for number, job in enumerate(jobs, start=1):
            progress(f"reference {number} of {len(jobs)} at {steps} steps")
            references[job] = watch(session, *job)
    points = []
    for budget in wanted:
        point = _point(problem, found[budget][0])
        if references:
            candidates = [
                *_varied(found[budget], ceil(tries / 2)),
                *(_varied(linear[budget], tries // 2) if linear else []),
                evenly(problem, budget, forecasts),
            ]
            schedules = dict.fromkeys((candidate.mask, candidate.forecast) for candidate in candidates)
            rivals = [_point(problem, Candidate(problem.error(*one), *one)) for one in schedules]
            point = _best(session, rivals, references, progress)
        points.append(point)
    return points


def _best(
    session: Session, rivals: Sequence[Point], references: Mapping[Job, Run], progress: Callable[[str], None]
) -> Point:
    """The one that errs least in real runs: after every second prompt the better half goes on."""
    results: list[tuple[Point, list[Tried]]] = [(point, []) for point in rivals]
    for number, (job, reference) in enumerate(references.items(), start=1):
        for which, (point, tried) in enumerate(results, start=1):
            computed = f"{point.budget} of {point.steps} computed"
            progress(f"{computed}: prompt {number} of {len(references)}, schedule {which} of {len(results)}")
            tried.append(closed_loop(session, point, job, reference))
        results.sort(key=lambda result: _mean_error(result[1]))
        if number % 2 == 0:
            results = results[: ceil(len(results) / 2)]
    point, tried = results[0]
    return replace(point, measured=_mean_error(tried), psnr=fmean(one.psnr for one in tried))


def _mean_error(tried: Sequence[Tried]) -> float:
    """Geometric: images differ in what they bear, and the least patient one of them would decide alone."""
    return exp(fmean(log(max(one.error, 1e-12)) if isfinite(one.error) else inf for one in tried))


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
    """The best of each predictor, then the next best of each: what the linear theory misses differs by predictor."""
    each: dict[Forecast, list[Candidate]] = {}
    for candidate in candidates:
        kept = each.setdefault(candidate.forecast, [])
        if all(_apart(candidate.mask, other.mask) for other in kept):
            kept.append(candidate)
    turns = zip_longest(*each.values())
    return [*islice((candidate for turn in turns for candidate in turn if candidate is not None), count)]


def _apart(one: Mask, other: Mask) -> bool:
    """Whether a quarter of their steps differ: neighbours leave much the same error."""
    return 4 * len(set(one) - set(other)) >= len(one)
