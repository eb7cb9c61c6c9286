"""Widths of inputs, learned by trying: an input is made absurdly wide, and the layer that refuses it shows its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

# Stand-ins are far beyond any real size, each a digit of its own: what was made of them can be told apart.
UNKNOWN = 1 << 20
_DIGIT = 4
_MOST_UNKNOWN = 5


class WidthLearned(Exception):  # noqa: N818 - it ends an attempt that has done what it was for
    """An attempt ended because a layer showed how wide an input has to be."""


@dataclass
class Widths:
    """How wide the inputs are: known ones, and stand-ins for those that are to be learned."""

    learned: dict[str, int] = field(default_factory=dict)
    _asked: list[str] = field(default_factory=list)

    def __getitem__(self, name: str) -> int:
        if name in self.learned:
            return self.learned[name]
        if name not in self._asked:
            self._asked.append(name)
        return UNKNOWN << _DIGIT * (self._asked.index(name) % _MOST_UNKNOWN)

    def learn(self, got: int, wanted: int) -> bool:
        """What a width must be so that `got`, made of it, becomes `wanted`; False where that cannot be told.

        `got` may hold it several times (patches) and together with other things (concatenated).
        """
        for index, name in enumerate(self._asked):
            times = (got >> 20 + _DIGIT * index) & (1 << _DIGIT) - 1
            if name in self.learned or not times:
                continue
            rest = got - times * (UNKNOWN << _DIGIT * index)
            if 0 <= rest < UNKNOWN and (wanted - rest) > 0 and (wanted - rest) % times == 0:
                self.learned[name] = (wanted - rest) // times
                return True
        return False

    def learn_from(self, args: Any) -> bool:
        """Learn from the arguments of an operation that was refused; False where they tell nothing."""
        tensors = [value for value in args if isinstance(value, Tensor)]
        shapes = [value for value in args if isinstance(value, list | tuple)]
        sizes = [size for shape in shapes for size in shape if isinstance(size, int)]
        for index, tensor in enumerate(tensors):
            others = tensors[index + 1 :] + tensors[:index]
            wanted = [size for other in others for size in _inner(other)] + sizes
            for got in tensor.shape:
                if got >= UNKNOWN and any(self.learn(got, size) for size in wanted):
                    return True
        return False


def _inner(weight: Tensor) -> Iterator[int]:
    """The size of a weight that has to fit an input's: a matrix comes transposed, a kernel has its inputs second."""
    if weight.ndim == 2:
        yield weight.shape[0]
    elif weight.ndim > 2:
        yield weight.shape[1]
    elif weight.ndim == 1:
        yield weight.shape[0]
