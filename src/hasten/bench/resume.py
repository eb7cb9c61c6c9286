"""Going on with a benchmark that was interrupted: only with the same one, and only from whole rounds of turns."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from hasten.bench.schema import BenchReport, Sample
from hasten.bench.summary import Cell, cell
from hasten.bench.variants import Candidate
from hasten.errors import HastenError


def check_same(previous: BenchReport, now: BenchReport, candidates: Sequence[Candidate]) -> None:
    """Refuse to mix measurements of different things.

    Raises:
        HastenError: names everything that differs.
    """
    found = [
        f"{name}: {_short(old)} there, {_short(new)} now"
        for name, new in now.settings
        if (old := getattr(previous.settings, name)) != new
    ]
    found += [
        f"{name}: {old} there, {new} here"
        for name, old, new in (
            ("device", previous.machine.device_name, now.machine.device_name),
            ("dtype", previous.machine.dtype, now.machine.dtype),
            ("threads", previous.machine.threads, now.machine.threads),
            ("torch", previous.versions.get("torch"), now.versions.get("torch")),
            ("diffusers", previous.versions.get("diffusers"), now.versions.get("diffusers")),
            ("hasten", previous.hasten, now.hasten),
        )
        if old != new
    ]
    plans, wanted = (
        {one.name: one.plan.to_dict() for one in ones if one.kind in ("reference", "plan")}
        for ones in (previous.variants, candidates)
    )
    if plans and plans != wanted:
        names = [name for name in {**plans, **wanted} if plans.get(name) != wanted.get(name)]
        found.append(f"variants that differ: {', '.join(names)}")
    if found:
        raise HastenError(
            "--resume goes on with the same benchmark only; use another folder (--out), or mend this:\n"
            + "\n".join(f"  {line}" for line in found)
        )


def kept_samples(previous: BenchReport, variants: Collection[str]) -> tuple[Sample, ...]:
    """Samples of the turns that every variant finished: the rest are measured anew, beside each other."""
    there: dict[Cell, set[str]] = {}
    for sample in previous.samples:
        there.setdefault(cell(sample), set()).add(sample.variant)
    return tuple(
        sample for sample in previous.samples if sample.variant in variants and there[cell(sample)] >= set(variants)
    )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
