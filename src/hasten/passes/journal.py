"""What an operation changed of an object, entry by entry, so that it can be put back exactly.

diffusers and torch offer many switches and few ways back: hooks that cannot be taken off, weights that are cast in
place, submodules that are exchanged. All of them end as entries of the instances' dictionaries, and these can be
compared before and after.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import nn

_ABSENT: Any = object()


class _Entry(NamedTuple):
    holder: dict[Any, Any]
    key: Any
    before: Any
    after: Any


def reversible(
    root: Any, operation: Callable[[], object], *, weights: bool = False, keeps: bool = True
) -> Callable[[], None]:
    """Run an operation on an object; what it changed there is put back by the returned function.

    What somebody else has changed again in the meantime is left alone. An operation that raises is undone at once.

    Args:
        root: a module, with all modules in it, or any other object with attributes.
        operation: may replace attributes, hooks, submodules, parameters and buffers.
        weights: it also writes into parameters and buffers (`module.to(dtype)` does): the operation then gets others in
            their place, which share the memory until they are written to as a whole.
        keeps: False runs it and keeps nothing, so that what was there before can be freed: then nothing is put back.
    """
    if not keeps:
        operation()
        return lambda: None
    before = {id(holder): (holder, dict(holder)) for holder in _holders(root)}
    try:
        _copy_registries(root)
        if weights:
            _alias(root)
        operation()
    except BaseException:
        _restore(before, _changes(before))
        raise
    changes = _changes(before)
    return lambda: _restore(before, changes)


def _holders(root: Any) -> Iterator[dict[Any, Any]]:
    """Every dictionary in which something of an object can be exchanged."""
    for owner in root.modules() if isinstance(root, nn.Module) else [root]:
        yield vars(owner)
        yield from (value for value in vars(owner).values() if isinstance(value, dict))
    yield from _registries(root)


def _registries(root: Any) -> Iterator[dict[Any, Any]]:
    """Where diffusers keeps a module's hooks; some models have one as soon as they have run."""
    for module in root.modules() if isinstance(root, nn.Module) else ():
        registry = vars(module).get("_diffusers_hook")
        if registry is not None:
            yield vars(registry)


def _copy_registries(root: Any) -> None:
    """Let an operation write into copies of the lists of hooks, so that these are exchanged like anything else."""
    for holder in _registries(root):
        for key, value in holder.items():
            if isinstance(value, (dict, list)):
                holder[key] = copy.copy(value)


def _alias(root: Any) -> None:
    made: dict[int, Any] = {}  # tied weights stay tied

    def alias(tensor: Any) -> Any:
        if id(tensor) not in made:
            plain = tensor.detach()
            is_parameter = isinstance(tensor, nn.Parameter)
            made[id(tensor)] = nn.Parameter(plain, requires_grad=tensor.requires_grad) if is_parameter else plain
        return made[id(tensor)]

    for module in root.modules():
        for holder in (module._parameters, module._buffers):
            for name, tensor in holder.items():
                if tensor is not None:
                    holder[name] = alias(tensor)


def _changes(before: dict[int, tuple[dict[Any, Any], dict[Any, Any]]]) -> list[_Entry]:
    return [
        _Entry(holder, key, old.get(key, _ABSENT), holder.get(key, _ABSENT))
        for holder, old in before.values()
        for key in {**old, **holder}
        if old.get(key, _ABSENT) is not holder.get(key, _ABSENT)
    ]


def _restore(before: dict[int, tuple[dict[Any, Any], dict[Any, Any]]], changes: list[_Entry]) -> None:
    for holder, key, old, new in changes:
        if holder.get(key, _ABSENT) is not new:
            continue
        if old is _ABSENT:
            del holder[key]
        else:
            holder[key] = old
    for holder, old in before.values():
        # An entry that was taken out and put back would stand last: the order of parameters is part of the state.
        if holder.keys() == old.keys() and list(holder) != list(old):
            entries = {key: holder[key] for key in old}
            holder.clear()
            holder.update(entries)
