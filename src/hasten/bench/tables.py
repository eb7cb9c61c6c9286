"""The tables of a report as text, for Markdown, HTML and the terminal alike."""

from __future__ import annotations

from typing import NamedTuple

from hasten.bench.schema import BenchReport, Summary, Variant
from hasten.bench.summary import batch_rate
from hasten.bench.variants import REFERENCE

MIB = 1 << 20
NONE = "–"


class Table(NamedTuple):
    """Rows of text below a head.

    Attributes:
        marks: a word for each row: its variant's kind, apart or error.
        words: its columns are words, not figures.
    """

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    marks: tuple[str, ...]
    caption: str = ""
    words: bool = False


def overview(report: BenchReport) -> Table:
    """What it is all about: time, speed-up, steps, quality, memory."""
    rows, marks = [], []
    scored = any(summary.clip is not None for summary in report.summary)
    for variant in report.variants:
        summary = find(report, variant.name)
        marks.append(mark(variant))
        if variant.error is not None or summary is None:
            empty = [NONE] * (9 if scored else 8)
            rows.append((variant.name, "did not run" if variant.error else "not measured yet", *empty))
            continue
        rows.append(
            (
                variant.name + (" *" if variant.differs else ""),
                f"{summary.median:.3f} s",
                speed(summary, variant.name),
                steps_text(variant, summary),
                f"{1000 * summary.per_step:.1f} ms",
                psnr_text(summary, variant.name),
                figure(summary.ssim, ".4f"),
                figure(summary.latent_error, ".4f"),
                NONE if summary.right is None else f"{100 * summary.right:.0f} %",
                *([figure(summary.clip, ".2f")] if scored else []),
                f"{summary.peak_bytes / MIB:.0f} MiB",
            )
        )
    source = next((summary.memory_source for summary in report.summary), "process")
    head = ("variant", "time", "speed-up (95 %)", "steps computed", "per step", "PSNR", "SSIM", "latent error", "right")
    last = (*(("CLIP score",) if scored else ()), f"peak memory ({source})")
    settings = report.settings
    images = len(settings.prompts) * len(settings.seeds)
    caption = (
        f"Medians over {images} image(s) in {settings.rounds} round(s). Speed-up: the median of reference time over "
        "the variant's time, image by image, with a 95 % bootstrap interval. fewer-steps N is the plain pipeline at N "
        "steps."
    )
    if any(v.kind == "peer" for v in report.variants):
        caption += (
            " A peer runs in a process of its own, in turn with the plain pipeline there, and is measured against it; "
            "≈ is its arithmetic in whole steps."
        )
    apart = [f"{v.name} {', '.join(v.differs)}" for v in report.variants if v.differs]
    if apart:
        caption += f" * not comparable: {'; '.join(apart)}."
    return Table("Speed and quality", (*head, *last), tuple(rows), tuple(marks), caption)


def stages(report: BenchReport) -> Table:
    """Where the time goes."""
    rows, marks = [], []
    for variant in report.variants:
        summary = find(report, variant.name)
        if summary is None:
            continue
        marks.append(mark(variant))
        rows.append(
            (
                variant.name,
                milliseconds(summary.text),
                milliseconds(summary.denoise),
                milliseconds(summary.decode),
                milliseconds(summary.computed_step),
                milliseconds(summary.skipped_step),
                f"{summary.median:.3f} s",
                f"{summary.p90:.3f} s",
                f"{summary.p95:.3f} s",
                f"{summary.images_per_second:.3g}",
                NONE if variant.first_seconds is None else f"{variant.first_seconds:.2f} s",
                NONE if variant.snapshot_bytes is None else f"{variant.snapshot_bytes / MIB:.3g} MiB",
            )
        )
    head = ("variant", "text", "denoise", "decode", "computed step", "skipped step", "p50", "p90", "p95", "images/s")
    caption = (
        "Steps by kind: medians of a warm-up run that waits for the device after every step. First run: the first "
        "warm-up, which also chooses kernels and compiles."
    )
    if report.load_seconds is not None:
        caption += f" Loading the model took {report.load_seconds:.2f} s."
    return Table("Where the time goes", (*head, "first run", "snapshots"), tuple(rows), tuple(marks), caption)


def power(report: BenchReport) -> Table | None:
    """What the driver told of the GPU; None where it told nothing."""
    told = [s for s in report.summary if (s.utilisation, s.power, s.energy) != (None, None, None)]
    if not told:
        return None
    rows = tuple(
        (
            summary.variant,
            figure(summary.utilisation, ".0f", " %"),
            figure(summary.power, ".0f", " W"),
            figure(summary.energy, ".1f", " J"),
        )
        for summary in told
    )
    marks = tuple(mark(report.variant(summary.variant)) for summary in told)
    return Table("GPU", ("variant", "utilisation", "power", "energy per image"), rows, marks)


