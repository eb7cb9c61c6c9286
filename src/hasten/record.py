"""What one generation was and what was measured: JSON, and text inside the PNG it made.

A PNG carries two texts: `parameters`, the form that Stable Diffusion web UI (A1111) began and most viewers read, and
`hasten`, this record as JSON, from which the image can be made again.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import to_jsonable_python

from hasten._version import __version__
from hasten.errors import HastenError
from hasten.plan import Plan

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

RECORD_KEY, PARAMETERS_KEY = "hasten", "parameters"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class Model(_Part):
    """The model as it was found: name, classes of its pipeline, denoiser(s) and scheduler."""

    name: str
    pipeline: str
    denoisers: tuple[str, ...] = ()
    scheduler: str | None = None


class Device(_Part):
    """Where it ran. `threads` are torch's, on the CPU."""

    type: str
    name: str
    dtype: str
    threads: int | None = None


class Timings(_Part):
    """Wall-clock seconds with the device synchronised. `other` is what no stage accounts for."""

    text: float
    denoise: float
    decode: float
    other: float
    total: float
    per_step: float


class Steps(_Part):
    """Steps of the schedule, and denoiser calls where they were counted."""

    total: int
    computed: int
    skipped: int


class Memory(_Part):
    """Peak while the image was made; `source` is "allocator" (the accelerator's) or "process" (resident memory)."""

    peak_bytes: int
    source: str


class Pass(_Part):
    """What was done to the pipeline besides its cache: which pass, to which part, what, and what it measured."""

    name: str
    component: str
    what: str
    figures: Mapping[str, str | int | float] = {}


class Quality(_Part):
    """Against the reference of the same prompt and seed. An infinite PSNR is null, with `identical` true."""

    psnr: float | None
    ssim: float | None
    max_difference: float | None
    latent_relative_l2: float | None
    identical: bool
    speedup: float | None = None
    rounds: int | None = None


class Record(_Part):
    """One generation. `plan` is complete: what it left to the model is filled in, so it makes the image again."""

    version: Literal[1] = 1
    hasten: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    prompt: str
    seed: int
    width: int
    height: int
    frames: int = 1
    method: str
    plan: Plan
    model: Model
    device: Device
    versions: dict[str, str]
    timings: Timings
    steps: Steps
    memory: Memory
    report: Annotated[dict[str, Any], BeforeValidator(to_jsonable_python)] | None = None
    """The handle's report; None where nothing was accelerated."""
    passes: tuple[Pass, ...] = ()
    notes: tuple[str, ...] = ()
    quality: Quality | None = None

    def to_json(self, indent: int | None = None) -> str:
        return self.model_dump_json(indent=indent)

    @classmethod
    def from_json(cls, text: str | bytes) -> Record:
        """Raises HastenError where the text is no record, or one of a newer hasten."""
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            what = f"{place}: {first['msg']}" if place else first["msg"]
            raise HastenError(f"this is no record that hasten {__version__} can read: {what}") from error

    def parameters(self) -> str:
        """The record in A1111's form: prompt, negative prompt, one line of settings."""
        generation, caches = self.plan.generation, self.plan.caches
        scale = generation.true_cfg_scale if generation.true_cfg_scale is not None else generation.guidance_scale
        settings: dict[str, object] = {
            "Steps": self.steps.total if self.plan.adaptive.on else generation.num_inference_steps,
            "Sampler": self.plan.sampler.name if self.plan.sampler.name != "default" else self.model.scheduler,
            "CFG scale": scale,
            "Seed": self.seed,
            "Size": f"{self.width}x{self.height}",
            "Model": self.model.name,
            "Method": self.method,
            "Cache interval": _listed(cache.interval for cache in caches),
            "Cache order": _listed(cache.order for cache in caches),
            "Computed steps": f"{self.steps.computed}/{self.steps.total}",
            "Version": f"hasten {self.hasten}",
        }
        lines = [self.prompt]
        if generation.negative_prompt and generation.negative_prompt.strip():
            lines.append(f"Negative prompt: {generation.negative_prompt}")
        lines.append(", ".join(f"{key}: {_quoted(value)}" for key, value in settings.items() if value is not None))
        return "\n".join(lines)

    def png_info(self) -> PngInfo:
        """Both texts, ready for `Image.save(..., pnginfo=...)`."""
        from PIL.PngImagePlugin import PngInfo

        info = PngInfo()
        # tEXt where latin-1 suffices, since old readers know nothing else; Pillow turns to iTXt by itself.
        info.add_text(PARAMETERS_KEY, self.parameters())
        info.add_itxt(RECORD_KEY, self.to_json())
        return info


class Found(_Part):
    """What a PNG says of itself."""

    record: Record | None
    parameters: str | None


def read_png(path: Path) -> Found:
    """Read the texts of an image file.

    Raises:
        HastenError: no image, an image without either text, or a record that cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            image.load()  # texts may stand behind the pixels
            texts = {**image.info, **getattr(image, "text", {})}
    except FileNotFoundError as error:
        raise HastenError(f"{path}: no such file") from error
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise HastenError(f"{path} is no image that can be read: {error}") from error
    record, parameters = texts.get(RECORD_KEY), texts.get(PARAMETERS_KEY)
    if record is None and parameters is None:
        raise HastenError(
            f"{path} says nothing about how it was made: it has neither a `hasten` nor a `parameters` text "
            "(many programs and sites strip them)"
        )
    try:
        return Found(
            record=None if record is None else Record.from_json(str(record)),
            parameters=None if parameters is None else str(parameters),
        )
    except HastenError as error:
        raise HastenError(f"{path}: {error}") from error


def parse_parameters(text: str) -> dict[str, str]:
    """A1111's text as a mapping: `Prompt`, `Negative prompt`, then its settings by their own names."""
    lines = text.strip().splitlines()
    settings: list[tuple[str, str]] = []
    if lines and re.match(r"Steps: \d", lines[-1]):
        settings = re.findall(r'([\w][\w \-/]*): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)', lines.pop())
    cut = next((i for i, line in enumerate(lines) if line.startswith("Negative prompt:")), len(lines))
    values = {"Prompt": "\n".join(lines[:cut])}
    if cut < len(lines):
        values["Negative prompt"] = "\n".join(lines[cut:]).removeprefix("Negative prompt:").strip()
    return values | {key.strip(): _unquoted(value.strip()) for key, value in settings}


def _listed(values: Iterable[int | None]) -> object:
    """One figure as it is, several in a list."""
    known = [value for value in values if value is not None]
    return known[0] if len(known) == 1 else "/".join(map(str, known)) or None


def _quoted(value: object) -> str:
    """A1111 quotes a value that holds its separators, as JSON does."""
    import json

    text = str(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text


def _unquoted(text: str) -> str:
    import json

    if text.startswith('"'):
        try:
            return str(json.loads(text))
        except ValueError:
            return text
    return text
