"""What a measurement works with and what it has found so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from hasten.metrics.clip import Clip
from hasten.metrics.embedding import EmbeddingDistance
from hasten.metrics.features import Extractor
from hasten.metrics.lpips import Lpips
from hasten.metrics.report import Adherence, Distance, Failure, Measurement, Missing, Pair
from hasten.metrics.sources import Item


@dataclass(frozen=True)
class Tools:
    clip: Clip | None
    lpips: Lpips | None
    embedding: EmbeddingDistance | None
    extractor: Extractor | None
    scores: dict[str, float] | None


@dataclass
class Findings:
    """What has been found so far; a reason is told once per metric."""

    pairs: list[Pair] = field(default_factory=list)
    matched: list[tuple[Item, Item]] = field(default_factory=list)
    adherence: list[Adherence] = field(default_factory=list)
    distances: list[Distance] = field(default_factory=list)
    missing: dict[tuple[str, str], Missing] = field(default_factory=dict)
    failed: list[Failure] = field(default_factory=list)
    unmatched: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    notes: list[str] = field(default_factory=list)

    def miss(self, metric: str, reason: str) -> None:
        self.missing.setdefault((metric, reason), Missing(metric, reason))

    def done(self) -> Measurement:
        return Measurement(
            tuple(self.pairs),
            tuple(self.adherence),
            tuple(self.distances),
            tuple(self.missing.values()),
            tuple(self.failed),
            *self.unmatched,
            tuple(self.notes),
        )


def some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") or "nothing"
