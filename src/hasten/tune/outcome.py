"""What a tuning comes to: the best plan with its evidence, the Pareto set, and a page to look at."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.bench.schema import BenchReport, Sample, write_over
from hasten.bench.statistics import pareto
from hasten.bench.tables import find
from hasten.bench.variants import REFERENCE
from hasten.plan import Plan
from hasten.plan.schema import dump
from hasten.tune.floors import Floor, Verdict, judge
from hasten.tune.trials import Trial, Values

if TYPE_CHECKING:
    from hasten.tune.search import Tuner

BEST, PARETO, PAGE = "best.yaml", "pareto.json", "report.html"


@dataclass(frozen=True)
class Checked:
    """A finalist on the held-out prompts.

    Attributes:
        speedup, low: the median of paired ratios and the lower end of its 95 % interval.
    """

    trial: Trial
    seconds: float
    speedup: float
    low: float | None
    peak_bytes: int
    verdicts: tuple[Verdict, ...]

    @property
    def holds(self) -> bool:
        return all(verdict.holds for verdict in self.verdicts)


@dataclass(frozen=True)
class Outcome:
    """All of it.

    Attributes:
        reference: seconds of an image of the reference, on the held-out prompts where it got that far.
        checked: the finalists, as far as they were checked.
        front: of all trials on the tuning prompts, those that no other beats in cost and quality, the cheapest first.
        best: None where nothing that was checked is faster (or smaller) and holds.
        tried, failed: numbers of trials.
    """

    base: Plan
    floors: tuple[Floor, ...]
    objective: str
    reference: float
    checked: tuple[Checked, ...]
    front: tuple[tuple[Trial, float], ...]
    best: Checked | None
    tried: int
    failed: tuple[Trial, ...]
    images: int
    command: str

    @property
    def summary(self) -> str:
        """One sentence."""
        floors = ", ".join(map(str, self.floors)) or "no floor"
        if self.best is not None:
            sure = "" if self.best.low is None else f" (at least {self.best.low:.2f}× by its 95 % interval)"
            return (
                f"{self.best.seconds:.2f} s an image instead of {self.reference:.2f} s: {self.best.speedup:.2f}×"
                f"{sure}; "
                f"{floors} held on {self.images} prompts that nothing was chosen by"
            )
        if not self.checked:
            why = "nothing that was tried holds the floors on the tuning prompts" if not self.front else "not checked"
            return f"no plan to recommend: {why} ({floors})"
        if not any(one.holds for one in self.checked):
            return f"no plan to recommend: none of the {len(self.checked)} finalists held {floors} on held-out prompts"
        return "the reference is already the fastest: no plan that holds the floors was faster on held-out prompts"

    def write(self, folder: Path) -> list[Path]:
        """Write `best.yaml`, `pareto.json` and `report.html`."""
        paths = [
            write_over(folder / BEST, self._best_text()),
            write_over(folder / PARETO, json.dumps([_row(*one) for one in self.front], indent=1) + "\n"),
        ]
        return [*paths, write_over(folder / PAGE, page(self))]

    def _best_text(self) -> str:
        lines = [f"# Found by: {self.command}", f"# {self.summary}."]
        if self.best is not None:
            lines += [f"# {verdict}" for verdict in self.best.verdicts]
            lines.append(f"# peak memory {self.best.peak_bytes / 2**20:.0f} MiB")
        return "\n".join(lines) + "\n" + dump(plan_values(self.base, self.best.trial.values if self.best else {}))


def plan_values(base: Plan, values: Values) -> dict[str, Any]:
    """A plan of its own: the model, its number of steps, and what was chosen."""
    steps = {"num_inference_steps": base.generation.num_inference_steps}
    rest = {key: value for key, value in values.items() if key not in ("cache", "generation")}
    return {
        "version": 1,
        "model": base.model,
        **rest,
        "cache": values.get("cache"),
        "generation": {**steps, **values.get("generation", {})},
    }


def finished(tuner: Tuner) -> Outcome:
    """From a tuner's trials and its report."""
    report = tuner.report
    checked: tuple[Checked, ...] = ()
    if report is not None and report.samples:
        checked = _checked(tuner.checked, report, tuner.floors)
    known = any(trial.stage == "reference" for trial in tuner.log.trials)
    whole = [trial for trial in tuner.log.trials if trial.stage == "joint" and tuner.fits(trial)] if known else []
    front = pareto([(-tuner.cost(trial), tuner.margin(trial)) for trial in whole])
    able = [
        one
        for one in checked
        if one.holds
        and (tuner.max_bytes is None or one.peak_bytes <= tuner.max_bytes)
        and (tuner.objective == "memory" or one.low is None or one.low > 1)
    ]
    reference = find(report, REFERENCE) if report is not None else None
    seconds = reference.median if reference is not None else (tuner.reference.seconds if known else None)
    return Outcome(
        base=tuner.base,
        floors=tuple(tuner.floors),
        objective=tuner.objective,
        reference=seconds or 0.0,
        checked=checked,
        front=tuple((whole[index], tuner.margin(whole[index])) for index in reversed(front)),
        best=min(able, key=lambda one: one.peak_bytes if tuner.objective == "memory" else one.seconds, default=None),
        tried=sum(bool(trial.samples) for trial in tuner.log.trials),
        failed=tuple(trial for trial in tuner.log.trials if trial.error is not None),
        images=len(report.of(REFERENCE)) if report is not None else 0,
        command=tuner.command,
    )


