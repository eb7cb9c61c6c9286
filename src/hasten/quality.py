"""The quality dial: a word for how close an image has to be to its reference, and the cache that it comes to."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from hasten.errors import HastenError
from hasten.plan import Plan, load_plan
from hasten.plan.schema import QualityName

if TYPE_CHECKING:
    from hasten.schedule.store import Calibration, StoredPoint

FLOORS: dict[QualityName, float] = {"near-lossless": 45.0, "high": 40.0, "balanced": 35.0, "draft": 30.0}
"""PSNR against the reference in dB that an image is to have."""
DECODER = 12.0
"""PSNR of an image whose latent is wrong by its whole size, in dB, where nothing was measured: 52 dB at 1 %."""
_UNTRIED = 1.25
"""An error that was expected and never measured counts for so much more."""
_BESIDE_MODEL = "hasten-schedule.json"


class Resolved(NamedTuple):
    """A plan without the word, and how it was understood."""

    plan: Plan
    note: str


def resolve_quality(plan: Plan, pipe: Any, steps: int | None) -> Resolved:
    """Put the cache in the place of `quality`.

    A calibration of `hasten schedule` for this very model decides where there is one; else the policy `tolerance`.

    Args:
        pipe: the pipeline that will run.
        steps: the number of steps; None where nobody knows it yet, and then no schedule fits.
    """
    assert plan.quality is not None
    floor = FLOORS[plan.quality]
    goal = f"quality {plan.quality} (PSNR of {floor:g} dB)"
    why = "no schedule is stored for this model; `hasten schedule` makes one"
    for path in _candidates(plan.model, pipe):
        found, why = _look(path, pipe, plan.model, floor, steps)
        if found is not None:
            error = found.predicted_error if found.measured_error is None else found.measured_error
            kind = "expected" if found.measured_error is None else "measured"
            note = f"{goal}: {found.computed} of {found.steps} steps by {path}, {kind} latent error {error:.2%}"
            return Resolved(_with_cache(plan, found.cache), note)
    tolerance = float(f"{allowed_error(floor):.2g}")
    note = f"{goal}: tolerance {tolerance:g}: {why}"
    return Resolved(_with_cache(plan, {"method": "tolerance", "tolerance": tolerance}), note)


def allowed_error(floor: float, decoder: float = DECODER) -> float:
    """The relative error of the final latent that comes to a PSNR.

    >>> round(allowed_error(52.0), 3)
    0.01
    """
    return float(10 ** ((decoder - floor) / 20))


def _with_cache(plan: Plan, cache: dict[str, Any]) -> Plan:
    return load_plan({**plan.to_dict(), "quality": None, "cache": cache})


def _look(path: Path, pipe: Any, model: str, floor: float, steps: int | None) -> tuple[StoredPoint | None, str]:
    """The cheapest schedule of a file that is good enough, or why there is none."""
    from hasten.schedule import store

    try:
        stored = store.read(path)
        store.check_fits(stored, pipe, model)
    except HastenError as error:
        return None, f"{path}: {error}"
    return _cheapest(stored, path, floor, steps)


def _cheapest(stored: Calibration, path: Path, floor: float, steps: int | None) -> tuple[StoredPoint | None, str]:
    lengths = sorted({point.steps for point in stored.frontier})
    points = [point for point in stored.frontier if point.steps == steps]
    if not points:
        known = ", ".join(map(str, lengths)) or "no"
        return None, f"{path} has schedules for {known} steps, not for {steps or 'an unknown number of'}"
    limit = allowed_error(floor, DECODER if stored.decoder is None else stored.decoder)
    able = [point for point in points if _error(point) <= limit]
    if not able:
        return None, f"no schedule in {path} comes below a latent error of {limit:.2%}"
    return min(able, key=lambda point: (point.computed, _error(point))), ""


def _error(point: StoredPoint) -> float:
    return _UNTRIED * point.predicted_error if point.measured_error is None else point.measured_error


def _candidates(model: str, pipe: Any) -> Iterator[Path]:
    """Where a schedule may be: beside the model, in the folder that `hasten schedule` writes to, and in the user's."""
    from hasten.calibration.store import folder

    name = f"{Path(model).stem or 'model'}.json"
    source = getattr(getattr(pipe, "config", None), "_name_or_path", None)
    beside = [Path(str(source)) / _BESIDE_MODEL] if source else []
    for path in (*beside, Path("schedules") / name, folder().parent / "schedules" / name):
        if path.is_file():
            yield path
