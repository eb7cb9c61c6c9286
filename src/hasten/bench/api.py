"""The benchmark as one Python call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hasten.bench.peers import parse_peer
from hasten.bench.run import Bench
from hasten.bench.schema import BenchReport
from hasten.bench.variants import Source
from hasten.plan import Plan, load_plan


def benchmark(
    config: Source | Sequence[Source],
    prompts: str | Sequence[str],
    iters: int = 3,
    warmup: int = 1,
    *,
    seeds: int | Sequence[int] = 1,
    peers: Sequence[str] = (),
    base: Plan | Mapping[str, Any] | str | Path | None = None,
    sweeps: Sequence[str] = (),
    clip: str | Path | None = None,
    pipe: Any = None,
    out: str | Path | None = None,
) -> BenchReport:
    """Measure plans against the reference: same process, pipeline, prompts and seeds.

    Args:
        config: a preset, YAML file, mapping or plan, or several; the first names the model, unless `base` is given.
        prompts: one or several.
        iters: how often every image is made.
        warmup: runs of each plan that are not timed.
        seeds: seeds for each prompt, or how many of them from 0 on.
        peers: other implementations, each in a process of its own: "cache-dit", "deepcache:cache_interval=5", …
        base: the reference's settings: model, device, steps, size.
        sweeps: "cache.interval=2,3,4": every plan at each of the values.
        clip: folder of a CLIP model, which then scores every image against its prompt.
        pipe: a loaded pipeline to use.
        out: folder for report.json and images; None keeps the report in memory only.

    Raises:
        HastenError: anything a user can mend.

    >>> hasten.bench.benchmark("taylorseer", "a red circle", iters=3, warmup=1).summary  # doctest: +SKIP
    """
    sources: Sequence[Source] = [config] if isinstance(config, (Plan, Mapping, str, Path)) else list(config)
    if base is None and sources:
        first = load_plan(sources[0])
        base = first.model_copy(update={"cache": None})
    bench = Bench(
        base,
        sources,
        [prompts] if isinstance(prompts, str) else list(prompts),
        seeds=range(seeds) if isinstance(seeds, int) else seeds,
        rounds=iters,
        warmup=warmup,
        sweeps=sweeps,
        peers=[parse_peer(peer) for peer in peers],
        clip=clip,
        pipe=pipe,
        out=out,
        command="hasten.bench.benchmark(...)",
    )
    return bench.run()
