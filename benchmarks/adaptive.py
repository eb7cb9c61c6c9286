"""Runs that choose their number of steps against runs of a fixed number with the same mean."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from hasten import load_plan
from hasten.generation import Result, Session
from hasten.metrics.fidelity import psnr
from hasten.metrics.scenes import score
from hasten.models import complete_plan
from hasten.plan.adaptive import THRESHOLDS
from hasten.sampling.adaptive import Respacer, suits
from hasten.sampling.scores import SCORES
from hasten.zoo.evaluation import held_out_prompts

STEPS, LONG = 50, 100
CALIBRATION_SEED = 4321
"""Of the prompts that chose the thresholds; the table's are others."""


@dataclass
class Row:
    """What one way of choosing the steps did over all prompts."""

    name: str
    steps: list[int] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)

    def add(self, prompt: str, result: Result, reference: Result) -> None:
        self.steps.append(result.record.steps.total)
        self.psnr.append(psnr(result.pixels, reference.pixels))
        self.right.append(score(prompt, result.image).right)

    def line(self) -> str:
        spread = f"{min(self.steps)} to {max(self.steps)}" if len(set(self.steps)) > 1 else ""
        worst = statistics.quantiles(self.psnr, n=10)[0] if len(self.psnr) > 1 else self.psnr[0]
        mean = statistics.mean(self.steps)
        return (
            f"| {self.name} | {mean:.1f} | {spread} | {1 - mean / STEPS:.0%} | "
            f"{statistics.mean(self.psnr):.2f} | {worst:.2f} | {statistics.mean(self.right):.0%} |"
        )


def table(model: str, prompts: int) -> str:
    """PSNR against a long run, and prompts that are drawn right, by the rule and by a fixed number of steps."""
    session = Session.open(load_plan({"model": model, "generation": {"num_inference_steps": STEPS}}), "a red circle")
    texts = held_out_prompts(prompts)
    references = {text: fixed(session, text, LONG) for text in _track(texts, f"{LONG} steps")}
    rows = [Row(f"all {STEPS} steps")]
    for text in _track(texts, f"{STEPS} steps"):
        rows[0].add(text, fixed(session, text, STEPS), references[text])
    for name in SCORES:
        row = Row(f"`{name}`")
        section = {"adaptive": {"uncertainty": {"method": name}}}
        for text in _track(texts, name):
            row.add(text, chosen(session, text, section), references[text])
        mean = round(statistics.mean(row.steps))
        alike = Row(f"{mean} steps for all")
        for text in _track(texts, f"{mean} steps"):
            alike.add(text, fixed(session, text, mean), references[text])
        rows += [row, alike]
    right = statistics.mean(score(text, result.image).right for text, result in references.items())
    head = [
        "| number of steps | mean | range | saved | PSNR dB | worst tenth | right |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    return "\n".join([*head, *(row.line() for row in rows)]) + (
        f"\n\nMeans over {prompts} held-out prompts, PSNR against {LONG} steps, of which {right:.0%} are right."
    )


def scores(model: str, prompts: int) -> str:
    """What the thresholds were chosen by: scores of other prompts, and how they go with the error at half the steps."""
    session = Session.open(load_plan({"model": model, "generation": {"num_inference_steps": STEPS}}), "a red circle")
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    errors: list[float] = []
    for text in _track(held_out_prompts(prompts, seed=CALIBRATION_SEED), "scores"):
        told, whole = watched(session, text)
        for name, value in told.items():
            found[name].append(value)
        errors.append(-psnr(fixed(session, text, STEPS // 2).pixels, whole.pixels))
    lines = [
        "| score | lowest | 10 % | median | 90 % | highest | rank correlation with the error | low, high |",
        "|---|" + "--:|" * 7,
    ]
    for name, values in found.items():
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        figures = (min(values), tenths[0], statistics.median(values), tenths[-1], max(values))
        together = statistics.correlation(_ranks(values), _ranks(errors))
        low, high = THRESHOLDS[name]
        lines.append(f"| `{name}` | {' | '.join(f'{x:.3g}' for x in figures)} | {together:.2f} | {low:g}, {high:g} |")
    return "\n".join(lines)


def watched(session: Session, prompt: str) -> tuple[dict[str, float], Result]:
    """All scores after the default warm-up, and the image of a run of all steps."""
    from hasten.plan.adaptive import WARMUP

    told: dict[str, float] = {}

    def choose(past: Sequence[Any], asked: int) -> tuple[int, float]:
        told.update({name: float(one(past).max()) for name, one in SCORES.items()})
        return asked, 0.0

    respacer = Respacer(session.pipe.scheduler, *suits(session.pipe.scheduler), WARMUP, choose)
    try:
        return told, fixed(session, prompt, STEPS)
    finally:
        respacer.remove()


def fixed(session: Session, prompt: str, steps: int) -> Result:
    """An image of so many steps, with nothing skipped."""
    return _small(session.run(prompt, 0, accelerated=False, steps=steps))


def chosen(session: Session, prompt: str, section: dict[str, Any]) -> Result:
    """An image whose run chooses its steps."""
    base = {"model": session.plan.model, "generation": {"num_inference_steps": STEPS}}
    plan = complete_plan(load_plan({**base, **section}))
    return _small(replace(session, plan=plan, prompts=(prompt,)).run(prompt, 0))


def _ranks(values: Sequence[float]) -> list[int]:
    order = sorted(values)
    return [order.index(value) for value in values]


def _small(result: Result) -> Result:
    return replace(result, latents=None, pixels=result.pixels.to(torch.float32))


def _track(texts: Sequence[str], what: str) -> Iterable[str]:
    return track(texts, what, console=Console(file=sys.stderr))
