"""What was tried, one line of JSON each, written as soon as it is known: a tuning that was interrupted goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from hasten.bench.schema import Sample
from hasten.errors import HastenError

Values = Mapping[str, Any]
"""What a trial lays over the reference's plan, nested as in YAML."""


class Trial(BaseModel):
    """One choice, and what came of it.

    Attributes:
        stage: parts are tried one by one; then whole plans are guessed at (`joint`).
        chosen: what the search chose, by name.
        values: what that means: laid over the reference's plan.
        expected: seconds of an image that the parts' figures foretell.
        samples: an image of each tuning prompt that it got to; none where it was not worth a run.
        error: why it cannot run here.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    stage: Literal["reference", "part", "joint"]
    chosen: dict[str, str | int | float | bool]
    values: dict[str, Any]
    expected: float | None = None
    samples: tuple[Sample, ...] = ()
    skipped: str | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        return key_of(self.values)

    @property
    def seconds(self) -> float | None:
        """The mean over its images."""
        times = [sample.timings.total for sample in self.samples]
        return sum(times) / len(times) if times else None

    @property
    def peak_bytes(self) -> int:
        return max((sample.peak_bytes for sample in self.samples), default=0)


def key_of(values: Values) -> str:
    """The same for the same plan."""
    return json.dumps(values, sort_keys=True)


class Log:
    """The trials of one tuning, in a file."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.trials: list[Trial] = []

    def read(self) -> None:
        """Raises HastenError where the file is not one of trials; a last line that was cut off is left out."""
        lines = self.path.read_text("utf-8").splitlines() if self.path.exists() else []
        for number, line in enumerate(lines, start=1):
            try:
                self.trials.append(Trial.model_validate_json(line))
            except ValidationError as error:
                if number == len(lines):
                    break
                raise HastenError(f"{self.path}:{number} is no trial of hasten tune; use another --out") from error
        if lines and len(self.trials) < len(lines):
            self.path.write_text("".join(trial.model_dump_json() + "\n" for trial in self.trials), "utf-8")

    def add(self, trial: Trial) -> Trial:
        self.trials.append(trial)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(trial.model_dump_json() + "\n")
        return trial

    def find(self, stage: str, values: Values) -> Trial | None:
        """The trial of this plan, if there was one."""
        key = key_of(values)
        return next((trial for trial in self.trials if trial.stage == stage and trial.key == key), None)
