"""The ceiling for stored snapshots, over all branches of all denoisers, and what is given up to stay below it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from hasten.caching.settings import Settings
from hasten.caching.snapshots import History
from hasten.caching.vocabulary import SiteName, StoreDtype

MIB = 2**20
_FORMATS: dict[StoreDtype, torch.dtype | None] = {
    "model": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
_CHEAPER: dict[SiteName, SiteName] = {"span": "residual", "residual": "output", "unet_branch": "output"}
# float16 keeps eight times the precision of bfloat16, as long as the values stay far from its end at 65504.
_HALF_RANGE = 2.0**13


class Budget:
    """How snapshots are kept in one run: it starts with what the plan asks for and gives up what the ceiling demands.

    First the number format, then the site, then the number of snapshots; when nothing is left to give up, all steps
    are computed.

    Attributes:
        site: where values are taken.
        dtype: how they are stored; None for the model's own format.
        snapshots: how many are kept per branch; 0 when there is no room for any.
        notes: what was given up.
    """

    def __init__(self, settings: Settings) -> None:
        self._ceiling = None if settings.size is None else settings.size * MIB
        self._limit = f"cache.size = {settings.size:g} MiB" if settings.size is not None else ""
        self.site: SiteName = settings.site
        self._verifies = settings.policy == "verify"  # another site would not
        self.dtype = _FORMATS[settings.store_dtype]
        self.snapshots = settings.snapshots
        self.notes: list[str] = []

    def admit(
        self, values: tuple[Tensor, ...], history: History, others: Iterable[History], idle: Iterable[History]
    ) -> tuple[Tensor, ...]:
        """Make room for a snapshot.

        Args:
            values: what is to be stored.
            history: where.
            others: the histories of all other branches.
            idle: those among them that no recent step has used; they are emptied before anything is given up.

        Returns:
            the values in the format to store them in; nothing if there is no room for them in this form.
        """
        if self.dtype is not None:
            values = _cast(values, self.dtype)
        if self._ceiling is None:
            return values
        others = list(others)
        if not self._fits(values, history, others):
            for stale in idle:
                stale.trim(0)
        while not self._fits(values, history, others):
            if self._narrow(values):
                assert self.dtype is not None
                values = _cast(values, self.dtype)
                for other in (history, *others):
                    other.cast(self.dtype)
                continue
            if self.site in _CHEAPER and not self._verifies:
                self.notes.append(f"site {_CHEAPER[self.site]} in place of {self.site} because of {self._limit}")
                self.site = _CHEAPER[self.site]
                self._forget(0, history, *others)
                return ()
            self.snapshots -= 1
            self._forget(max(self.snapshots - 1, 0), history)
            self._forget(self.snapshots, *others)
            if self.snapshots == 0:
                self.notes.append(f"every step is computed: {self._limit} has no room for one snapshot of each branch")
                return ()
            self.notes.append(
                f"{self.snapshots} snapshot{'' if self.snapshots == 1 else 's'} per branch because of {self._limit}"
            )
        return values

    def _fits(self, values: tuple[Tensor, ...], history: History, others: list[History]) -> bool:
        assert self._ceiling is not None
        each = _bytes(values) + sum(_bytes(other.values[0]) for other in others if len(other))
        return each * self.snapshots <= self._ceiling

    def _narrow(self, values: tuple[Tensor, ...]) -> bool:
        if not any(value.is_floating_point() and value.element_size() > 2 for value in values):
            return False
        largest = max(float(value.abs().max()) for value in values if value.is_floating_point() and value.numel())
        self.dtype = torch.float16 if largest < _HALF_RANGE else torch.bfloat16
        name = "fp16" if self.dtype is torch.float16 else "bf16"
        self.notes.append(f"snapshots stored as {name} because of {self._limit}")
        return True

    def _forget(self, count: int, *histories: History) -> None:
        for history in histories:
            history.trim(count)


def _bytes(values: tuple[Tensor, ...]) -> int:
    return sum(value.nbytes for value in values)


def _cast(values: tuple[Tensor, ...], dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(value.to(dtype) if value.is_floating_point() else value for value in values)
