"""Print the measured tables of the docs, or write them there: `python -m benchmarks [TABLE …] [--docs]`."""

from __future__ import annotations

import argparse
import datetime
import platform
import re
import sys
from pathlib import Path

import diffusers
import torch

from benchmarks import (
    adaptive,
    bench,
    bench_check,
    coverage,
    floors,
    frontier,
    methods,
    predictors,
    rank,
    speed,
    step_cost,
    tolerance,
)

TABLES = {
    "step-cost": step_cost.table,
    "predictors": predictors.table,
    "methods": methods.table,
    "adaptive": adaptive.table,
    "adaptive-scores": adaptive.scores,
    "bench": bench.table,
    "bench-overhead": bench_check.overhead,
    "bench-unchanged": bench_check.unchanged,
    "coverage": coverage.table,
    "floors": floors.table,
    "frontier": frontier.table,
    "rank": rank.table,
    "tolerance": tolerance.table,
    "speed": speed.table,
    "speed-cache": speed.product,
}
PROMPTS = {  # 20 of the others
    "bench": 5,
    "bench-overhead": 3,
    "bench-unchanged": 2,
    "speed": 5,
    "speed-cache": 5,
    "floors": 4,
    "frontier": 4,
    "rank": 2,
    "tolerance": 6,
}
UNMEASURED = {"coverage"}
DOCS = Path(__file__).parent.parent / "docs"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument(
        "tables", nargs="*", choices=[[], *TABLES], metavar="TABLE", help=f"{', '.join(TABLES)}; default: all"
    )
    parser.add_argument("--model", default="scenes-qwen")
    parser.add_argument("--prompts", type=int, help="held-out prompts, where a table takes them")
    parser.add_argument(
        "--docs", action="store_true", help="also write the tables into the pages that have a mark for them"
    )
    arguments = parser.parse_args()
    for name in arguments.tables or TABLES:
        prompts = arguments.prompts or PROMPTS.get(name, 20)
        text = TABLES[name](arguments.model, prompts)
        command = f"python -m benchmarks {name}"
        if name not in UNMEASURED:
            command += f" --model {arguments.model} --prompts {prompts}"
        text = f"{text}\n\n`{command}`, {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}, {machine()}\n"
        print(text, flush=True)
        if arguments.docs:
            write(name, text, arguments.model)


def machine() -> str:
    """What the figures were measured on."""
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        found = re.search(r"model name\s*:\s*(.+)", info.read_text())
        model = found.group(1) if found else model
    return f"{model}, {torch.get_num_threads()} threads, torch {torch.__version__}, diffusers {diffusers.__version__}"


def write(name: str, text: str, model: str) -> None:
    """Replace what stands between the marks of this table, of this model where a page shows several."""
    for mark in (f"{name}:{model}", name):
        begin, end = f"<!-- table:{mark} -->", f"<!-- /table:{mark} -->"
        for path in sorted(DOCS.glob("*.md")):
            page = path.read_text()
            if begin in page and end in page:
                before, rest = page.split(begin, 1)
                path.write_text(f"{before}{begin}\n\n{text}\n{end}{rest.split(end, 1)[1]}")
                return
    sys.exit(f"no page in {DOCS} has the marks <!-- table:{name} --> … <!-- /table:{name} -->")


if __name__ == "__main__":
    main()
