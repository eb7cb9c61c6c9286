"""What one tolerance comes to at several numbers of steps, beside even gaps of as many computed steps."""

from __future__ import annotations

from statistics import median
from typing import Any

from benchmarks.calibrated import Bench, held_out_jobs, opened, tracked
from hasten.record import Quality

STEPS = (50, 28, 20)
TOLERANCES = (0.01, 0.03)


def table(model: str, prompts: int) -> str:
    """Medians over held-out prompts; each prompt's even gaps have as many computed steps as its tolerance took."""
    bench = Bench(opened(model), held_out_jobs(prompts))
    lines = [
        "| tolerance | steps | computed | latent error, PSNR | even gaps, corrected | even gaps, plain |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for tolerance, steps in tracked([(t, s) for t in TOLERANCES for s in STEPS], "tolerances"):
        rows: list[list[tuple[int, Quality]]] = [[], [], []]
        for job in bench.jobs:
            computed, quality = bench.compare({"method": "tolerance", "tolerance": tolerance}, steps, job)
            rows[0].append((computed, quality))
            for row, correct in zip(rows[1:], (True, False), strict=True):
                row.append(bench.compare(even(steps, computed, correct=correct), steps, job))
        cells = [f"{median(q.latent_relative_l2 or 0 for _, q in row):.2%}, {psnr(row):.1f} dB" for row in rows]
        lines.append(f"| {tolerance:g} | {steps} | {median(n for n, _ in rows[0]):g} | {' | '.join(cells)} |")
    return "\n".join(lines) + f"\n\nMedians over {prompts} held-out prompts and seeds."


def even(steps: int, computed: int, *, correct: bool) -> dict[str, Any]:
    """The first and the last step and even gaps between them, with TaylorSeer's defaults or the corrected parabola."""
    mask = sorted({round(place * (steps - 1) / (computed - 1)) for place in range(computed)})
    damping = {"damping": 1.0} if correct else {}
    return {"method": "taylorseer", "site": "output", "mask": mask, "cooldown": 0, "correct": correct, **damping}


def psnr(row: list[tuple[int, Quality]]) -> float:
    return median(100.0 if quality.psnr is None else quality.psnr for _, quality in row)
