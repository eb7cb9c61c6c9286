"""From what one run returned to the rows of a report."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from hasten.bench.schema import Adherence, Gpu, Sample, Step, Variant
from hasten.bench.variants import Candidate
from hasten.comparison import measure
from hasten.errors import HastenError
from hasten.generation import Result

if TYPE_CHECKING:
    from hasten.metrics.clip import Clip


def variant_row(candidate: Candidate) -> Variant:
    """What is known of a variant before it ran."""
    return Variant(name=candidate.name, kind=candidate.kind, plan=candidate.plan, differs=candidate.differs)


def warmed(row: Variant, results: Sequence[Result], stamps: Sequence[float]) -> Variant:
    """A plan's row, with what its handle told in the warm-up.

    Args:
        results: of the warm-up runs.
        stamps: when each step of the last of them ended.
    """
    record = results[-1].record
    report: Mapping[str, Any] = record.report or {}
    return row.model_copy(
        update={
            "first_seconds": results[0].record.timings.total,
            "computed": record.steps.computed,
            "skipped": record.steps.skipped,
            "site": report.get("site"),
            "predictor": report.get("predictor"),
            "snapshot_bytes": report.get("snapshot_bytes"),
            "steps": _steps(stamps, record.timings.denoise, report.get("steps")),
            "notes": record.notes,
        }
    )


def warmed_peer(row: Variant, results: Sequence[Result], stamps: Sequence[float], shares: Sequence[float]) -> Variant:
    """A peer's row: it tells nothing, so that its steps are known by their arithmetic alone.

    Args:
        shares: of each step, its arithmetic over the plain pipeline's.
    """
    told = [
        {"sigma": None, "computed": share >= 0.5, "reason": f"{share:.0%} of the arithmetic of a full step"}
        for share in shares
    ]
    timings = results[-1].record.timings
    notes = row.notes
    if shares and min(shares) > 0.99:
        notes = (*notes, "it left nothing out with these settings")
    if not shares:
        notes = (*notes, "its arithmetic could not be counted step by step")
    return row.model_copy(
        update={
            "first_seconds": results[0].record.timings.total,
            "steps": _steps(stamps, timings.denoise, told) if told else (),
            "notes": notes,
        }
    )


def sample_row(
    name: str,
    result: Result,
    reference: Result | None,
    *,
    round_: int,
    prompt: int,
    seed: int,
    counted: bool,
    gpu: Gpu | None,
    image: str | None,
    clip: Clip | None = None,
) -> Sample:
    """One image.

    Args:
        reference: what it is measured against; None for the reference itself, or where it was not made.
        counted: whether the record knows the steps that were computed.
        clip: what scores the image against its prompt.
    """
    record = result.record
    fits = reference is not None and result.pixels.shape == reference.pixels.shape
    return Sample(
        variant=name,
        round=round_,
        prompt=prompt,
        seed=seed,
        timings=record.timings,
        computed=record.steps.computed if counted else None,
        skipped=record.steps.skipped if counted else None,
        peak_bytes=record.memory.peak_bytes,
        memory_source=record.memory.source,
        digest=hashlib.sha256(result.pixels.contiguous().numpy().tobytes()).hexdigest()[:16],
        quality=measure(result, reference) if fits and reference is not None else None,
        adherence=_adherence(record.prompt, result),
        clip=None if clip is None else clip.score(result.image.convert("RGB"), record.prompt),
        gpu=gpu,
        image=image,
    )


def reason(error: BaseException) -> str:
    """An error as a row of a table says it."""
    return str(error) if isinstance(error, HastenError) else f"{type(error).__name__}: {error}"


def _steps(stamps: Sequence[float], denoise: float, rows: Any) -> tuple[Step, ...]:
    """Times between the ends of steps; the first began when the schedule was set."""
    if not stamps:
        return ()
    seconds = [max(0.0, denoise - (stamps[-1] - stamps[0])), *(b - a for a, b in itertools.pairwise(stamps))]
    if not rows:
        return tuple(
            Step(index=i, sigma=None, computed=True, reason="nothing skipped", seconds=s) for i, s in enumerate(seconds)
        )
    if len(rows) != len(seconds):  # a solver whose calls are not its scheduler's steps: no time belongs to one call
        return ()
    return tuple(
        Step(index=i, sigma=row["sigma"], computed=row["computed"], reason=row["reason"], seconds=s)
        for i, (row, s) in enumerate(zip(rows, seconds, strict=True))
    )


def _adherence(prompt: str, result: Result) -> Adherence | None:
    """What the scenes checker says, for prompts that are scenes and images that are pictures."""
    from hasten.metrics.scenes import parse, score

    try:
        scene = parse(prompt)
    except ValueError:
        return None
    found = score(scene, result.image.convert("RGB"))
    return Adherence(right=found.right, objects=found.objects)
