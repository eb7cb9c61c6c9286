"""Meta tensors that remember small values: a forward pass that reads a mask or an index runs without weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map_only

from hasten.errors import HastenError
from hasten.inspect.widths import WidthLearned, Widths

META = torch.device("meta")
_CPU = torch.device("cpu")

_MOST = 1 << 21
"""Tensors with more numbers than this are shapes only."""

_VALUE = "_hasten_value"
_READS = ("_local_scalar_dense", "equal", "is_nonzero", "item")
_INDEXED = ("index", "index_put", "index_put_")
_PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "matmul")
_BLANK = ("empty", "new_empty", "rand", "normal", "uniform", "bernoulli", "multinomial")


class UnknownValueError(HastenError):
    """A forward pass asks for a number that only the weights or the pixels could tell."""


def value_of(tensor: Tensor) -> Tensor | None:
    """The numbers of a tensor, on the CPU, where they are known."""
    if tensor.device != META:
        return tensor
    found: Tensor | None = getattr(tensor, _VALUE, None)
    return found


def known(value: Tensor) -> Tensor:
    """A meta tensor with these values."""
    shape = torch.empty_like(value, device=META)
    setattr(shape, _VALUE, value)
    return shape


def tensors_in(tree: Any) -> Iterator[Tensor]:
    """The tensors in nested tuples, lists and dictionaries."""
    return (leaf for leaf in tree_iter(tree) if isinstance(leaf, Tensor))


class KnownValues(TorchDispatchMode):
    """Runs every operation on the meta device, and beside it on the CPU where all its small inputs are known.

    A model's weights are never known. What a pipeline feeds it beside them may be: positions, masks, indices,
    timesteps; and so is what `torch.arange` or `torch.ones` makes in the middle of a forward pass. The experts that a
    router chooses (`topk`) are taken to be chosen in turn.

    Args:
        widths: learn these from refused operations, which then end the attempt with `WidthLearned`.
    """

    def __init__(self, widths: Widths | None = None) -> None:
        super().__init__()
        self.widths = widths
        # Storages of values that something unknown was written into; held so that no other takes their address.
        self._stale: dict[int, Tensor] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.run(func, args, kwargs or {})

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        """The operation's result: meta tensors, with values where these are known.

        Raises:
            UnknownValueError: the operation reads a value that is not known.
        """
        given = list(tensors_in((args, kwargs)))
        device = kwargs.get("device")
        on_meta = any(tensor.device == META for tensor in given) or (device is not None and device == META)
        if not on_meta:
            return func(*args, **kwargs)
        name = func.__name__.split(".")[0]
        if name in _INDEXED:
            args = (args[0], list(_numbered(args[1])), *args[2:])
        values = None if name.startswith(_BLANK) else self._values(func, given, args, kwargs)
        if name in _READS or (name == "_to_copy" and device not in (None, META)):
            if values is None:
                raise UnknownValueError("it reads a number that only weights or pixels could tell")
            return values
        if values is not None and torch.Tag.dynamic_output_shape in func.tags:
            return tree_map_only(Tensor, known, values)
        if len(given) > 1:
            args, kwargs = tree_map_only(Tensor, _on_meta, (args, kwargs))
        try:
            result = func(*args, **kwargs)
        except (NotImplementedError, RuntimeError) as error:
            if values is not None:
                return tree_map_only(Tensor, known, values)
            if self.widths is not None and self.widths.learn_from(args, product=name in _PRODUCTS):
                raise WidthLearned from None
            if torch.Tag.dynamic_output_shape in func.tags:
                raise UnknownValueError(f"the shape of what {name} makes depends on weights or pixels") from error
            raise
        if values is not None:
            for shape, number in zip(tensors_in(result), tensors_in(values), strict=True):
                setattr(shape, _VALUE, number)
        elif func._schema.is_mutable:
            self._forget(result)
        elif name == "topk":
            _choose_evenly(result, given[0])
        return result

    def _values(self, func: Any, given: list[Tensor], args: Any, kwargs: dict[str, Any]) -> Any:
        """What the operation makes of the known values; None where one of its inputs is not known."""
        if not given:
            if not _is_small(args):
                return None
        elif any(tensor.numel() > _MOST or not self._is_known(tensor) for tensor in given):
            return None
        args, kwargs = tree_map_only(Tensor, value_of, (args, kwargs))
        if "device" in kwargs:
            kwargs = {**kwargs, "device": _CPU}
        try:
            return func(*args, **kwargs)
        except (NotImplementedError, RuntimeError):
            return None  # the meta device then says what is wrong

    def _is_known(self, tensor: Tensor) -> bool:
        value = value_of(tensor)
        return value is not None and (not self._stale or value.untyped_storage().data_ptr() not in self._stale)

    def _forget(self, written: Any) -> None:
        for tensor in tensors_in(written):
            value = getattr(tensor, _VALUE, None)
            if value is not None:
                self._stale[value.untyped_storage().data_ptr()] = value


def _numbered(indices: Any) -> Iterator[Tensor | None]:
    """Indices with known masks as the positions that they choose: the shape of what is chosen is then known, too."""
    for index in indices:
        value = None if index is None else value_of(index)
        if value is not None and value.dtype in (torch.bool, torch.uint8):
            yield from (known(positions) for positions in value.nonzero(as_tuple=True))
        else:
            yield index


def _choose_evenly(result: Any, scores: Tensor) -> None:
    """Which experts a router chooses is in the weights; for shapes and work they are taken to be chosen in turn."""
    _, chosen = result
    dim = next((dim for dim in range(scores.ndim) if scores.shape[dim] != chosen.shape[dim]), scores.ndim - 1)
    if chosen.numel() <= _MOST:
        turn = torch.arange(chosen.numel(), device=_CPU) % scores.shape[dim]
        moved = chosen.movedim(dim, -1).shape
        setattr(chosen, _VALUE, turn.reshape(moved).movedim(-1, dim))


def _on_meta(tensor: Tensor) -> Tensor:
    return tensor if tensor.device == META else known(tensor)


def _is_small(args: Any) -> bool:
    """Whether a factory makes few numbers, guessed from its arguments before anything is made."""
    product = 1.0
    for number in tree_iter(args):
        if isinstance(number, int | float) and abs(number) > 1:
            product *= abs(number)
    return product <= _MOST
