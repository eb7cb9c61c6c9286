"""Snapshots: the last computed values of what is cached, and their weighted sum."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor


class History:
    """The snapshots of one branch of one denoiser, newest first.

    Attributes:
        indices: the steps at which they were taken.
        values: per snapshot, one tensor for each value that is cached at the site.
    """

    def __init__(self) -> None:
        self.indices: deque[int] = deque()
        self.values: deque[tuple[Tensor, ...]] = deque()
        self._watched: deque[_Finite] = deque()

    def __len__(self) -> int:
        return len(self.indices)

    def add(self, index: int, values: tuple[Tensor, ...]) -> None:
        """Put in the newest snapshot.

        Args:
            index: the step it was computed at.
            values: tensors that nobody else writes to.
        """
        self.indices.appendleft(index)
        self.values.appendleft(values)
        self._watched.appendleft(_Finite(values))

    def trim(self, count: int) -> None:
        """Forget all but the newest `count`."""
        while len(self.indices) > count:
            self.indices.pop()
            self.values.pop()
            self._watched.pop()

    def cast(self, dtype: torch.dtype) -> None:
        """Keep the snapshots in another number format."""
        self.values = deque(
            tuple(value.to(dtype) if value.is_floating_point() else value for value in values) for values in self.values
        )

    @property
    def nbytes(self) -> int:
        return sum(value.nbytes for values in self.values for value in values)

    def finite(self) -> bool:
        """False once a snapshot is known to hold NaN or infinity."""
        return all(watched.known() for watched in self._watched)

    def predict(self, weights: Sequence[float], slot: int, base: Tensor | None, dtype: torch.dtype) -> Tensor:
        """`base + Σ_j w_j · snapshot_j`, accumulated in float32 (or wider) and given back in `dtype`.

        Args:
            weights: newest first.
            slot: which of the cached values.
            base: what the values are differences to; None where they are the value itself.
        """
        if not (dtype.is_floating_point or dtype.is_complex):
            return self.values[0][slot].clone()  # indices and flags: there is nothing between two of them
        terms = [(weight, values[slot]) for weight, values in zip(weights, self.values, strict=False) if weight != 0]
        wide = torch.promote_types(dtype, torch.float32)
        if len(terms) == 1 and terms[0][0] == 1:
            # A snapshot as it is: bit for bit, and never the stored tensor itself, which a pipeline may write to.
            newest = terms[0][1]
            return newest.to(dtype, copy=True) if base is None else torch.add(base.to(wide), newest).to(dtype)
        (weight, value), *rest = terms
        if base is None:
            total = value.to(wide) * weight
        else:
            total = torch.add(base.to(wide), value, alpha=weight)
        for weight, value in rest:
            total.add_(value, alpha=weight)
        return total.to(dtype)


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
