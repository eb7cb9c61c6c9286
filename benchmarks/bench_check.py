"""What can be trusted of `hasten bench`: what measuring costs, and what it says of two runs of the same thing."""

from __future__ import annotations

import statistics
import time

from hasten import load_plan
from hasten.bench import Bench, BenchReport
from hasten.bench.compare import compare_reports
from hasten.bench.statistics import Interval, paired_ratio
from hasten.bench.tables import find
from hasten.calling import call_arguments
from hasten.generation import Session
from hasten.zoo.evaluation import held_out_prompts

STEPS = 50
ROUNDS = 15
REPEATS = 5


def overhead(model: str, prompts: int) -> str:
    """A run under the benchmark's watches over the bare pipeline's, in turn; and how long it works between two runs."""
    base = {"model": model, "generation": {"num_inference_steps": STEPS}}
    session = Session.open(load_plan(base), "a red circle")
    prompt = held_out_prompts(1)[0]
    watched, bare = [], []
    for turn in range(-1, ROUNDS):
        for under_watch in (True, False) if turn % 2 else (False, True):
            if under_watch:
                seconds = session.run(prompt, 0).record.timings.total
            else:
                arguments = call_arguments(session.pipe, session.plan, prompt, 0).arguments
                began = time.perf_counter()
                session.pipe(**arguments)
                seconds = time.perf_counter() - began
            if turn >= 0:
                (watched if under_watch else bare).append(seconds)
    cost = paired_ratio(watched, bare)

    began = time.perf_counter()
    bench = Bench(base, ["taylorseer"], held_out_prompts(prompts), rounds=1, pipe=session.pipe)
    report = bench.run()
    whole = time.perf_counter() - began
    runs = sum(s.timings.total for s in report.samples) + sum(v.first_seconds or 0 for v in report.variants)
    between = (whole - runs) / len(report.samples)
    return "\n".join(
        [
            "| what | figure |",
            "|---|--:|",
            f"| a run as the benchmark times it, over the bare pipeline's | {_text(cost, 4)} |",
            f"| the bare pipeline's run | {statistics.median(bare):.3f} s |",
            f"| between two runs: metrics, checker, images and report | {between:.3f} s |",
        ]
    )


def unchanged(model: str, prompts: int) -> str:
    """The plain pipeline against itself, and a plan against its own earlier benchmark."""
    base = {"model": model, "generation": {"num_inference_steps": STEPS}}
    pipe = Session.open(load_plan(base), "a red circle").pipe
    lines = [
        "| repeat | plain over plain (95 %) | contains 1 | taylorseer (95 %) | against the first repeat |",
        "|--:|--:|---|--:|---|",
    ]
    first: BenchReport | None = None
    for repeat in range(1, REPEATS + 1):
        report = Bench(base, ["none", "taylorseer"], held_out_prompts(prompts), rounds=3, pipe=pipe).run()
        first = first or report
        same, plan = (_speed(report, name) for name in ("none", "taylorseer"))
        verdicts = [
            f"{c.variant} {', '.join(c.verdicts)}" for c in compare_reports(first, report).changes if c.verdicts
        ]
        lines.append(
            f"| {repeat} | {_text(same)} | {'no' if same.excludes(1) else 'yes'} | {_text(plan)} | "
            f"{'–' if report is first else '; '.join(verdicts) or 'no change'} |"
        )
    return "\n".join(lines)


def _speed(report: BenchReport, name: str) -> Interval:
    row = find(report, name)
    assert row is not None
    assert row.speedup is not None
    return Interval(row.speedup, row.speedup_low, row.speedup_high)


def _text(interval: Interval, digits: int = 3) -> str:
    low, high = (f"{end:.{digits}f}" if end is not None else "–" for end in (interval.low, interval.high))
    return f"{interval.value:.{digits}f} ({low} to {high})"