def peers(report: BenchReport) -> Table | None:
    """What was run under the names of peers; None without any."""
    rows = tuple(
        (
            variant.name,
            f"{variant.peer.package} {variant.peer.version or '(not installed)'}",
            variant.peer.summary,
            variant.peer.text,
            variant.peer.source,
        )
        for variant in report.variants
        if variant.peer is not None
    )
    if not rows:
        return None
    marks = tuple(mark(variant) for variant in report.variants if variant.peer is not None)
    return Table("Peers", ("peer", "package", "what it is", "settings", "source"), rows, marks, words=True)


def batches(report: BenchReport) -> Table | None:
    """Several images at once; None where that was not measured."""
    if not report.batches:
        return None
    rows = []
    for batch in report.batches:
        rate = batch_rate(batch)
        rows.append(
            (
                batch.variant,
                f"{batch.size}",
                batch.error.splitlines()[0] if batch.error else figure(rate, ".3g"),
                NONE if batch.peak_bytes is None else f"{batch.peak_bytes / MIB:.0f} MiB",
            )
        )
    marks = tuple("error" if batch.error else mark(report.variant(batch.variant)) for batch in report.batches)
    return Table("Several images in one call", ("variant", "images", "images/s", "peak memory"), tuple(rows), marks)


def all_tables(report: BenchReport) -> list[Table]:
    tables = (overview(report), peers(report), stages(report), power(report), batches(report))
    return [table for table in tables if table is not None]


def notes(report: BenchReport) -> list[str]:
    """What there is to say of the whole and of single variants; why one did not run."""
    told = [*report.notes, *(f"{v.name}: {note}" for v in report.variants for note in v.notes)]
    return list(dict.fromkeys([*told, *(f"{v.name} did not run: {v.error}" for v in report.variants if v.error)]))


def facts(report: BenchReport) -> list[tuple[str, str]]:
    """The head of a report: what ran where."""
    machine, settings = report.machine, report.settings
    where = machine.device_name if machine.device != "cpu" else f"{machine.cpu}"
    device = f"{machine.device} ({where}), {machine.dtype}, {machine.threads} thread(s)"
    if machine.memory_bytes:
        device += f", {machine.memory_bytes / 2**30:.0f} GiB"
    if machine.driver:
        device += f", driver {machine.driver}"
    reference = next((v for v in report.variants if v.kind == "reference"), None)
    generation = reference.plan.generation if reference is not None else None
    size = f", {generation.width}×{generation.height}" if generation is not None and generation.width else ""
    steps = f", {generation.num_inference_steps} steps{size}" if generation is not None else ""
    state = "" if report.complete else " (interrupted: this is what was measured until then)"
    resumed = f", in {report.sessions} sessions" if report.sessions > 1 else ""
    return [
        ("command", report.command),
        ("date", f"{report.created:%Y-%m-%d %H:%M} UTC{resumed}{state}"),
        ("model", f"{settings.model}{steps}"),
        (
            "measured",
            f"{len(settings.prompts)} prompt(s) × {len(settings.seeds)} seed(s) × {settings.rounds} round(s), "
            f"{settings.warmup} warm-up run(s), variants in turn",
        ),
        ("device", device),
        ("machine", f"{machine.cpu}, {machine.cores} core(s), {machine.ram_bytes / 2**30:.0f} GiB; {machine.platform}"),
        ("versions", ", ".join(f"{name} {v}" for name, v in report.versions.items() if name != "platform")),
    ]


def find(report: BenchReport, name: str) -> Summary | None:
    return next((summary for summary in report.summary if summary.variant == name), None)


def mark(variant: Variant) -> str:
    if variant.error is not None:
        return "error"
    return "apart" if variant.differs else variant.kind


def steps_text(variant: Variant, summary: Summary) -> str:
    """How many steps were computed, or what a peer's arithmetic amounts to."""
    steps = variant.plan.generation.num_inference_steps
    if summary.computed is not None and summary.skipped is not None:
        return f"{summary.computed} of {summary.computed + summary.skipped}"
    return NONE if variant.work is None else f"≈ {variant.work:.1f} of {steps}"


def speed(summary: Summary, name: str) -> str:
    if name == REFERENCE:
        return "1.00×"
    if summary.speedup is None:
        return NONE
    if summary.speedup_low is None or summary.speedup_high is None:
        return f"{summary.speedup:.2f}×"
    return f"{summary.speedup:.2f}× ({summary.speedup_low:.2f} to {summary.speedup_high:.2f})"


def psnr_text(summary: Summary, name: str) -> str:
    if name == REFERENCE or (summary.psnr is None and summary.identical):
        return "∞"
    return figure(summary.psnr, ".2f", " dB")


def figure(value: float | None, form: str, unit: str = "") -> str:
    return NONE if value is None else f"{value:{form}}{unit}"


def milliseconds(seconds: float | None) -> str:
    return NONE if seconds is None else f"{1000 * seconds:.1f} ms"
