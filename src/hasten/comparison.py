"""The same image with and without acceleration, in one process: what was gained and what it cost."""

from __future__ import annotations

import math
import statistics
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hasten.caching.resolving import resolve_all
from hasten.errors import HastenError
from hasten.files import write_new
from hasten.generation import REFERENCE, OnProgress, Result, Session, name_of
from hasten.images import Panel, difference, save_png, side_by_side
from hasten.metrics.fidelity import psnr, ssim
from hasten.plan import Output, Plan, load_plan
from hasten.record import Memory, Quality, Timings

GAIN = 10
"""How much the picture of the difference is amplified."""


@dataclass(frozen=True)
class Comparison:
    """One prompt and seed, made both ways.

    Attributes:
        reference: nothing skipped. Its timings are medians over the rounds, as are the accelerated one's.
        accelerated: by the plan; its record carries `quality`.
        picture: the written side-by-side picture, if it was.
    """

    reference: Result
    accelerated: Result
    quality: Quality
    picture: Path | None = None

    @property
    def speedup(self) -> float:
        """Reference time over accelerated time, whole image, medians."""
        return self.reference.record.timings.total / self.accelerated.record.timings.total

    def image(self) -> Image.Image:
        """reference | accelerated | amplified difference, labelled."""
        reference, accelerated = self.reference.record, self.accelerated.record
        slow, fast = (_seconds(record.timings.total) for record in (reference, accelerated))
        fidelity = "identical" if self.quality.identical else f"PSNR {_figure(self.quality.psnr)} dB"
        return side_by_side(
            [
                Panel(
                    self.reference.image,
                    REFERENCE,
                    f"{reference.steps.total} steps, {slow}",
                ),
                Panel(
                    self.accelerated.image,
                    accelerated.method,
                    f"{accelerated.steps.computed} computed, {fast}, {self.speedup:.2f}x",
                ),
                Panel(
                    difference(self.accelerated.image, self.reference.image, GAIN),
                    f"difference x{GAIN}",
                    f"{fidelity}, SSIM {_figure(self.quality.ssim, 4)}",
                ),
            ]
        )

    def save(self, folder: str | Path = "outputs", output: Output | None = None, index: int = 0) -> Comparison:
        """Write both images and the side-by-side picture; never over other files.

        Args:
            output: a plan's `io`, which says how files are called.
            index: the number of this image in the run.
        """
        output = output or Output()
        reference, accelerated = (
            result.save(folder, name_of(output, result.record, index, role), latents=output.save_latents)
            for role, result in (("reference", self.reference), ("", self.accelerated))
        )
        record = accelerated.record
        name = name_of(output, record, index, "compare")
        picture = write_new(Path(folder) / name, lambda file: save_png([self.image()], file, record.png_info()))
        return replace(self, reference=reference, accelerated=accelerated, picture=picture)


def compare(
    plan: Plan | Mapping[str, Any] | str | Path | None = "taylorseer",
    prompts: str | Sequence[str] = (),
    rounds: int = 3,
    progress: OnProgress | None = None,
    pipe: Any = None,
    save: bool = False,
) -> list[Comparison]:
    """Make every image with and without acceleration: same process, pipeline, prompt and seed.

    Both ways are warmed up first; then they take turns, and which one begins changes from round to round, so that a
    machine that grows warm or busy treats both alike. Times are medians.

    Args:
        plan: with a cache; see `hasten.generate`.
        prompts: one or several.
        rounds: how often each way is timed.
        progress, pipe, save: as for `hasten.generate`.

    Raises:
        HastenError: the plan skips nothing, or anything that `generate` refuses.
    """
    return list(stream_comparisons(plan, prompts, rounds, progress=progress, pipe=pipe, save=save))


