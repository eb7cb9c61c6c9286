"""Floors: what an accelerated image must still be, and whether measurements are sure enough of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from hasten.bench.schema import Sample
from hasten.bench.statistics import mean
from hasten.errors import HastenError

Metric = Literal["psnr", "ssim", "latent_error", "accuracy", "clip"]
PERFECT = 100.0
"""PSNR of an image that equals its reference, in means."""


@dataclass(frozen=True)
class Floor:
    """One condition on the mean over images.

    Attributes:
        metric: psnr in dB, ssim, latent_error (relative; a ceiling), each against the reference; accuracy: of the
            scenes that the reference draws right, the share that must still be right; clip: by how much the CLIP
            score, as a cosine, may change from the reference's.
    """

    metric: Metric
    value: float

    @property
    def is_ceiling(self) -> bool:
        return self.metric == "latent_error"

    def margin(self, value: float) -> float:
        """How far above the floor a value is; negative below it. In dB of error where errors are meant."""
        if self.metric == "latent_error":
            return 20 * math.log10(self.value / max(value, 1e-9))
        if self.metric == "ssim" and self.value < 1:
            return 20 * math.log10((1 - self.value) / max(1 - value, 1e-9))
        return value - self.value

    def __str__(self) -> str:
        unit = " dB" if self.metric == "psnr" else ""
        return f"{self.metric.replace('_', ' ')} {'≤' if self.is_ceiling else '≥'} {self.value:g}{unit}"


@dataclass(frozen=True)
class Verdict:
    """A floor beside what was measured.

    Attributes:
        value: the mean over the images.
        bound: the end of its 95 % interval that the floor is held against; None of a single image.
    """

    floor: Floor
    value: float
    bound: float | None
    images: int

    @property
    def holds(self) -> bool:
        """Whether the floor holds even at the unlucky end of the interval."""
        return self.bound is not None and self.floor.margin(self.bound) >= 0

    def __str__(self) -> str:
        sure = "one image" if self.bound is None else f"95 % bound {self.bound:.4g}"
        return f"{self.floor}: {self.value:.4g} ({sure}, {self.images} images): {'holds' if self.holds else 'broken'}"


def parse_floor(text: str) -> Floor:
    """`psnr=32`.

    Raises:
        HastenError: another metric, or no number.
    """
    name, equals, written = (part.strip() for part in text.partition("="))
    name = name.lower().replace("-", "_")
    allowed = get_args(Metric)
    try:
        value = float(written)
    except ValueError:
        value = math.nan
    if name not in allowed or not equals or not math.isfinite(value):
        raise HastenError(f"--floor {text}: write one of {', '.join(allowed)} and a number, such as psnr=32")
    if name == "latent_error" and value <= 0:
        raise HastenError(f"--floor {text}: an error of 0 holds for the reference alone")
    return Floor(name, value)  # type: ignore[arg-type]


def value_of(floor: Floor, sample: Sample, reference: Sample) -> float | None:
    """One image's part in a floor; None where it has none, such as a scene that the reference draws wrong.

    Raises:
        HastenError: the prompt is no scene whose image could be right or wrong.
    """
    if floor.metric == "accuracy":
        if sample.adherence is None or reference.adherence is None:
            raise HastenError(
                "--floor accuracy: only of scenes is known whether an image is right; write prompts like "
                '"a red circle left of a blue square", or take --prompts builtin:12'
            )
        return float(sample.adherence.right) if reference.adherence.right else None
    if floor.metric == "clip":
        if sample.clip is None or reference.clip is None:
            raise HastenError("--floor clip needs a CLIP model: name its folder (--clip FOLDER)")
        return (sample.clip - reference.clip) / 100
    quality = sample.quality
    if quality is None:
        return 0.0 if not floor.is_ceiling else math.inf
    if floor.metric == "psnr":
        return PERFECT if quality.identical else quality.psnr
    return quality.ssim if floor.metric == "ssim" else quality.latent_relative_l2


def judge(floor: Floor, pairs: Sequence[tuple[Sample, Sample]]) -> Verdict:
    """A floor against images and their references, one pair for each prompt and seed."""
    values = [value for sample, reference in pairs if (value := value_of(floor, sample, reference)) is not None]
    if not values:
        return Verdict(floor, math.nan, None, 0)
    interval = mean(values)
    return Verdict(floor, interval.value, interval.high if floor.is_ceiling else interval.low, len(values))
