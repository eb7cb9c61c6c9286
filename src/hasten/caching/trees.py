"""Structures that hold tensors: what a module takes and returns, taken apart and put together again."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Meta(NamedTuple):
    """A tensor without its values."""

    shape: torch.Size
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Meta:
        return cls(tensor.shape, tensor.dtype, tensor.device)

    def blank(self) -> Tensor:
        """A tensor of this shape that takes the memory of one number.

        It holds NaN where it can, so that a value that was believed to be read by nobody cannot be read unnoticed.
        """
        value = float("nan") if self.dtype.is_floating_point else 0
        return torch.full((), value, dtype=self.dtype, device=self.device).expand(self.shape)


def leaves(tree: Any) -> Iterator[Any]:
    """Whatever nested tuples, lists, mappings and dataclasses hold, in order."""
    if isinstance(tree, (tuple, list)):
        for value in tree:
            yield from leaves(value)
    elif dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        # Before mappings, as in `replace`: diffusers' outputs are both.
        for field in dataclasses.fields(tree):
            yield from leaves(getattr(tree, field.name))
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from leaves(value)
    else:
        yield tree


def numbered(tree: Any) -> Iterator[tuple[int, Tensor]]:
    """The tensors among the leaves, each with its number; a None in the place of a tensor is counted, too."""
    for number, leaf in enumerate(leaves(tree)):
        if isinstance(leaf, Tensor):
            yield number, leaf


def tensors(tree: Any) -> Iterator[Tensor]:
    """The tensors among the leaves."""
    return (leaf for leaf in leaves(tree) if isinstance(leaf, Tensor))


def fresh(tree: Any) -> Any:
    """The same values in new lists and mappings: some models take out of those that they are given."""
    if type(tree) is dict:
        return {key: fresh(value) for key, value in tree.items()}
    if type(tree) in (tuple, list):
        return type(tree)(map(fresh, tree))
    return tree


def replace(tree: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same structure with every tensor replaced by what `function` makes of it, in the order of `tensors`.

    Raises:
        TypeError: a part of the structure can neither be a constant nor be built again.
    """
    if isinstance(tree, Tensor):
        return function(tree)
    if tree is None or isinstance(tree, (bool, int, float, str, torch.dtype, torch.device)):
        return tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        values = {field.name: replace(getattr(tree, field.name), function) for field in dataclasses.fields(tree)}
        return type(tree)(**values)
    if isinstance(tree, Mapping):
        return type(tree)({key: replace(value, function) for key, value in tree.items()})  # type: ignore[call-arg]
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return type(tree)(*(replace(value, function) for value in tree))
    if type(tree) in (tuple, list):
        return type(tree)(replace(value, function) for value in tree)
    raise TypeError(f"a {type(tree).__name__} in it cannot be built again")
