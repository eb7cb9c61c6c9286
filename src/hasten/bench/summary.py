"""From samples to one row of figures for each variant."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence

from hasten.bench.schema import Batch, BenchReport, Sample, Summary, Variant
from hasten.bench.statistics import Interval, paired_ratio, percentile
from hasten.bench.variants import REFERENCE

Cell = tuple[str, int, int, int]


def summarize(report: BenchReport) -> tuple[Summary, ...]:
    """A row for every variant that has samples, in the order of the variants."""
    return tuple(_one(report, variant) for variant in report.variants if report.of(variant.name))


def cell(sample: Sample) -> Cell:
    """What a sample shares with the reference it is measured against."""
    return (sample.process, sample.round, sample.prompt, sample.seed)


def pairs(report: BenchReport, variant: str) -> tuple[list[float], list[float]]:
    """Seconds of the reference and of the variant, for the images that both made in one round of one process."""
    reference = {cell(sample): sample.timings.total for sample in report.samples if sample.variant == REFERENCE}
    both = [
        (reference[cell(sample)], sample.timings.total) for sample in report.of(variant) if cell(sample) in reference
    ]
    return [a for a, _ in both], [b for _, b in both]


def speedup(report: BenchReport, variant: str) -> Interval | None:
    """How many times as fast as the reference; None without a pair."""
    slow, fast = pairs(report, variant)
    return paired_ratio(slow, fast) if slow else None


def middle_psnr(samples: Sequence[Sample]) -> float | None:
    """The median, identical images counted as infinite; None without any."""
    values = [
        math.inf if sample.quality.identical else sample.quality.psnr
        for sample in samples
        if sample.quality is not None and (sample.quality.identical or sample.quality.psnr is not None)
    ]
    # No interpolation: half-way to infinity is no figure.
    return statistics.median_low([value for value in values if value is not None]) if values else None


def _one(report: BenchReport, variant: Variant) -> Summary:
    samples = report.of(variant.name)
    first = _first_round(samples)
    qualities = [sample.quality for sample in first if sample.quality is not None]
    read = [sample.adherence for sample in first if sample.adherence is not None]
    gpus = [sample.gpu for sample in samples if sample.gpu is not None]
    latencies = tuple(sample.timings.total for sample in samples)
    middle = statistics.median(latencies)
    factor = speedup(report, variant.name) if variant.name != REFERENCE else None
    ratio = middle_psnr(first)
    by_kind = {
        kind: [step.seconds for step in variant.steps if step.computed is kind and step.index > 0]
        for kind in (True, False)
    }
    return Summary(
        variant=variant.name,
        images=len(samples),
        latencies=latencies,
        median=middle,
        p90=percentile(latencies, 0.9),
        p95=percentile(latencies, 0.95),
        per_step=statistics.median(sample.timings.per_step for sample in samples),
        images_per_second=1 / middle,
        text=statistics.median(sample.timings.text for sample in samples),
        denoise=statistics.median(sample.timings.denoise for sample in samples),
        decode=statistics.median(sample.timings.decode for sample in samples),
        computed=_whole(sample.computed for sample in samples),
        skipped=_whole(sample.skipped for sample in samples),
        computed_step=_median(by_kind[True]),
        skipped_step=_median(by_kind[False]),
        speedup=factor.value if factor else None,
        speedup_low=factor.low if factor else None,
        speedup_high=factor.high if factor else None,
        psnr=ratio if ratio is not None and math.isfinite(ratio) else None,
        ssim=_median(quality.ssim for quality in qualities),
        latent_error=_median(quality.latent_relative_l2 for quality in qualities),
        max_difference=max((q.max_difference for q in qualities if q.max_difference is not None), default=None),
        identical=sum(quality.identical for quality in qualities),
        right=statistics.fmean(one.right for one in read) if read else None,
        objects=statistics.fmean(one.objects for one in read) if read else None,
        clip=_mean(sample.clip for sample in first),
        peak_bytes=max(sample.peak_bytes for sample in samples),
        memory_source=samples[0].memory_source,
        utilisation=_mean(gpu.utilisation for gpu in gpus),
        power=_mean(gpu.power for gpu in gpus),
        energy=_mean(gpu.energy for gpu in gpus),
    )


def batch_rate(batch: Batch) -> float | None:
    """Images per second, by the median of its rounds."""
    return batch.size / statistics.median(batch.seconds) if batch.seconds else None


def unsteady(report: BenchReport) -> list[str]:
    """Variants of which the same prompt and seed gave different pixels in different rounds."""
    digests: dict[tuple[str, str, int, int], set[str]] = {}
    for sample in report.samples:
        digests.setdefault((sample.variant, sample.process, sample.prompt, sample.seed), set()).add(sample.digest)
    return list(dict.fromkeys(name for (name, _, _, _), found in digests.items() if len(found) > 1))


def _first_round(samples: Sequence[Sample]) -> list[Sample]:
    """One sample for each image: later rounds make the same ones again."""
    images: dict[tuple[int, int], Sample] = {}
    for sample in samples:
        images.setdefault((sample.prompt, sample.seed), sample)
    return list(images.values())


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _median(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.median(known) if known else None


def _whole(values: Iterable[int | None]) -> int | None:
    middle = _median(values)
    return None if middle is None else round(middle)


def _mean(values: Iterable[float | None]) -> float | None:
    known = _known(values)
    return statistics.fmean(known) if known else None
