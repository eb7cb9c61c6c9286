"""Runs that choose their number of steps against runs of a fixed number with the same mean."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import track

from hasten import load_plan
from hasten.calling import batched, call_arguments
from hasten.generation import Result, Session
from hasten.metrics.fidelity import psnr
from hasten.metrics.scenes import score
from hasten.models import complete_plan
from hasten.plan.adaptive import THRESHOLDS, WARMUP
from hasten.sampling.adaptive import Respacer, suits
from hasten.sampling.scores import SCORES, Prediction
from hasten.zoo.evaluation import held_out_prompts

STEPS, LONG, SHORTER, BATCH = 50, 100, (25, 15), 8
Item = TypeVar("Item")
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
        worst = statistics.quantiles(self.psnr, n=10, method="inclusive")[0] if len(self.psnr) > 1 else self.psnr[0]
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
    """What the thresholds were chosen by: scores of other prompts, and how they go with the error of shorter runs."""
    session = Session.open(load_plan({"model": model, "generation": {"num_inference_steps": STEPS}}), "a red circle")
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    errors: dict[int, list[float]] = {steps: [] for steps in SHORTER}
    texts = held_out_prompts(prompts, seed=CALIBRATION_SEED)
    for start in _track(range(0, prompts, BATCH), "scores"):
        batch = texts[start : start + BATCH]
        told, whole = watched(session, batch)
        for name, values in told.items():
            found[name] += values
        for steps, differences in errors.items():
            shorter = latents(session, batch, steps)
            differences += ((shorter - whole).flatten(1).norm(dim=1) / whole.flatten(1).norm(dim=1)).tolist()
    heads = [f"with the error at {steps}" for steps in SHORTER]
    head = f"| score | lowest | 10 % | median | 90 % | highest | {' | '.join(heads)} | low, high |"
    lines = [head, "|---|" + "--:|" * (6 + len(SHORTER))]
    for name, values in found.items():
        tenths = statistics.quantiles(values, n=10, method="inclusive")
        figures = (min(values), tenths[0], statistics.median(values), tenths[-1], max(values))
        together = [statistics.correlation(_ranks(values), _ranks(error)) for error in errors.values()]
        cells = [*(f"{x:.3g}" for x in figures), *(f"{x:.2f}" for x in together)]
        low, high = THRESHOLDS[name]
        lines.append(f"| `{name}` | {' | '.join(cells)} | {low:g}, {high:g} |")
    spread = ", ".join(f"{min(e):.3f} to {max(e):.3f} at {steps} steps" for steps, e in errors.items())
    return "\n".join(lines) + (
        f"\n\nOver {prompts} prompts that are not in the table above, after {WARMUP} of {STEPS} steps. With the error: "
        f"rank correlation with the relative difference of the latents from those of {STEPS} steps, which is {spread}."
    )


def watched(session: Session, texts: Sequence[str]) -> tuple[dict[str, list[float]], torch.Tensor]:
    """All scores after the default warm-up, image by image, and the latents of runs of all steps."""
    told: dict[str, list[float]] = {}

    def choose(past: Sequence[Prediction], asked: int) -> tuple[int, float]:
        told.update({name: one(past).tolist() for name, one in SCORES.items()})
        return asked, 0.0

    respacer = Respacer(session.pipe.scheduler, *suits(session.pipe.scheduler), WARMUP, choose)
    try:
        return told, latents(session, texts, STEPS)
    finally:
        respacer.remove()


def latents(session: Session, texts: Sequence[str], steps: int) -> torch.Tensor:
    """The last latents of one call for several prompts, each with the noise of seed 0."""
    arguments = batched(call_arguments(session.pipe, session.plan, texts[0], 0).arguments, 0, len(texts))
    noise = [torch.Generator("cpu").manual_seed(0) for _ in texts]
    own = {"prompt": list(texts), "generator": noise, "num_inference_steps": steps, "output_type": "latent"}
    with torch.no_grad():
        result: torch.Tensor = session.pipe(**{**arguments, **own}).images
    return result


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


def _track(items: Sequence[Item], what: str) -> Iterable[Item]:
    return track(items, what, console=Console(file=sys.stderr))
