"""What the engine needs for a single call of a denoiser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.caching.sites import Predict
from hasten.caching.wiring import arguments


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
