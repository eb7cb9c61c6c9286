"""The section of a plan that lets a run choose its own number of steps."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

from hasten.plan.section import Number, Section, Whole
from hasten.plan.values import as_name

Score = Literal["pred_var", "solver_order", "curvature"]

WARMUP = 15
METHOD: Score = "pred_var"
THRESHOLDS: dict[Score, tuple[float, float]] = {
    "pred_var": (0.04, 0.12),
    "solver_order": (0.5, 2.6),
    "curvature": (20.0, 400.0),
}
"""Low and high: they span the scores of both bundled models after 15 of 50 steps (`benchmarks adaptive-scores`)."""


class Uncertainty(Section):
    """How sure a run is of its image after the warm-up. A null is the method's own."""

    short_form = "method"

    method: Annotated[Score, BeforeValidator(as_name)] | None = None
    """The variance of the predicted image over the warm-up, the difference between a step of first and one of second
    order, or the curvature of the predicted image. null: pred_var."""
    threshold_low: Number | None = Field(default=None, ge=0)
    """Up to this score a run makes `min_steps`."""
    threshold_high: Number | None = Field(default=None, ge=0)
    """From this score on it makes `max_steps`; in between the number of steps grows evenly."""

    @property
    def thresholds(self) -> tuple[float, float]:
        """Low and high, the method's own where nothing is said."""
        low, high = THRESHOLDS[self.method or METHOD]
        return (
            low if self.threshold_low is None else self.threshold_low,
            high if self.threshold_high is None else self.threshold_high,
        )


class AdaptiveSteps(Section):
    """The number of steps, chosen in the run. On where `enabled` says so, or where it says nothing and a key is set."""

    enabled: bool | None = None
    warmup_steps: Whole | None = Field(default=None, ge=3)
    """So many steps are made before the number of the others is chosen. null: 15."""
    min_steps: Whole | None = Field(default=None, ge=1)
    """Of the whole run. null: half of those that were asked for."""
    max_steps: Whole | None = Field(default=None, ge=1)
    """Of the whole run. null: those that were asked for."""
    uncertainty: Uncertainty = Uncertainty()

    @property
    def on(self) -> bool:
        """Whether runs choose their steps."""
        return self.enabled if self.enabled is not None else self != AdaptiveSteps()

    @property
    def warmup(self) -> int:
        """`warmup_steps`, or its default."""
        return WARMUP if self.warmup_steps is None else self.warmup_steps
