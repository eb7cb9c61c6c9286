"""Which predictor is nearest to the reference at equal computed steps."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.progress import track

from hasten import load_plan
from hasten.comparison import measure
from hasten.generation import Session
from hasten.models import complete_plan
from hasten.zoo.evaluation import held_out_prompts

INTERVALS = (4,)
STEPS = 50


def variants() -> Iterator[tuple[str, dict[str, Any]]]:
    """Names and cache settings of every row."""
    for site in ("residual", "output"):
        yield f"reuse | {site} | – | –", {"method": "reuse", "site": site}
        for damping in (1.0, 0.75):
            for order in (1, 2):
                settings = {"method": "taylorseer", "site": site, "order": order, "damping": damping}
                yield f"taylor {order} | {site} | index | {damping:g}", {**settings, "predictor": "taylor"}
                for coordinate in ("index", "sigma"):
                    more = {**settings, "predictor": "poly", "coordinate": coordinate}
                    yield f"poly {order} | {site} | {coordinate} | {damping:g}", more


def table(model: str, prompts: int) -> str:
    """Median PSNR in dB over the prompts, for three intervals; with as many steps computed in every row of a column."""
    rows = [*dict(variants()).items()]
    computed: dict[int, int] = {}
    found: dict[tuple[str, int], list[float]] = {}
    base = {"model": model, "generation": {"num_inference_steps": STEPS}}
    session = Session.open(load_plan(base), "a red circle")
    for prompt in track(held_out_prompts(prompts, "full"), "prompts", console=Console(file=sys.stderr)):
        reference = session.run(prompt, 0, accelerated=False)
        for interval in INTERVALS:
            for name, cache in rows:
                plan = complete_plan(load_plan({**base, "cache": {**cache, "interval": interval}}))
                result = replace(session, plan=plan, prompts=(prompt,)).run(prompt, 0)
                computed[interval] = result.record.steps.computed
                found.setdefault((name, interval), []).append(_decibels(measure(result, reference).psnr))
            fewer = session.run(prompt, 0, accelerated=False, steps=computed[interval])
            found.setdefault(("fewer steps | – | – | –", interval), []).append(
                _decibels(measure(fewer, reference).psnr)
            )
    return render(found, computed, prompts)


def render(found: dict[tuple[str, int], list[float]], computed: dict[int, int], prompts: int) -> str:
    """The medians as a Markdown table; the best of each column is bold."""
    heads = " | ".join(f"interval {interval}: {computed[interval]} of {STEPS} computed" for interval in INTERVALS)
    lines = [f"| predictor | site | coordinate | damping | {heads} |", "|---|---|---|---|" + "--:|" * len(INTERVALS)]
    best = {i: max(statistics.median(found[name, i]) for name in dict.fromkeys(n for n, _ in found)) for i in INTERVALS}
    for name in dict.fromkeys(name for name, _ in found):
        cells = []
        for interval in INTERVALS:
            value = statistics.median(found[name, interval])
            cells.append(f"**{value:.1f}**" if value == best[interval] else f"{value:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nMedian PSNR in dB to the reference over {prompts} held-out prompts."


def _decibels(psnr: float | None) -> float:
    return 100.0 if psnr is None else psnr
