"""Plans and peers side by side: the tables of docs/benchmarks.md."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hasten.bench import Bench
from hasten.bench.markdown import table_lines
from hasten.bench.peers import PEERS, parse_peer
from hasten.bench.tables import overview, peers
from hasten.zoo.evaluation import held_out_prompts

STEPS = 50
PLANS = ("taylorseer", "reuse")
ROUNDS = 3
# Beside the published settings, ones that leave out about as much as the plans: thresholds that suit large models skip
# little on these small ones, and a comparison at unequal work says nothing.
NEAR = (
    "cache-dit:residual_diff_threshold=0.3,max_warmup_steps=3",
    "cache-dit-taylorseer:residual_diff_threshold=0.3,max_warmup_steps=3",
    "diffusers-taylorseer-lite:cache_interval=4,taylor_factors_dtype=fp32",
    "diffusers-firstblock:threshold=0.2",
    "diffusers-magcache:threshold=0.5,max_skip_steps=4,retention_ratio=0.06",
    "diffusers-seacache:threshold=0.9,max_consecutive_cached=4",
    "deepcache:cache_interval=5",
)


def table(model: str, prompts: int) -> str:
    """Speed and quality of plans, of every peer with its published settings, and of some at equal work."""
    chosen = [
        parse_peer(text) for name in PEERS for text in (name, *(one for one in NEAR if one.split(":")[0] == name))
    ]
    with tempfile.TemporaryDirectory() as folder:
        base = {"model": model, "generation": {"num_inference_steps": STEPS}}
        report = Bench(
            base, list(PLANS), held_out_prompts(prompts), rounds=ROUNDS, peers=chosen, out=Path(folder)
        ).run()
    parts = []
    for shown in (overview(report), peers(report)):
        if shown is not None:
            parts += ["\n".join(table_lines(shown)), shown.caption]
    failed = [f"- `{variant.name}`: {variant.error}" for variant in report.variants if variant.error is not None]
    if failed:
        parts += ["Did not run:", "\n".join(failed)]
    return "\n\n".join(part for part in (*parts, report.statement) if part)
