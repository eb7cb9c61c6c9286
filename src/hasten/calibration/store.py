"""Figures on disk: one small JSON file per model, scheduler and adapters, and where it is looked for."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import IO, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten._version import __version__
from hasten.caching.denoiser import Port
from hasten.caching.figures import ByBranch, Figures
from hasten.calibration.key import Key, adapters_of, key_of
from hasten.errors import CacheError, HastenError
from hasten.files import check_writable, write_new
from hasten.models import bundled_folder

BESIDE_MODEL = "calibration"
"""A model's folder may hold its own files under this name."""


class _Part(BaseModel):
    # What a later hasten adds (a Gram matrix, say) is no reason to measure anew.
    model_config = ConfigDict(frozen=True, extra="ignore")


class Fit(_Part):
    """The output's change as a function of the modulated input's.

    Attributes:
        polynomial: highest power first.
        fitted: the least and the largest change of the input that was seen.
        explained: the share of the output's variance that it accounts for (R²).
    """

    polynomial: tuple[float, ...]
    fitted: tuple[float, float]
    explained: float


class BranchFigures(_Part):
    """One branch, step by step, averaged over the prompts.

    Attributes:
        sigmas: noise levels.
        ratios: mean over tokens of the size (L2) of what is cached by that of the step before; 1 at the first step.
        changes: mean |y − y′| / mean |y′| of what is cached, against the step before; 0 at the first.
        errors: the same for its straight-line prediction from the two steps before; 0 where there is none.
        fit: None where the input's change does not tell the output's.
    """

    sigmas: tuple[float, ...]
    ratios: tuple[float, ...]
    changes: tuple[float, ...]
    errors: tuple[float, ...]
    fit: Fit | None = None

    @property
    def figures(self) -> Figures:
        if self.fit is None:
            return Figures(self.sigmas, self.ratios)
        return Figures(self.sigmas, self.ratios, self.fit.polynomial, self.fit.fitted)


class Calibration(_Part):
    """A file.

    Attributes:
        site: where what is cached was taken.
        steps, prompts: of the measured runs.
        denoisers: by their names in the pipeline, then by branch.
    """

    version: Literal[1] = 1
    hasten: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    key: Key
    site: str
    steps: int
    prompts: int
    denoisers: dict[str, dict[str, BranchFigures]]
    notes: tuple[str, ...] = ()

    def of(self, denoiser: str) -> ByBranch:
        """The figures of a denoiser, by branch."""
        return {name: branch.figures for name, branch in self.denoisers.get(denoiser, {}).items()}

    def save(self, path: Path | None = None) -> Path:
        """Write it, by default where it is found again; an older one of the same key is replaced.

        Raises:
            HastenError: the folder cannot be written to.
        """
        path = path or folder() / self.key.filename
        check_writable(path.parent)
        path.unlink(missing_ok=True)
        return write_new(path, partial(_write, self.model_dump_json(indent=1).encode()))


def _write(content: bytes, file: IO[bytes]) -> None:
    file.write(content + b"\n")


def folder() -> Path:
    """Where calibrations are kept: below `HASTEN_HOME`, else below the user's cache folder."""
    home = os.environ.get("HASTEN_HOME")
    if home:
        return Path(home).expanduser() / "calibrations"
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache).expanduser() if cache else Path.home() / ".cache") / "hasten" / "calibrations"


def read(path: Path) -> Calibration:
    """Raises HastenError where there is no calibration, or none that this hasten can read."""
    try:
        return Calibration.model_validate_json(path.read_bytes())
    except OSError as error:
        raise HastenError(f"{path} cannot be read: {error.strerror}; `hasten calibrate MODEL` makes one") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise HastenError(
            f"{path} is no calibration: {where}: {first['msg']}; make one with hasten calibrate"
        ) from error


class Shelf:
    """The figures of a pipeline, looked up anew whenever its adapters change.

    Args:
        target: the pipeline, or a bare denoiser.
        path: the file to use; None to look in the model's folder and in the user's.
    """

    def __init__(self, target: Any, ports: Sequence[Port], path: Path | None) -> None:
        self._target = target
        self._ports = ports
        self._path = path
        self._looked: tuple[object, Calibration | None, str] | None = None

    def figures(self, port: Port) -> tuple[ByBranch, str]:
        """The figures of a denoiser, and why there are none."""
        calibration, why = self._now()
        if calibration is None:
            return {}, why
        found = calibration.of(port.name)
        return found, "" if found else f"the calibration says nothing of {port.name}"

    def require(self, who: str, what: str) -> None:
        """Raises CacheError where there is nothing to be found.

        Args:
            who, what: who needs what.
        """
        calibration, why = self._now()
        if calibration is None:
            raise CacheError(f"{who} needs measured figures ({what}): {why}, or give cache.{what}")

    def _now(self) -> tuple[Calibration | None, str]:
        scheduler = getattr(self._target, "scheduler", None)
        state = (adapters_of(self._ports), id(scheduler))
        if self._looked is None or self._looked[0] != state:
            self._looked = (state, *self._look())
        return self._looked[1:]

    def _look(self) -> tuple[Calibration | None, str]:
        key = key_of(self._target, self._ports)
        if self._path is not None:
            calibration = read(self._path)
            differences = calibration.key.differences(key)
            return (None, f"{self._path} is for {'; '.join(differences)}") if differences else (calibration, "")
        near = ""
        for path in candidates(self._target, key):
            try:
                calibration = read(path)
            except HastenError as error:
                near = near or f"; {error}"
                continue
            differences = calibration.key.differences(key)
            if not differences:
                return calibration, ""
            near = near or f"; {path.name} is for {'; '.join(differences)}"
        return None, f"no calibration of {key.model}{near}; measure it: hasten calibrate {_to_type(self._target)}"


def _to_type(target: Any) -> str:
    """What names a pipeline's model on the command line."""
    source = getattr(getattr(target, "config", None), "_name_or_path", None)
    if not source:
        return "MODEL"
    path = Path(str(source))
    return path.name if path.parent == bundled_folder() else str(source)


def candidates(target: Any, key: Key) -> Iterator[Path]:
    """Files that may be for a pipeline, the likeliest first."""
    source = getattr(getattr(target, "config", None), "_name_or_path", None)
    if source:
        yield from sorted(Path(str(source)).glob(f"{BESIDE_MODEL}*.json"))
    mine = folder() / key.filename
    if mine.is_file():
        yield mine
    yield from (path for path in sorted(folder().glob(f"{key.model}-*.json")) if path != mine)
