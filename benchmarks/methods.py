"""Every caching method on one model, at settings that compute about a third and about a fifth of the steps."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from rich.console import Console
from rich.progress import track

from hasten import load_plan
from hasten.caching.methods import METHODS, Method
from hasten.comparison import measure
from hasten.errors import HastenError
from hasten.generation import Result, Session
from hasten.metrics.scenes import score
from hasten.models import complete_plan
from hasten.zoo.evaluation import held_out_prompts

STEPS = 50
INTERVALS = (3, 6)
SHARES = (0.36, 0.22)
# Its default of 8 compute blocks is meant for models of 50 blocks and more.
FITTED: dict[str, dict[str, Any]] = {"dbcache": {"span": [1, 0]}}
_THRESHOLDS = tuple(0.0125 * 2**k for k in range(12))


@dataclass
class Row:
    """What one method at one setting did over all prompts."""

    name: str
    setting: str
    cache: Any
    computed: list[int] = field(default_factory=list)
    speedup: list[float] = field(default_factory=list)
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    right: list[bool] = field(default_factory=list)
    snapshot_bytes: int = 0

    def add(self, prompt: str, result: Result, reference: Result) -> None:
        record, quality = result.record, measure(result, reference)
        self.computed.append(record.steps.computed)
        self.speedup.append(reference.record.timings.total / record.timings.total)
        self.psnr.append(100.0 if quality.psnr is None else quality.psnr)
        self.ssim.append(quality.ssim or 0.0)
        self.right.append(score(prompt, result.image).right)
        self.snapshot_bytes = max(self.snapshot_bytes, (record.report or {}).get("snapshot_bytes", 0))

    def line(self) -> str:
        cells = [
            self.name,
            self.setting,
            f"{statistics.median(self.computed):g}",
            f"{statistics.median(self.speedup):.2f}×",
            f"{statistics.median(self.psnr):.1f}",
            f"{statistics.median(self.ssim):.4f}",
            f"{statistics.mean(self.right):.0%}",
            f"{self.snapshot_bytes / 2**20:.2f}",
        ]
        return f"| {' | '.join(cells)} |"


def table(model: str, prompts: int) -> str:
    """Medians over held-out prompts; the reference and all methods alternate, prompt by prompt."""
    base = {"model": model, "generation": {"num_inference_steps": STEPS}}
    session = Session.open(load_plan(base), "a red circle")
    session.run("a red circle", 0, accelerated=False)
    rows, refused = [], []
    for name, method in METHODS.items():
        try:
            for setting, cache in settings(session, base, name, method):
                row = Row(name, setting, cache)
                run(session, base, row.cache, "a red circle")
                rows.append(row)
        except HastenError as error:
            refused.append(f"- `{name}`: {str(error).splitlines()[0]}")
    reference_row = Row("reference", "nothing skipped", None)
    fewer = [Row("fewer steps", f"{round(STEPS * share)} steps", None) for share in SHARES]
    for prompt in track(held_out_prompts(prompts), "prompts", console=Console(file=sys.stderr)):
        reference = session.run(prompt, 0, accelerated=False)
        reference_row.add(prompt, reference, reference)
        for row, share in zip(fewer, SHARES, strict=True):
            row.add(prompt, session.run(prompt, 0, accelerated=False, steps=round(STEPS * share)), reference)
        for row in rows:
            row.add(prompt, run(session, base, row.cache, prompt), reference)
    head = ["| method | setting | computed of 50 | speed-up | PSNR dB | SSIM | right | snapshots MiB |"]
    lines = [*head, "|---|---|--:|--:|--:|--:|--:|--:|", *(row.line() for row in (*fewer, *rows))]
    right = f"{statistics.mean(reference_row.right):.0%}"
    text = "\n".join(lines) + f"\n\nMedians over {prompts} held-out prompts; of the reference {right} are right."
    return text + ("\n\nNot in the table:\n\n" + "\n".join(refused) if refused else "")


def settings(session: Session, base: dict[str, Any], name: str, method: Method) -> Iterator[tuple[str, Any]]:
    """Two settings of a method: two intervals, or two thresholds that compute about as many steps."""
    if method.threshold is None:
        for interval in INTERVALS:
            key = {"method": name, "interval": interval}
            try:
                load_plan({**base, "cache": key})
            except HastenError:  # its steps follow from something else than an interval
                yield "defaults", {"method": name}
                return
            yield f"interval {interval}", key
        return
    counts = {}
    more = {"max_skips": 8, **FITTED.get(name, {})}
    for threshold in _THRESHOLDS:
        cache = {"method": name, "threshold": threshold, **more}
        counts[threshold] = run(session, base, cache, "a red circle").record.steps.computed
        if counts[threshold] <= SHARES[-1] * STEPS:
            break
    if min(counts.values()) == STEPS:
        raise HastenError("it skips nothing at any threshold: what it goes by says too little of this model")
    for share in SHARES:
        best = min(counts, key=lambda threshold: abs(counts[threshold] - share * STEPS))
        text = ", ".join(f"{key} {value}" for key, value in FITTED.get(name, {}).items())
        yield f"threshold {best:g}{text and ', ' + text}", {"method": name, "threshold": best, **more}


def run(session: Session, base: dict[str, Any], cache: Any, prompt: str) -> Result:
    """One accelerated image."""
    plan = complete_plan(load_plan({**base, "cache": cache}))
    return replace(session, plan=plan, prompts=(prompt,)).run(prompt, 0)
