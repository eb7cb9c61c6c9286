"""What the tables about schedules have in common: a model calibrated on some prompts, and runs of it on others."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.progress import track

from hasten import load_plan
from hasten.comparison import measure as compare
from hasten.generation import Result, Session
from hasten.record import Quality
from hasten.schedule.measure import Measured, measure
from hasten.zoo.evaluation import held_out_prompts

CALIBRATED_ON = 8
"""So many prompts, none of which a table measures on."""

Job = tuple[str, int]
"""Prompt and seed."""


def opened(model: str, steps: int | None = None) -> Session:
    """The model with its reference's plan."""
    plan = load_plan({"model": model})
    if steps is not None:
        plan = load_plan(plan, [f"generation.num_inference_steps={steps}"])
    return Session.open(plan, "a red circle")


def calibrated(session: Session) -> Measured:
    """As `hasten schedule --gain-prompts 1` does."""
    return measure(session, calibration_jobs(), gain_jobs=1, progress=lambda what: print(what, file=sys.stderr))


def calibration_jobs() -> list[Job]:
    return [(prompt, 10_000 + number) for number, prompt in enumerate(held_out_prompts(CALIBRATED_ON, seed=77))]


def held_out_jobs(count: int) -> list[Job]:
    """Other prompts and other seeds than the calibration's."""
    return list(zip(held_out_prompts(count), range(count), strict=True))


@dataclass
class Bench:
    """References of some jobs at some step counts, each made once, and what plans come to beside them."""

    session: Session
    jobs: list[Job]
    references: dict[tuple[int, Job], Result] = field(default_factory=dict)

    def reference(self, steps: int, job: Job) -> Result:
        if (steps, job) not in self.references:
            self.references[steps, job] = self._run(None, steps, job)
        return self.references[steps, job]

    def compare(
        self, cache: Mapping[str, Any] | None, steps: int, job: Job, of: int | None = None
    ) -> tuple[int, Quality]:
        """Computed steps and quality of one image.

        Args:
            of: the reference's number of steps, where that is another.
        """
        result = self._run(cache, steps, job)
        return result.record.steps.computed, compare(result, self.reference(of or steps, job))

    def each(self, cache: Mapping[str, Any] | None, steps: int, of: int | None = None) -> list[tuple[int, Quality]]:
        """For all jobs."""
        return [self.compare(cache, steps, job, of) for job in self.jobs]

    def _run(self, cache: Mapping[str, Any] | None, steps: int, job: Job) -> Result:
        generation = {**self.session.plan.to_dict()["generation"], "num_inference_steps": steps}
        plan = load_plan({**self.session.plan.to_dict(), "generation": generation, "cache": cache})
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="hasten skipped nothing")  # a setting too careful is a row, too
            return replace(self.session, plan=plan).run(*job)


def tracked(items: list[Any], what: str) -> Any:
    """A progress bar on stderr."""
    return track(items, what, console=Console(file=sys.stderr))
