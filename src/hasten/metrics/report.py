"""What a measurement found, for a table and for JSON."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Better = Literal["higher", "lower"]


@dataclass(frozen=True)
class Metric:
    """A metric's name in tables, its unit, and which way is better."""

    title: str
    better: Better
    unit: str = ""
    digits: int = 4


METRICS: dict[str, Metric] = {
    "psnr": Metric("PSNR", "higher", "dB", 2),
    "ssim": Metric("SSIM", "higher"),
    "ms_ssim": Metric("MS-SSIM", "higher"),
    "max_difference": Metric("maximum difference", "lower"),
    "lpips": Metric("LPIPS", "lower"),
    "embedding_distance": Metric("embedding distance", "lower"),
    "clip_image_similarity": Metric("CLIP image similarity", "higher"),
    "temporal_l1": Metric("temporal L1", "lower"),
    "temporal_relative_l2": Metric("temporal relative L2", "lower"),
    "relative_l1": Metric("latent relative L1", "lower"),
    "relative_l2": Metric("latent relative L2", "lower"),
    "cosine": Metric("latent cosine", "higher", digits=6),
    "clip_score": Metric("CLIP score", "higher", digits=2),
    "clip_directional_similarity": Metric("CLIP directional similarity", "higher"),
    "reward": Metric("reward", "higher"),
    "scenes_right": Metric("scenes: all right", "higher"),
    "scenes_objects": Metric("scenes: objects", "higher"),
    "scenes_colours": Metric("scenes: colours", "higher"),
    "scenes_shapes": Metric("scenes: shapes", "higher"),
    "scenes_relations": Metric("scenes: relations", "higher"),
    "scenes_background": Metric("scenes: background", "higher"),
    "scenes_nothing_extra": Metric("scenes: nothing extra", "higher"),
    "frechet_distance": Metric("Fréchet distance", "lower"),
    "kernel_distance": Metric("kernel distance", "lower"),
}


@dataclass(frozen=True)
class Pair:
    """A picture, film or latent and its reference. A film's PSNR and SSIM are means over its frames.

    values: by metric; inf where identical, nan where it is not defined.
    per_frame: of a film, PSNR and SSIM of every frame.
    """

    name: str
    reference: str
    identical: bool
    values: dict[str, float]
    per_frame: dict[str, tuple[float, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Figure:
    """A metric over all pairs. `mean` leaves out identical pairs' infinite PSNR; inf when all pairs are identical."""

    metric: str
    mean: float
    worst: float
    count: int
    identical: int


@dataclass(frozen=True)
class Adherence:
    """How well pictures show what was asked, and the reference's pictures too. None where there are none."""

    metric: str
    image: float | None
    reference: float | None
    count: int


@dataclass(frozen=True)
class Distance:
    """A distance of the two sets; it means something only in its features."""

    metric: str
    value: float
    spread: float | None
    features: str
    dimensions: int
    images: int
    references: int


@dataclass(frozen=True)
class Missing:
    """What was not computed, and why."""

    metric: str
    reason: str


@dataclass(frozen=True)
class Failure:
    """A pair that could not be compared, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Measurement:
    """Everything that was measured, and what was not: metrics, pairs, and names without a partner."""

    pairs: tuple[Pair, ...] = ()
    adherence: tuple[Adherence, ...] = ()
    distances: tuple[Distance, ...] = ()
    not_computed: tuple[Missing, ...] = ()
    failed: tuple[Failure, ...] = ()
    unmatched_images: tuple[str, ...] = ()
    unmatched_references: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def identical(self) -> bool:
        """Whether every pair is."""
        return bool(self.pairs) and all(pair.identical for pair in self.pairs)

    def figures(self) -> tuple[Figure, ...]:
        """Every metric over all pairs, in the order of `METRICS`."""
        found = []
        for name, metric in METRICS.items():
            values = [pair.values[name] for pair in self.pairs if name in pair.values]
            if values:
                found.append(_figure(name, metric.better, values))
        return tuple(found)

    def to_dict(self) -> dict[str, Any]:
        """As plain JSON. Infinite and undefined values are null; `identical` tells which an infinite PSNR was."""
        document = asdict(self)
        unmatched = {"image": document.pop("unmatched_images"), "reference": document.pop("unmatched_references")}
        summary = {
            figure.metric: {
                "mean": figure.mean,
                "worst": figure.worst,
                "count": figure.count,
                "identical": figure.identical == figure.count,
                "better": METRICS[figure.metric].better,
            }
            for figure in self.figures()
        }
        plain: dict[str, Any] = _plain(
            {"version": 1, "identical": self.identical, "summary": summary, **document, "unmatched": unmatched}
        )
        return plain


def _figure(name: str, better: Better, values: list[float]) -> Figure:
    infinite = sum(value == math.inf for value in values)
    # Only PSNR says identical by an infinity; an infinite error is a real one, and stays in the mean.
    kept = [value for value in values if not (name == "psnr" and value == math.inf)] or values
    worst = math.nan if any(map(math.isnan, kept)) else (min if better == "higher" else max)(kept)
    return Figure(name, sum(kept) / len(kept), worst, len(values), infinite if name == "psnr" else 0)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, (list, tuple)) else value
