"""What `hasten generate` shows a person: a live bar, a line per image, a table per comparison."""

from __future__ import annotations

import contextlib
import statistics
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from hasten.cli.console import err, out

if TYPE_CHECKING:
    from hasten.comparison import Comparison
    from hasten.generation import Progress, Result
    from hasten.record import Quality, Record

MIB = 1 << 20


class LiveBar:
    """A bar on stderr with it/s and the computed and skipped steps so far; gone when the work is done."""

    def __init__(self) -> None:
        from rich import progress as bars

        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TextColumn("{task.fields[figures]}", markup=False),
            bars.TimeElapsedColumn(),
            console=err,
            transient=True,
        )
        self._task = self._bar.add_task("loading", total=None, figures="")
        self._current: tuple[Any, ...] = ()

    def __enter__(self) -> LiveBar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, now: Progress) -> None:
        """After every step."""
        run = (now.label, now.prompt, now.seed, now.image)
        if run != self._current or now.step <= 1:
            self._current = run
            self._bar.reset(self._task, total=now.steps or None, description=_title(now), figures="")
        speed = self._bar.tasks[0].speed
        rate = f"{speed:.1f} it/s, " if speed else ""
        figures = f"{rate}{now.computed} computed, {now.skipped} skipped"
        self._bar.update(self._task, completed=now.step, figures=figures)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """While something is printed: results go to stdout, which the bar on stderr knows nothing of."""
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()


def live_bar(*, enabled: bool) -> LiveBar | None:
    """A bar where somebody looks; in a log file it would be an empty line."""
    return LiveBar() if enabled and err.is_terminal else None


def _title(now: Progress) -> str:
    which = f"image {now.image}/{now.images} " if now.images > 1 else ""
    return f"{which}{now.label}"


@contextlib.contextmanager
def plain_warnings(*, shown: bool) -> Iterator[None]:
    """Show warnings as one line each, without the place in the code; or not at all."""

    def show(message: Warning | str, *place: Any, **more: Any) -> None:
        if shown:
            err.print(Text(f"warning: {message}", style="yellow"), soft_wrap=True)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield


def print_made(made: Result | Comparison) -> None:
    """What there is to say about an image, or about two."""
    from hasten.comparison import Comparison

    if isinstance(made, Comparison):
        print_comparison(made)
    else:
        print_result(made)


def print_result(result: Result) -> None:
    """The file, the times of its stages, and what the cache did."""
    out.print(Text(str(result.path)), soft_wrap=True)
    if result.latents_path is not None:
        out.print(Text(str(result.latents_path)), soft_wrap=True)
    record = result.record
    times = record.timings
    err.print(
        f"  {times.total:.2f} s: text {times.text:.2f}, denoise {times.denoise:.2f} "
        f"({times.per_step:.3f} s/it), decode {times.decode:.2f}; "
        f"peak memory {_mebibytes(record.memory.peak_bytes)} ({record.memory.source})",
        highlight=False,
        soft_wrap=True,
    )
    if record.report is not None:
        steps = record.steps
        line = f"  {record.method}: {steps.computed} of {steps.total} steps computed, {steps.skipped} skipped"
        snapshots = snapshot_bytes(record)
        if snapshots is not None:
            line += f"; snapshots {_mebibytes(snapshots)}"
        err.print(line, highlight=False, soft_wrap=True)
    for note in record.notes:
        err.print(Text(f"  note: {note}", style="yellow"), soft_wrap=True)


def snapshot_bytes(record: Record) -> int | None:
    """Most bytes that snapshots took, as the handle reports them."""
    value = (record.report or {}).get("snapshot_bytes")
    return int(value) if isinstance(value, int | float) else None


def print_comparison(comparison: Comparison) -> None:
    """One table: reference and accelerated side by side."""
    reference, accelerated = comparison.reference.record, comparison.accelerated.record
    quality = comparison.quality
    out.print(Text(f"{accelerated.prompt} (seed {accelerated.seed})", style="bold"), soft_wrap=True)
    table = Table(box=None)
    table.add_column("")
    table.add_column("reference", justify="right")
    table.add_column(accelerated.method, justify="right", style="bold")
    pair = (reference, accelerated)
    table.add_row("time", *(f"{record.timings.total:.2f} s" for record in pair))
    table.add_row("speed-up", "1.00×", f"{comparison.speedup:.2f}×")
    table.add_row("denoising", *(f"{record.timings.denoise:.2f} s" for record in pair))
    table.add_row("per step", *(f"{record.timings.per_step:.3f} s/it" for record in pair))
    table.add_row("steps computed", *(f"{record.steps.computed}" for record in pair))
    table.add_row("steps skipped", *(f"{record.steps.skipped}" for record in pair))
    table.add_row("PSNR", "∞", "∞ (identical)" if quality.identical else _figure(quality.psnr, "{:.2f} dB"))
    table.add_row("SSIM", "1", _figure(quality.ssim, "{:.4f}"))
    table.add_row("latent error", "0", _figure(quality.latent_relative_l2, "{:.4f}"))
    table.add_row("snapshots", "–", _mebibytes(snapshot_bytes(accelerated)))
    source = accelerated.memory.source
    table.add_row(f"peak memory ({source})", *(_mebibytes(record.memory.peak_bytes) for record in pair))
    out.print(table)
    for path in (comparison.reference.path, comparison.accelerated.path, comparison.picture):
        out.print(Text(str(path)), soft_wrap=True)
    for note in dict.fromkeys((*reference.notes, *accelerated.notes)):
        err.print(Text(f"  note: {note}", style="yellow"), soft_wrap=True)
    rounds = quality.rounds or 1
    err.print(
        f"  medians of {rounds} round(s) each, in turn, after a warm-up; {accelerated.device.name}, "
        f"{accelerated.device.dtype}",
        highlight=False,
        soft_wrap=True,
    )


def print_summary(qualities: Sequence[Quality], sheet: Path | None) -> None:
    """The grid's file, and the middle of several comparisons."""
    if sheet is not None:
        out.print(Text(str(sheet)), soft_wrap=True)
    if len(qualities) < 2:
        return
    ratios = [quality.psnr for quality in qualities if quality.psnr is not None]
    likeness = [quality.ssim for quality in qualities if quality.ssim is not None]
    parts = [f"speed-up {statistics.median(quality.speedup or 1 for quality in qualities):.2f}×"]
    if ratios:
        parts.append(f"PSNR {statistics.median(ratios):.2f} dB")
    if likeness:
        parts.append(f"SSIM {statistics.median(likeness):.4f}")
    out.print(f"medians of {len(qualities)} images: {', '.join(parts)}", highlight=False)


def _mebibytes(count: int | None) -> str:
    if count is None:
        return "–"
    return f"{count / MIB:.{0 if count >= 100 * MIB else 1 if count >= MIB else 2}f} MiB"


def _figure(value: float | None, form: str) -> str:
    return "not finite" if value is None else form.format(value)
