"""Calibrations on disk: some 20 kB of JSON that serve any number of steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten.errors import HastenError
from hasten.generation import Session
from hasten.plan.schema import dump
from hasten.schedule.measure import Measured
from hasten.schedule.solve import Point


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class StoredPoint(Section):
    """See `solve.Point`; `cache` is the section of a plan that runs it."""

    steps: int
    computed: int
    predicted_error: float
    measured_error: float | None
    cache: dict[str, Any]


class Calibration(Section):
    """What `hasten schedule` knows of a model.

    Attributes:
        model, denoiser, scheduler: what was measured; schedules hold for nothing else.
        adapters: names of the LoRAs and other adapters that were active.
        steps, prompts, size: of the runs that were measured.
        sigmas, gains, power, factor: see `measure.Measured`; factor row by row, up to the diagonal.
        frontier: the best schedules found.
        decoder: PSNR of an image whose latent is wrong by its whole size, in dB: what the decoder makes of errors. None
            where no schedule was run.
    """

    version: Literal[1] = 1
    model: str
    denoiser: str
    scheduler: str
    adapters: list[str]
    steps: int
    prompts: int
    size: tuple[int | None, int | None]
    sigmas: list[float]
    gains: list[float]
    power: float
    factor: Annotated[list[list[float]], Field(min_length=1)]
    frontier: list[StoredPoint]
    decoder: float | None = None

    @property
    def measured(self) -> Measured:
        factor = np.zeros((len(self.factor), max(map(len, self.factor))))
        for row, known in zip(factor, self.factor, strict=True):
            row[: len(known)] = known
        return Measured(np.array(self.sigmas), factor, np.array(self.gains), self.power, self.prompts)


def rounded(values: Any, digits: int) -> Any:
    """Nested lists of floats with so many significant digits."""
    if isinstance(values, list):
        return [rounded(value, digits) for value in values]
    return float(f"{values:.{digits}g}")


def stored_point(point: Point) -> StoredPoint:
    return StoredPoint(
        steps=point.steps,
        computed=point.budget,
        predicted_error=rounded(point.predicted, 4),
        measured_error=None if point.measured is None else rounded(point.measured, 4),
        cache=point.section,
    )


def calibration_of(session: Session, measured: Measured) -> Calibration:
    """What was measured, with the name of what it was measured on."""
    pipe = session.pipe
    generation = session.plan.generation
    return Calibration(
        model=session.plan.model,
        denoiser=_denoiser(pipe),
        scheduler=type(pipe.scheduler).__name__,
        adapters=_adapters(pipe),
        steps=generation.num_inference_steps,
        prompts=measured.prompts,
        size=(generation.width, generation.height),
        sigmas=rounded(measured.sigmas.tolist(), 7),
        gains=rounded(measured.gains.tolist(), 4),
        power=rounded(measured.power, 6),
        factor=[rounded(row[: place + 1].tolist(), 6) for place, row in enumerate(measured.factor)],
        frontier=[],
    )


def check_fits(stored: Calibration, pipe: Any, model: str) -> None:
    """Whether a calibration is of this model.

    Raises:
        HastenError: names what differs and how to measure anew.
    """
    now = {
        "denoiser": _denoiser(pipe),
        "scheduler": type(getattr(pipe, "scheduler", None)).__name__,
        "adapters": _adapters(pipe),
    }
    for key, value in now.items():
        before = getattr(stored, key)
        if before != value:
            raise HastenError(
                f"the calibration is of another {key} ({before or 'none'}, now {value or 'none'}): measure again with "
                f"hasten schedule {model}"
            )


def text(stored: Calibration) -> str:
    """As JSON, one row of the factor on a line."""
    values = stored.model_dump(mode="json")
    rows = ",\n  ".join(json.dumps(row, separators=(",", ":")) for row in values.pop("factor"))
    points = ",\n  ".join(json.dumps(point) for point in values.pop("frontier"))
    head = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())
    return f'{{{head},\n "factor": [\n  {rows}],\n "frontier": [\n  {points}]}}\n'


def plan_text(point: Point, model: str) -> str:
    """A plan that runs a schedule, with what is known of it as its header."""
    known = f"# {point.budget} of {point.steps} steps computed, found by `hasten schedule {model}`\n"
    known += f"# error of the final latent: expected {point.predicted:.2%}"
    known += "\n" if point.measured is None else f", measured {point.measured:.2%}\n"
    values = {
        "version": 1,
        "model": model,
        "cache": point.section,
        "generation": {"num_inference_steps": point.steps},
    }
    return known + dump(values)


def _denoiser(pipe: Any) -> str:
    """The denoiser's class and size, which tell a model from its fine-tuned relatives well enough."""
    part = getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)
    if part is None:
        return type(pipe).__name__
    return f"{type(part).__name__}, {sum(parameter.numel() for parameter in part.parameters())} parameters"


def _adapters(pipe: Any) -> list[str]:
    try:
        return sorted(pipe.get_active_adapters())
    except (AttributeError, ValueError):  # no LoRA support in this pipeline, or PEFT is not installed
        return []


def read(path: Path) -> Calibration:
    """A calibration from its file.

    Raises:
        HastenError: there is none, or it is not one.
    """
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HastenError(f"{path} cannot be read: {error.strerror}; `hasten schedule MODEL` makes one") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(f"{path} is no calibration of `hasten schedule`: {where}: {first['msg']}") from error
