"""Snapshots: the last computed values of what is cached, and their weighted sum."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest

import torch
from torch import Tensor

from hasten.caching.bands import LowBand, low_pass

# Inner products are taken piece by piece, so that the wide copies stay small.
_PIECE = 2**22


Rows = Callable[[Tensor], Tensor]
"""From a value of a whole batch, unconditional samples first, to that of its conditional half."""


def conditional_rows(value: Tensor) -> Tensor:
    """The second half of a batch; a value without halves is of all of it."""
    return value[len(value) // 2 :] if value.ndim and len(value) % 2 == 0 else value


def mean_rows(value: Tensor) -> Tensor:
    """The mean of the two halves of a batch, as T-GATE takes it."""
    if not value.ndim or len(value) % 2:
        return value
    without, given = value.chunk(2)
    return (without + given) / 2


class History:
    """The snapshots of one branch of one denoiser, newest first.

    Attributes:
        indices: the steps at which they were taken.
        values: per snapshot, one tensor for each value that is cached at the site.
        halves: per snapshot, whether it is of the conditional half of a batch alone.
    """

    def __init__(self) -> None:
        self.indices: deque[int] = deque()
        self.values: deque[tuple[Tensor, ...]] = deque()
        self._watched: deque[_Finite] = deque()
        self._products: deque[list[float]] = deque()
        self.halves: deque[bool] = deque()

    def __len__(self) -> int:
        return len(self.indices)

    def add(self, index: int, values: tuple[Tensor, ...], half: bool = False) -> None:
        """Put in the newest snapshot.

        Args:
            index: the step it was computed at.
            values: tensors that nobody else writes to.
            half: they are of the conditional half of the batch alone.
        """
        if self.values and len(self.values[0]) != len(values):
            self.trim(0)  # another way through the model: the two cannot be combined
        self.indices.appendleft(index)
        self.values.appendleft(values)
        self._watched.appendleft(_Finite(values))
        self._products.appendleft([])
        self.halves.appendleft(half)

    def trim(self, count: int) -> None:
        """Forget all but the newest `count`."""
        while len(self.indices) > count:
            self.indices.pop()
            self.values.pop()
            self._watched.pop()
            self._products.pop()
            self.halves.pop()

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the snapshots in another number format."""
        self._products = deque([] for _ in self.values)
        self.values = deque(
            tuple(value.to(dtype) if value.is_floating_point() else value for value in values) for values in self.values
        )

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for values in self.values for value in values)

    def finite(self) -> bool:
        """False once a snapshot is known to hold NaN or infinity."""
        return all(watched.known() for watched in self._watched)

    def gram(self) -> list[list[float]]:
        """The inner products of all snapshots, newest first, over all values cached at the site.

        Each pair is computed once, when it is first asked for: one row per snapshot, which an accelerator is waited
        for.
        """
        count = len(self)
        for i, row in enumerate(self._products):
            if not row:
                row += torch.stack([_inner(self.values[i], self.values[j]) for j in range(i, count)]).tolist()
        # Rows go from a snapshot to the older ones; what is older than the oldest that is left counts no more.
        return [[self._products[min(i, j)][abs(i - j)] for j in range(count)] for i in range(count)]

    def predict(
        self,
        weights: Sequence[float],
        slot: int,
        base: Tensor | None,
        dtype: torch.dtype,
        low: LowBand | None = None,
        rows: Rows | None = None,
    ) -> Tensor:
        """`base + Σ_j w_j · snapshot_j`, accumulated in float32 (or wider) and given back in `dtype`.

        Args:
            weights: newest first.
            slot: which of the cached values.
            base: what the values are differences to; None where they are the value itself.
            low: weights of its own for the low frequencies.
            rows: of the snapshots of a whole batch, only these count; those of half a batch are taken as they are.
        """
        if not (dtype.is_floating_point or dtype.is_complex):
            return self._value(0, slot, rows).clone()  # indices and flags: there is nothing between two of them
        wide = torch.promote_types(dtype, torch.float32)
        if low is not None and tuple(low.weights) != tuple(weights):
            shift = [w_low - w for w_low, w in zip_longest(low.weights, weights, fillvalue=0.0)]
            mended = low_pass(self._total(shift, slot, None, wide, rows), low.cut, low.grids)
            return self._total(weights, slot, base, wide, rows).add_(mended).to(dtype)
        terms = self._terms(weights, slot, rows)
        if len(terms) == 1 and terms[0][0] == 1:
            # A snapshot as it is: bit for bit, and never the stored tensor itself, which a pipeline may write to.
            newest = terms[0][1]
            return newest.to(dtype, copy=True) if base is None else torch.add(base.to(wide), newest).to(dtype)
        return self._total(weights, slot, base, wide, rows).to(dtype)

    def _value(self, number: int, slot: int, rows: Rows | None) -> Tensor:
        value = self.values[number][slot]
        return value if rows is None or self.halves[number] else rows(value)

    def _terms(self, weights: Sequence[float], slot: int, rows: Rows | None) -> list[tuple[float, Tensor]]:
        count = min(len(weights), len(self))
        return [(weights[j], self._value(j, slot, rows)) for j in range(count) if weights[j] != 0]

    def _total(
        self, weights: Sequence[float], slot: int, base: Tensor | None, wide: torch.dtype, rows: Rows | None
    ) -> Tensor:
        terms = self._terms(weights, slot, rows)
        if not terms:
            zero = torch.zeros_like(self._value(0, slot, rows), dtype=wide)
            return zero if base is None else base.to(wide, copy=True)
        (weight, value), *rest = terms
        if base is None:
            total = value.to(wide) * weight
        else:
            total = torch.add(base.to(wide), value, alpha=weight)
        for weight, value in rest:
            total.add_(value, alpha=weight)
        return total


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
    """`<one, other>`, in float64 where the device has it: snapshots differ by little compared with what they are."""
    wide = torch.float32 if one[0].device.type == "mps" else torch.float64
    total = torch.zeros((), dtype=wide, device=one[0].device)
    for a, b in zip(one, other, strict=True):
        if a.is_floating_point():
            pieces = zip(torch.split(a.flatten(), _PIECE), torch.split(b.flatten(), _PIECE), strict=True)
            for left, right in pieces:
                total += torch.dot(left.to(wide), right.to(wide)).to(total.device)
    return total


class _Finite:
    """Whether tensors are finite, without making an accelerator wait.

    On the CPU the answer is there at once. On CUDA it is fetched in the background and counts from when it has arrived.
    On other accelerators nobody asks.
    """

    def __init__(self, values: tuple[Tensor, ...]) -> None:
        self._event: torch.cuda.Event | None = None
        self._sum: Tensor | None = None
        self._answer = True
        floats = [value for value in values if value.is_floating_point()]
        if not floats or floats[0].device.type not in ("cpu", "cuda"):
            return
        # A sum is finite only if all terms are, reads each value once, and allocates nothing.
        total = torch.stack([value.sum(dtype=torch.float32) for value in floats]).sum()
        if total.device.type == "cpu":
            self._answer = math.isfinite(float(total))
            return
        self._sum = torch.empty((), dtype=torch.float32, pin_memory=True)
        self._sum.copy_(total, non_blocking=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        self._event.record()

    def known(self) -> bool:
        if self._event is not None and self._sum is not None and self._event.query():  # type: ignore[no-untyped-call]
            self._answer = math.isfinite(float(self._sum))
            self._event = None
        return self._answer
