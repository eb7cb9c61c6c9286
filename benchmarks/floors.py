"""How fast each way of skipping can be and still be so good: searched schedules, tolerances, peers at many settings."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from benchmarks.calibrated import calibrated, calibration_jobs, opened
from hasten.bench import Bench
from hasten.bench.peers import PEERS as KNOWN
from hasten.bench.peers import parse_peer
from hasten.bench.schema import BenchReport, Summary, Variant
from hasten.bench.tables import find, speed, steps_text
from hasten.generation import Session
from hasten.schedule.solve import solve
from hasten.zoo.evaluation import held_out_prompts

STEPS = 50
FLOORS = (30.0, 35.0)
BUDGETS = (5, 6, 7, 8, 9, 10, 12, 14)
TOLERANCES = (0.03, 0.06, 0.12, 0.2, 0.3)
INTERVALS = (5, 6, 8, 10)
PEERS: dict[str, tuple[str, ...]] = {
    "cache-dit": tuple(f"residual_diff_threshold={t},max_warmup_steps=3" for t in (0.2, 0.3, 0.5, 0.8)),
    "cache-dit-taylorseer": tuple(f"residual_diff_threshold={t},max_warmup_steps=3" for t in (0.3, 0.5, 0.8)),
    "diffusers-taylorseer-lite": tuple(f"cache_interval={n},taylor_factors_dtype=fp32" for n in (5, 7, 9)),
    "diffusers-firstblock": tuple(f"threshold={t}" for t in (0.3, 0.5, 0.8)),
    "diffusers-magcache": tuple(
        f"threshold={t},max_skip_steps={n},retention_ratio=0.06" for t, n in ((0.5, 4), (2, 7))
    ),
    "diffusers-seacache": tuple(f"threshold={t},max_consecutive_cached={n}" for t, n in ((0.9, 4), (1.8, 6), (3.6, 8))),
    "deepcache": tuple(f"cache_interval={n}" for n in (3, 5, 7, 10)),
}


def table(model: str, prompts: int) -> str:
    """Of every way the fastest setting whose median PSNR is above the floor, and by how much hasten's is ahead."""
    session = opened(model, STEPS)
    with tempfile.TemporaryDirectory() as folder:
        sources = [_written(Path(folder), name, cache) for name, cache in plans(session)]
        peers = [parse_peer(f"{name}:{setting}") for name, settings in PEERS.items() for setting in settings]
        able = {peer.name for peer in peers if _fits(peer.name, session.pipe)}
        del session
        base = {"model": model, "generation": {"num_inference_steps": STEPS}}
        report = Bench(
            base,
            sources,
            held_out_prompts(prompts),
            rounds=1,
            peers=[peer for peer in peers if peer.name in able],
            progress=lambda now: print(now.label, now.done, now.total, file=sys.stderr),
        ).run()
    return "\n\n".join(_table(report, floor) for floor in FLOORS)


def plans(session: Session) -> Iterator[tuple[str, dict[str, Any]]]:
    """hasten's, each with a name that says how it came about."""
    measured = calibrated(session)
    for point in solve(session, measured, STEPS, BUDGETS, calibration_jobs()[:1], tries=3):
        yield f"schedule {point.budget}", point.section
    for tolerance in TOLERANCES:
        yield f"tolerance {tolerance}", {"method": "tolerance", "tolerance": tolerance}
    for interval in INTERVALS:
        yield f"taylorseer {interval}", {"method": "taylorseer", "interval": interval, "site": "output"}


def _fits(name: str, pipe: Any) -> bool:
    return KNOWN[name].refuses(pipe) is None


def _written(folder: Path, name: str, cache: dict[str, Any]) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"cache": cache}), "utf-8")
    return path


def _table(report: BenchReport, floor: float) -> str:
    best: dict[str, tuple[Variant, Summary]] = {}
    for variant in report.variants:
        summary = find(report, variant.name)
        if variant.kind == "reference" or summary is None or summary.speedup is None:
            continue
        good = (summary.psnr is None and summary.identical > 0) or (summary.psnr or 0.0) >= floor
        way = _way(variant)
        if good and (way not in best or summary.speedup > (best[way][1].speedup or 0.0)):
            best[way] = (variant, summary)
    rows = sorted(best.values(), key=lambda row: -(row[1].speedup or 0.0))
    lines = [f"| at least {floor:g} dB | speed-up (95 %) | steps computed | PSNR dB |", "|---|--:|--:|--:|"]
    for variant, summary in rows:
        computed = steps_text(variant, summary)
        lines.append(f"| {variant.name} | {speed(summary, variant.name)} | {computed} | {summary.psnr:.1f} |")
    own, others = (
        max(((s.speedup or 0.0, v.name) for v, s in rows if v.kind == kind), default=(0.0, "none"))
        for kind in ("plan", "peer")
    )
    ahead = f": {own[0] / others[0]:.2f}× as fast as the fastest peer, {others[1]}" if others[0] else ""
    return "\n".join(lines) + (
        f"\n\nhasten's fastest is {own[1]}{ahead}. Medians over {len(report.settings.prompts)} held-out prompts."
    )


def _way(variant: Variant) -> str:
    """What its settings are settings of."""
    return variant.name.split()[0]