def _checked(trials: Sequence[Trial], report: BenchReport, floors: Sequence[Floor]) -> tuple[Checked, ...]:
    plans = [variant for variant in report.variants if variant.kind == "plan"]
    found = []
    for trial, variant in zip(trials, plans, strict=False):
        summary = find(report, variant.name)
        pairs = _pairs(report, variant.name)
        if summary is None or not pairs:
            continue
        found.append(
            Checked(
                trial,
                summary.median,
                summary.speedup or 0.0,
                summary.speedup_low,
                summary.peak_bytes,
                tuple(judge(floor, pairs) for floor in floors),
            )
        )
    return tuple(found)


def _pairs(report: BenchReport, variant: str) -> list[tuple[Sample, Sample]]:
    references = {(one.round, one.prompt, one.seed): one for one in report.of(REFERENCE)}
    samples = [one for one in report.of(variant) if one.round == 0]
    return [(one, references[one.round, one.prompt, one.seed]) for one in samples if one.round == 0]


def _row(trial: Trial, margin: float) -> dict[str, Any]:
    return {
        "seconds": trial.seconds,
        "peak_bytes": trial.peak_bytes,
        "above_the_floor": margin,
        "chosen": trial.chosen,
        "plan": trial.values,
    }


def page(outcome: Outcome) -> str:
    """The report as one HTML page that loads nothing.

    Raises:
        HastenError: Jinja2 is not installed.
    """
    from hasten.bench.html import environment, markup
    from hasten.bench.svg import Point, scatter

    points = [
        Point(outcome.reference / trial.seconds, margin, str(number), "plan")  # as in the table below it
        for number, (trial, margin) in enumerate(outcome.front, start=1)
        if trial.seconds
    ]
    plot = scatter(points, "speed-up (×)", "above the floor (dB)")
    text: str = (
        environment()
        .get_template("tune.html.j2")
        .render(
            outcome=outcome,
            plot=markup(plot) if plot else None,
            front=[(trial, margin, short(trial)) for trial, margin in outcome.front],
            checked=[(one, short(one.trial)) for one in outcome.checked],
            failed=[(short(trial), trial.error) for trial in outcome.failed],
            best=dump(plan_values(outcome.base, outcome.best.trial.values)) if outcome.best is not None else None,
        )
    )
    return text


def short(trial: Trial) -> str:
    """What was chosen, in a line."""
    parts = []
    for name, option in trial.chosen.items():
        if option in ("as it is", "none") or name in ("share", "tolerance"):
            continue
        if name == "cache":
            section = trial.values.get("cache") or {}
            mask = section.get("mask")
            parts.append(f"{len(mask)} steps computed" if mask else f"tolerance {section.get('tolerance')}")
        else:
            parts.append(f"{option} steps" if name == "steps" else f"{name} {option}")
    return ", ".join(parts) or "nothing changed"
