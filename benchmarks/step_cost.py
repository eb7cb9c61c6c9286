"""What a skipped step costs, and how much of the ideal speed-up arrives on the clock."""

from __future__ import annotations

import statistics
import time

from hasten import accelerate, load_plan
from hasten.calling import call_arguments
from hasten.generation import Session

ROUNDS = 7
STEPS = 50


def table(model: str, prompts: int) -> str:
    """Medians over alternating rounds of 50 steps at interval 4, order 1: denoiser calls and whole denoising loops."""
    session = Session.open(load_plan({"model": model, "generation": {"num_inference_steps": STEPS}}), "a red circle")
    pipe = session.pipe
    call = call_arguments(pipe, session.plan, "a red circle left of a blue square", 0)
    arguments = {**call.arguments, "output_type": "latent"}

    def loop() -> float:
        started = time.perf_counter()
        pipe(**arguments)
        return time.perf_counter() - started

    lines = [
        "| site | computed steps | full call ms | skipped call ms | a skipped call costs | speed-up | of the ideal |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    loop()
    for site in ("residual", "output"):
        plain, fast, full, skipped = [], [], [], []
        computed = total = 0
        for _ in range(ROUNDS):
            plain.append(loop())
            with accelerate(pipe, "taylorseer", interval=4, order=1, site=site) as handle:
                fast.append(loop())
                report = handle.report()
            computed, total = report.computed_steps, len(report.steps)
            full.append(report.computed_call_seconds or 0.0)
            skipped.append(report.skipped_call_seconds or 0.0)
        speedup = statistics.median(plain) / statistics.median(fast)
        ideal = total / computed
        a, b = statistics.median(full), statistics.median(skipped)
        lines.append(
            f"| {site} | {computed} of {total} | {1e3 * a:.2f} | {1e3 * b:.3f} | {b / a:.1%} | {speedup:.2f}× | "
            f"{speedup / ideal:.0%} of {ideal:.2f}× |"
        )
    return (
        "\n".join(lines)
        + f"\n\nMedians of {ROUNDS} alternating rounds; speed-up of the denoising loop with guidance, wall-clock."
    )
