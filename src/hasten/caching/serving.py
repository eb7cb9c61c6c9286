"""What the engine needs for a single call of a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.caching.bands import LowBand, grids_of
from hasten.caching.clock import Clock
from hasten.caching.denoiser import Branch, Denoiser
from hasten.caching.prediction import Moment
from hasten.caching.settings import Settings
from hasten.caching.sites import Predict
from hasten.caching.snapshots import conditional_rows, mean_rows
from hasten.caching.wiring import arguments

# Of a batch of both branches: what stands in where the conditional half is called alone.
_ROWS = {"conditional": conditional_rows, "mean": mean_rows}


class Served(NamedTuple):
    """What became of one call of a denoiser.

    Attributes:
        reason: why it was computed, or what it was predicted from.
        signal: what was measured, where the policy asked for it.
        minor: there was nothing to leave out in this call.
    """

    result: Any
    computed: bool
    reason: str
    signal: float | None = None
    minor: bool = False


class Forecast:
    """A prediction that is worked out when it is first needed: in the middle of a call more is known than before it.

    Attributes:
        used: a word on what it was made of; empty if it was not needed.
    """

    def __init__(self, make: Callable[[], tuple[Predict, str]]) -> None:
        self._make = make
        self._predict: Predict | None = None
        self.used = ""

    def __call__(self, slot: int, base: Tensor | None, dtype: torch.dtype) -> Tensor:
        if self._predict is None:
            self._predict, self.used = self._make()
        return self._predict(slot, base, dtype)


def stand_in(
    settings: Settings, clock: Clock, denoiser: Denoiser, branch: Branch, args: Any, kwargs: Any
) -> tuple[Predict, str]:
    """What takes the place of the values of a skipped step, and a word on what it is made of."""
    index, history, place = clock.index, branch.history, clock.place
    indices = tuple(history.indices)
    where = (indices, index, tuple(map(place, indices)), place(index))
    moment = Moment(*where, total=clock.total, gram=history.gram)
    gauge = denoiser.gauge or branch.gauge
    if gauge is not None:
        moment = replace(moment, alignment=gauge.alignment, shares=gauge.policy.shares)
    weights, low = settings.weights(moment), settings.low_weights(moment)
    band = None
    if low is not None:
        band = LowBand(low, settings.cut, grids_of(args, kwargs))
        denoiser.notes |= {note: f"{denoiser.name}: {note}" for note in band.notes(history.values[0])}
    rows = _ROWS[settings.halves] if denoiser.port.half else None
    predict = partial(history.predict, weights, low=band, rows=rows)
    used = ", ".join(str(anchor) for anchor, weight in zip(indices, weights, strict=False) if weight)
    return predict, f"predicted from {used}"


def signature_of(args: Any, kwargs: Any) -> object:
    """What has to be the same in two calls for the values of one to stand in for those of the other."""
    return tuple((slot, _mark(value)) for slot, value in arguments(args, kwargs))


def _mark(value: Any) -> object:
    if isinstance(value, Tensor):
        return value.shape, value.dtype, value.device
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, (tuple, list)):
        return tuple(map(_mark, value))
    if isinstance(value, dict):
        return tuple((key, _mark(inner)) for key, inner in value.items())
    return type(value)
