"""Widths of inputs, learned by trying: an input is made absurdly wide, and the layer that refuses it shows its own."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_iter

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
    _digits: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        if name in self.learned:
            return self.learned[name]
        if name not in self._digits:
            taken = {digit for other, digit in self._digits.items() if other not in self.learned}
            free = [digit for digit in range(_MOST_UNKNOWN) if digit not in taken]
            self._digits[name] = free[0] if free else len(taken) % _MOST_UNKNOWN
        return UNKNOWN << _DIGIT * self._digits[name]

    def learn(self, got: int, wanted: int) -> bool:
        """What a width must be so that `got`, made of it, becomes `wanted`; False where that cannot be told.

        `got` may hold it several times (patches) and together with other things (concatenated).
        """
        for name, index in self._digits.items():
            times = (got >> 20 + _DIGIT * index) & (1 << _DIGIT) - 1
            if name in self.learned or not times:
                continue
            rest = got - times * (UNKNOWN << _DIGIT * index)
            if 0 <= rest < UNKNOWN and (wanted - rest) > 0 and (wanted - rest) % times == 0:
                self.learned[name] = (wanted - rest) // times
                return True
        return False

    def learn_from(self, args: Any, *, product: bool) -> bool:
        """Learn from the arguments of an operation that was refused; False where they tell nothing.

        Args:
            product: whether it is a product of matrices; elsewhere sizes fit those at the same place.
        """
        tensors = [value for value in tree_iter(args) if isinstance(value, Tensor)]
        shapes = [value for value in args if isinstance(value, list | tuple)]
        sizes = [size for shape in shapes for size in shape if isinstance(size, int)]
        for index, tensor in enumerate(tensors):
            others = tensors[index + 1 :] + tensors[:index]
            for place, got in enumerate(tensor.shape, start=-tensor.ndim):
                if got < UNKNOWN:
                    continue
                wanted = [size for other in others for size in _inner(other, place, product)] + sizes
                if any(self.learn(got, size) for size in wanted):
                    return True
        return False


def _inner(weight: Tensor, place: int, product: bool) -> Iterator[int]:
    """The size of a weight that has to fit an input's: a matrix comes transposed, others have it at the same place."""
    if product and weight.ndim > 1:
        yield weight.shape[-2]
    elif weight.ndim >= -place and weight.shape[place] > 1:
        yield weight.shape[place]
    elif weight.ndim == 1:
        yield weight.shape[0]
