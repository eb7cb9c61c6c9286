"""Two reports of the same benchmark: what became slower or worse by more than noise."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from hasten.bench.schema import BenchReport
from hasten.bench.statistics import Interval, mean, ratio, ratio_of_paired_ratios
from hasten.bench.summary import pairs
from hasten.bench.variants import REFERENCE
from hasten.errors import HastenError

MIN_SPEED = 0.01
"""A change of speed below one percent is nobody's concern, however sure."""
MIN_PSNR = 0.1
"""The same for quality, in dB."""


@dataclass(frozen=True)
class Change:
    """One variant in both reports.

    Attributes:
        time: its time in the second over its time in the first, with its interval.
        speedup: the second speed-up over the first; each is against the reference of its own run, so that a machine
            that was slower that day counts for nothing. None for the reference itself.
        psnr: mean change in dB over the images that both made; None where there is none.
        computed: steps computed, then and now.
        verdicts: what is beyond noise: "slower", "faster", "worse", "better", "fails", "runs again".
    """

    variant: str
    time: Interval | None
    speedup: Interval | None
    psnr: Interval | None
    computed: tuple[int | None, int | None] | None
    verdicts: tuple[str, ...]

    @property
    def regressed(self) -> bool:
        return bool({"slower", "worse", "fails"} & set(self.verdicts))


@dataclass(frozen=True)
class Comparison:
    """All variants that both reports have, and what stands in the way of comparing."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    @property
    def regressions(self) -> list[Change]:
        return [change for change in self.changes if change.regressed]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        changes = [
            {
                **asdict(change),
                **{
                    key: None if (value := getattr(change, key)) is None else value._asdict()
                    for key in ("time", "speedup", "psnr")
                },
            }
            for change in self.changes
        ]
        return {"changes": changes, "notes": self.notes, "regressions": [one.variant for one in self.regressions]}


def compare_reports(old: BenchReport, new: BenchReport) -> Comparison:
    """Compare the second report with the first.

    Raises:
        HastenError: they have no variant in common, or are of different models.
    """
    if old.settings.model != new.settings.model:
        raise HastenError(f"these are of different models: {old.settings.model} and {new.settings.model}")
    names = [variant.name for variant in old.variants]
    both = [variant.name for variant in new.variants if variant.name in names]
    if not both:
        raise HastenError("the reports have no variant in common")
    return Comparison(tuple(_change(old, new, name) for name in both), tuple(_notes(old, new, both)))


def _change(old: BenchReport, new: BenchReport, name: str) -> Change:
    errors = [report.variant(name).error for report in (old, new)]
    before, after = old.of(name), new.of(name)
    if any(errors) or not before or not after:
        if errors[1] and not errors[0]:
            return Change(name, None, None, None, None, ("fails",))
        return Change(name, None, None, None, None, ("runs again",) if errors[0] and not errors[1] else ())
    time = ratio([s.timings.total for s in after], [s.timings.total for s in before])
    speedup = None
    if name != REFERENCE:
        pairs_new, pairs_old = pairs(new, name), pairs(old, name)
        if pairs_new[0] and pairs_old[0]:
            speedup = ratio_of_paired_ratios(pairs_new, pairs_old)
    psnr = _psnr_change(old, new, name)
    verdicts: tuple[str, ...] = ()
    if speedup is not None and speedup.excludes(1) and abs(speedup.value - 1) > MIN_SPEED:
        verdicts += ("faster" if speedup.value > 1 else "slower",)
    if psnr is not None and psnr.excludes(0) and abs(psnr.value) > MIN_PSNR:
        verdicts += ("better" if psnr.value > 0 else "worse",)
    return Change(name, time, speedup, psnr, (before[0].computed, after[0].computed), verdicts)


def _psnr_change(old: BenchReport, new: BenchReport, name: str) -> Interval | None:
    """Image by image; identical ones count as 100 dB, which is as good as it gets in float."""
    values: list[dict[tuple[str, int], float]] = []
    for report in (old, new):
        found: dict[tuple[str, int], float] = {}
        for sample in report.of(name):
            quality = sample.quality
            value = None if quality is None else 100.0 if quality.identical else quality.psnr
            if value is not None and math.isfinite(value):
                found.setdefault((report.settings.prompts[sample.prompt], sample.seed), value)
        values.append(found)
    both = [values[1][key] - values[0][key] for key in values[1] if key in values[0]]
    return mean(both) if both else None


def _notes(old: BenchReport, new: BenchReport, both: list[str]) -> list[str]:
    notes = []
    pieces = [
        ("device", old.machine.device_name, new.machine.device_name),
        ("CPU", old.machine.cpu, new.machine.cpu),
        ("threads", old.machine.threads, new.machine.threads),
        ("dtype", old.machine.dtype, new.machine.dtype),
    ]
    pieces += [
        (name, old.versions.get(name), new.versions.get(name))
        for name in ("hasten", "torch", "diffusers")
        if old.versions.get(name) != new.versions.get(name)
    ]
    notes += [f"{name}: {a} before, {b} now" for name, a, b in pieces if a != b]
    for name in both:
        if old.variant(name).plan.to_dict() != new.variant(name).plan.to_dict():
            notes.append(f"{name}: its plan differs between the reports")
    if old.settings.prompts != new.settings.prompts or old.settings.seeds != new.settings.seeds:
        notes.append("prompts or seeds differ: quality is compared over the images that both made")
    for report, word in ((old, "first"), (new, "second")):
        if not report.complete:
            notes.append(f"the {word} report was interrupted")
    if REFERENCE in both and old.of(REFERENCE) and new.of(REFERENCE):
        change = _change(old, new, REFERENCE).time
        if change is not None and change.excludes(1) and abs(change.value - 1) > MIN_SPEED:
            notes.append(
                f"the reference itself took {change.value:.2f} times as long: the machine, its load or its libraries "
                "changed. Speed-ups are judged, each against the reference of its own run"
            )
    missing = [v.name for v in old.variants if v.name not in both] + [
        v.name for v in new.variants if v.name not in both
    ]
    if missing:
        notes.append(f"in one report only: {', '.join(missing)}")
    return notes