def stream_comparisons(
    plan: Plan | Mapping[str, Any] | str | Path | None,
    prompts: str | Sequence[str],
    rounds: int = 3,
    progress: OnProgress | None = None,
    pipe: Any = None,
    save: bool = False,
) -> Iterator[Comparison]:
    """`compare`, one prompt and seed at a time."""
    plan = load_plan(plan)
    if plan.method is None and plan.quality is None:
        raise HastenError("there is nothing to compare: this plan skips nothing (its cache is null)")
    if rounds < 1:
        raise HastenError("a comparison needs at least one round")
    session = Session.open(plan, prompts, pipe=pipe, save=save)
    with session.cleaning():
        _warm_up(session, progress)
        for number, (prompt, seed) in enumerate(session.jobs, start=1):
            comparison = _one(session, prompt, seed, rounds, number, progress)
            yield comparison.save(session.plan.io.out, session.plan.io, number - 1) if save else comparison


def _warm_up(session: Session, progress: OnProgress | None) -> None:
    """A few steps each way: first calls choose kernels and fill caches that every later call finds ready."""
    layers = resolve_all(session.plan.cache)
    # As many as make at least one step skipped. A mask is for the whole schedule and fits no shorter one.
    steps = session.plan.generation.num_inference_steps
    if layers and all(settings.mask is None and settings.steps is None for settings in layers):
        steps = min(steps, max(settings.first_enhance + settings.cooldown + 2 for settings in layers))
    prompt, seed = session.jobs[0]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="hasten skipped nothing")  # the real runs will say so
        for way in (False, True):
            session.run(prompt, seed, accelerated=way, steps=steps, images=1, label="warm-up", progress=progress)


def _one(session: Session, prompt: str, seed: int, rounds: int, number: int, progress: OnProgress | None) -> Comparison:
    runs: dict[bool, list[Result]] = {False: [], True: []}
    for turn in range(rounds):
        for accelerated in (False, True) if turn % 2 == 0 else (True, False):
            method = (session.plan.method if accelerated else None) or REFERENCE
            label = f"{method} {turn + 1}/{rounds}" if rounds > 1 else method
            runs[accelerated].append(
                session.run(prompt, seed, accelerated=accelerated, number=number, label=label, progress=progress)
            )
    reference, accelerated_result = _median(runs[False]), _median(runs[True])
    quality = measure(accelerated_result, reference).model_copy(
        update={
            "speedup": reference.record.timings.total / accelerated_result.record.timings.total,
            "rounds": rounds,
        }
    )
    record = accelerated_result.record.model_copy(update={"quality": quality})
    return Comparison(reference, replace(accelerated_result, record=record), quality)


def _median(runs: Sequence[Result]) -> Result:
    """The last run, with the medians of all runs' times, the highest of their peaks, and a note if they differ."""
    last = runs[-1]
    timings = Timings(
        **{name: statistics.median(getattr(run.record.timings, name) for run in runs) for name in Timings.model_fields}
    )
    peak = max(run.record.memory.peak_bytes for run in runs)
    update: dict[str, Any] = {
        "timings": timings,
        "memory": Memory(peak_bytes=peak, source=last.record.memory.source),
    }
    if any(not torch.equal(run.pixels, last.pixels) for run in runs):
        note = "the same seed gave different images in different rounds: something on this device is not deterministic"
        update["notes"] = (*last.record.notes, note)
    return replace(last, record=last.record.model_copy(update=update))


def measure(result: Result, reference: Result) -> Quality:
    """How close a result is to its reference, on decoded pixels before rounding to bytes, and on latents."""
    ratio, likeness = psnr(result.pixels, reference.pixels), ssim(result.pixels, reference.pixels)
    error: float | None = None
    a, b = result.latents, reference.latents
    if a is not None and b is not None and a.shape == b.shape:
        error = float((a.double() - b.double()).norm() / b.double().norm().clamp_min(1e-12))
    return Quality(
        psnr=ratio if math.isfinite(ratio) else None,
        ssim=likeness if math.isfinite(likeness) else None,
        max_difference=float((result.pixels - reference.pixels).abs().max()),
        latent_relative_l2=error if error is None or math.isfinite(error) else None,
        identical=ratio == math.inf,
    )


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value < 100 else f"{value:.0f} s"


def _figure(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:.{digits}f}"
