"""What AngelSlim's helpers return as they are published, for `legacy=True`; described in docs/angelslim.md.

Written from a description of their behaviour. One store serves all passes of a step: with guidance in two passes the
second overwrites the first. Where the published code raises or returns no tensor, the last computed result is returned.
"""

from __future__ import annotations

from collections.abc import Callable
from math import factorial
from typing import Any

from torch import Tensor

from hasten.caching.bands import low_pass
from hasten.caching.blockwise import Key

_CUT = 0.1


class Published:
    """Whole results, block by block.

    Attributes:
        cached_output: block → what it returned last.
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """A generation begins."""
        self.cached_output: dict[Key, Any] = {}

    def call(
        self, key: Key, last: Key, step: int, skip: bool, inner: Callable[..., Any], args: Any, kwargs: Any
    ) -> Any:
        """A block is called.

        Args:
            last: the last of all blocks.
            step: the index of the step.
        """
        if skip and key in self.cached_output:
            return self.left_out(key, last)
        self.enter(key, args, kwargs)
        result = self.cached_output[key] = inner(*args, **kwargs)
        if key == last:
            self.leave(result, last, step)
        return result

    def left_out(self, key: Key, last: Key) -> Any:
        """What a block returns that is not called."""
        return self.cached_output[key]

    def enter(self, key: Key, args: Any, kwargs: Any) -> None:
        """A block is about to be computed."""

    def leave(self, result: Any, last: Key, step: int) -> None:
        """The last block was computed."""


class PublishedTeaCache(Published):
    """The input of the first block plus the change on the way, both of the last computed step: its result again.

    Args:
        name: the keyword by which the first block gets the image.

    Raises:
        KeyError: the first block is called without that keyword.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.cached_input: Tensor | None = None
        self.previous_residual: Tensor | None = None
        super().__init__()

    def enter(self, key: Key, args: Any, kwargs: Any) -> None:
        if key == ("double_blocks", 0):
            self.cached_input = kwargs[self._name]

    def leave(self, result: Any, last: Key, step: int) -> None:
        assert self.cached_input is not None
        if last[0] == "double_blocks":
            self.previous_residual = result[0] - self.cached_input
        else:
            # The image is taken to come first.
            self.previous_residual = result[:, : self.cached_input.shape[1]] - self.cached_input

    def left_out(self, key: Key, last: Key) -> Any:
        if key != last:
            return self.cached_output[key]
        assert self.cached_input is not None
        assert self.previous_residual is not None
        image = self.cached_input + self.previous_residual
        return [image, self.cached_output[key][1]] if last[0] == "double_blocks" else image


class PublishedTaylor(Published):
    """TaylorSeer's recursion on two frequency bands along the line of tokens.

    The first step of a generation leaves nothing behind, `counter` counts calls, and the gap between two passes of one
    step is nought.

    Args:
        max_order: the highest derivative that there is room for.
        low_order, high_order: the orders of the two bands.
    """

    def __init__(self, max_order: int, low_order: int, high_order: int) -> None:
        self._orders = (min(low_order, max_order), min(high_order, max_order))
        super().__init__()

    def clear(self) -> None:
        super().clear()
        self.counter = 0
        self.last_full_computation_step: int | None = None
        self._start: int | None = None
        self._derivatives: tuple[list[Tensor], list[Tensor]] = ([], [])

    def enter(self, key: Key, args: Any, kwargs: Any) -> None:
        self.counter = 0

    def leave(self, result: Any, last: Key, step: int) -> None:
        if self._start is None:
            self._start = self.last_full_computation_step = step
        assert self.last_full_computation_step is not None
        distance = step - self.last_full_computation_step
        if step != self._start:
            value = result[0] if last[0] == "double_blocks" else result
            low = low_pass(value, _CUT)
            for derivatives, order, band in zip(self._derivatives, self._orders, (low, value - low), strict=True):
                fresh = [band]
                for i in range(min(order, len(derivatives))):
                    fresh.append((fresh[i] - derivatives[i]) / distance)
                derivatives[: len(fresh)] = fresh
        self.last_full_computation_step = step

    def left_out(self, key: Key, last: Key) -> Any:
        if key != last:
            return self.cached_output[key]
        self.counter += 1
        terms = [
            derivative * (self.counter**i / factorial(i))
            for derivatives in self._derivatives
            for i, derivative in enumerate(derivatives)
        ]
        if not terms:
            return self.cached_output[key]
        image = sum(terms[1:], start=terms[0])
        return [image, self.cached_output[key][1]] if last[0] == "double_blocks" else image
