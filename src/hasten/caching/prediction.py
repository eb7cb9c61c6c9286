"""A predictor with its parameters: from where the snapshots lie to their weights. No torch in here."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import nan
from typing import Literal

from hasten.caching import predictors
from hasten.caching.predictors import Gram, Weights

PredictorName = Literal[
    "reuse", "difference", "poly", "taylor", "hermite", "ab2", "foca", "chebyshev", "dmd", "dcta", "least_squares"
]
Coordinate = Literal["sigma", "index"]

# Spectrum maps the steps of every run as if it had fifty; so does this one where nobody knows how many there are.
_USUAL_LENGTH = 50


@dataclass(frozen=True)
class Kind:
    """What there is to know of a predictor before it is used.

    Attributes:
        takes: the keys that have an effect on it.
        order: its degree where nothing else is said, or the only one it has.
        least, usual: snapshots it cannot do without, and those it keeps where nothing is said; None for order + 1.
    """

    takes: frozenset[str]
    order: int
    least: int | None = None
    usual: int | None = None

    @property
    def coordinates(self) -> tuple[Coordinate, ...]:
        return ("sigma", "index") if "coordinate" in self.takes else ("index",)


_ALL = {"damping", "trust", "low_order", "cut"}
_BOUNDED = {*_ALL, "max_amplification"}
KINDS: Mapping[PredictorName, Kind] = {
    "reuse": Kind(frozenset(), order=0),
    "difference": Kind(frozenset(_ALL), order=1),
    "poly": Kind(frozenset({*_BOUNDED, "order", "coordinate"}), order=1),
    "taylor": Kind(frozenset({*_ALL, "order"}), order=1),
    "hermite": Kind(frozenset({*_BOUNDED, "order", "sigma_scale"}), order=2),
    "ab2": Kind(frozenset({*_BOUNDED, "coordinate"}), order=2),
    "foca": Kind(frozenset({*_BOUNDED, "coordinate"}), order=2),
    "chebyshev": Kind(frozenset({*_BOUNDED, "order", "ridge", "blend"}), order=4, least=2, usual=8),
    "dcta": Kind(frozenset({"damping", "low_order", "cut", "max_amplification"}), order=1),
    "dmd": Kind(frozenset(_BOUNDED), order=1, least=4, usual=6),
    "least_squares": Kind(frozenset({"fitted_weights"}), order=2),
}
TUNABLE = tuple(sorted({key for kind in KINDS.values() for key in kind.takes}))
"""Every key that some predictor takes."""


@dataclass(frozen=True)
class Moment:
    """A skipped step, and where its snapshots lie.

    Attributes:
        indices, places: of the snapshots, newest first: their numbers and their noise levels, see `clock.places_of`.
        index, place: of the skipped step.
        total: the number of steps of the run, None where nobody knows it.
        gram: gives the snapshots' inner products, newest first; asked for only by predictors that look at the data.
        shares: of the predictions of each degree, from 0 up; None for that of the predictor's own degree.
        alignment: gives how far a probe has gone, see `predictors.dcta`; NaN where nothing was probed.
    """

    indices: tuple[int, ...]
    index: int
    places: tuple[float, ...]
    place: float
    total: int | None = None
    gram: Callable[[], Gram] = list
    alignment: Callable[[], float] = lambda: nan
    shares: tuple[float, ...] | None = None


@dataclass(frozen=True)
class Prediction:
    """A predictor's name and parameters.

    Attributes:
        coordinate: what a predictor takes as the position of a step.
        order: the degree of the prediction.
        damping: κ of `predictors.damped`.
        max_amplification: the order falls where the weights' absolute values sum to more.
        sigma_scale: σ of `predictors.hermite`.
        ridge, blend: of `fits.chebyshev`.
        trust: θ of `predictors.trusted`; None trusts every prediction.
        low_order: the order for low frequencies; None for one order for all. 0 reuses them.
        cut: the share of the highest frequency below which frequencies are low.
        fitted_weights, fitted_steps: of `least_squares`: the weights of each of these steps, newest snapshot first.
        gate: `first_enhance` of the published recursion; 0 forms derivatives from the first step on.
    """

    predictor: PredictorName
    coordinate: Coordinate = "sigma"
    order: int = 1
    damping: float = 1.0
    max_amplification: float = 4.0
    sigma_scale: float = 0.5
    ridge: float = 0.1
    blend: float = 0.5
    trust: float | None = None
    low_order: int | None = None
    cut: float = 0.1
    gate: int = 0
    fitted_weights: tuple[Weights, ...] | None = None
    fitted_steps: tuple[int, ...] = ()

    def weights(self, moment: Moment) -> Weights:
        """The weights for one skipped step, newest snapshot first."""
        if moment.shares is None:
            return self._weights(moment, self.order)
        degrees = [self._weights(moment, degree) for degree in range(len(moment.shares))]
        return predictors.mixed(degrees, moment.shares)

    def low_weights(self, moment: Moment) -> Weights | None:
        """The weights for low frequencies, where these are predicted in another way."""
        if self.low_order is None or self.low_order == self.order:
            return None
        return self._weights(moment, self.low_order)

    def _weights(self, moment: Moment, order: int) -> Weights:
        weights = self._plain(moment, order)
        if self.trust is not None and len(moment.indices) > 1:
            observer = predictors.poly(moment.indices, moment.index, 1, self.max_amplification)
            horizon = moment.index - moment.indices[0]
            weights = predictors.trusted(weights, observer, moment.gram(), horizon, self.trust)
        return predictors.damped(weights, self.damping)

    def _plain(self, moment: Moment, order: int) -> Weights:
        steps, step, bound = moment.indices, moment.index, self.max_amplification
        where: tuple[tuple[float, ...], float] = (steps, step)
        if self.coordinate == "sigma":
            where = (moment.places, moment.place)
        if self.predictor == "reuse" or order == 0:
            return predictors.reuse(steps, step)
        if self.predictor == "difference":
            return predictors.difference(steps, step)
        if self.predictor == "dcta":
            return predictors.dcta(moment.alignment(), bound) if len(steps) > 1 else predictors.reuse(steps, step)
        if self.predictor == "least_squares":
            fitted = dict(zip(self.fitted_steps, self.fitted_weights or (), strict=False)).get(step)
            # A step that was computed beside the mask, or lost, leaves other snapshots than the weights are for.
            return fitted if fitted and len(fitted) <= len(steps) else predictors.poly(steps, step, 1, bound)
        if self.predictor == "poly":
            return predictors.poly(*where, order, bound)
        if self.predictor == "taylor":
            return predictors.taylor(steps, step, order, self.gate)
        if self.predictor == "hermite":
            return predictors.hermite(steps, step, order, self.sigma_scale, self.gate, bound)
        if self.predictor == "ab2":
            return predictors.ab2(*where, bound)
        if self.predictor == "foca":
            return predictors.foca(*where, bound)
        from hasten.caching import fits  # numpy: not for listing methods

        if self.predictor == "chebyshev":
            length = moment.total or max(_USUAL_LENGTH, step + 1)
            return fits.chebyshev(steps, step, length, order, self.ridge, self.blend, bound)
        return fits.dmd(steps, step, moment.gram(), bound)

    @property
    def predictor_text(self) -> str:
        """The predictor in words, as the report shows it."""
        kind = KINDS[self.predictor]
        if self.predictor == "reuse":
            return "reuse"
        text = self.predictor + (f" of order {self.order}" if "order" in kind.takes else "") + f" in {self.coordinate}"
        if self.low_order is not None:
            low = "reused" if self.low_order == 0 else f"of order {self.low_order}"
            text += f", low frequencies (up to {self.cut:g}) {low}"
        if self.damping != 1:
            text += f", damping {self.damping:g}"
        return text if self.trust is None else f"{text}, trust {self.trust:g}"
