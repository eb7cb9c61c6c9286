"""One part of a block, attention or a feed-forward network, that may be given merged tokens; and how that is found out.

A part that gives the same for tokens in another order takes merged ones, too. Where it is given tables of positions
(rotary embeddings), it does so with the tables in that order, and merged tokens keep the positions of their
destinations. What does neither, such as a convolution between the tokens, is left alone.
"""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hasten.caching.trees import tensors
from hasten.caching.wiring import Slot, arguments
from hasten.passes.merging import Matching

STATE = "_hasten_part"
"""The attribute of a module that holds its part."""

_POSITIONS = ("rotary", "rope", "freqs", "pos")
_TEXT = re.compile(r"txt|text|context|encoder|caption|added")
_CLOSE = {torch.float32: 1e-3, torch.float64: 1e-6}  # half precision: 3e-2


class Place(Protocol):
    """The block around a part, as far as the part has to know it."""

    shared: bool

    @property
    def learning(self) -> bool:
        """Whether this is the first call."""
        ...

    def matching_for(self, x: Tensor) -> Matching | None:
        """What is merged of these tokens; None where nothing is."""
        ...

    def is_of(self, x: Tensor) -> bool:
        """Whether these are as many tokens as the block was given."""
        ...


class Table(NamedTuple):
    """A table of positions among the arguments.

    Attributes:
        leaf: which of the tensors of that argument.
        dim: its dimension that counts tokens.
        last: where it holds the text's positions, too, they come first.
    """

    slot: Slot
    leaf: int
    dim: int
    last: bool


class Rule(NamedTuple):
    """How a part is given merged tokens.

    Attributes:
        slot: the argument that holds the tokens.
        leaf: which of the tensors that come out holds them; others are of the text.
    """

    slot: Slot
    leaf: int
    tables: tuple[Table, ...] = ()


class Part:
    """A module that may be given merged tokens.

    Attributes:
        kind: "self_attention", "cross_attention" or "feed_forward"; "attention" until the first call tells which.
        rule: None where it is given all tokens; `reason` is why.
    """

    def __init__(self, module: nn.Module, path: str, kind: str, wanted: tuple[str, ...]) -> None:
        self.path = path
        self.kind = kind
        self.rule: Rule | None = None
        self.reason = "it was not called"
        self._wanted = wanted
        self._module = module
        self._forward: Callable[..., Any] = type(module).forward
        self._place: Place
        self._known = False

    def install(self, place: Place) -> Callable[[], None]:
        """Stand before the module's `forward`, on the instance; the result takes it off again.

        As one and the same function for all parts: torch uses what it compiled of one block for others that are alike
        as long as what these call is, too.
        """
        self._place = place
        entries = vars(self._module)
        before = entries.get("forward")
        if before is not None:
            self._forward = lambda module, *args, **kwargs: before(*args, **kwargs)
        entries[STATE] = self
        entries["forward"] = installed = types.MethodType(_call, self._module)

        def undo() -> None:
            entries.pop(STATE, None)
            if entries.get("forward") is not installed:
                return
            if before is None:
                del entries["forward"]
            else:
                entries["forward"] = before

        return undo

    def call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The module's forward, on fewer tokens where there are."""
        if not self._known and self._place.learning:
            self._learn(module, args, kwargs)
        rule = self.rule
        if rule is None:
            return self._forward(module, *args, **kwargs)
        x = _get(args, kwargs, rule.slot)
        matching = self._place.matching_for(x)
        if matching is None:
            return self._forward(module, *args, **kwargs)
        few, named = _with(rule, args, kwargs, matching.merge(x), matching.kept[0], x.shape[1])
        return _put(self._forward(module, *few, **named), rule.leaf, matching.unmerge)

    def _learn(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._known = True
        given = list(sequences(args, kwargs))
        if not given or not self._place.is_of(given[0][1]):
            self.reason = "it computes on other tokens than those that its block is given"
            return
        slot, x = given[0]
        result = self._forward(module, *args, **kwargs)
        found = list(tensors(result))
        if self.kind == "attention":
            joint = len(found) > 1 or getattr(module, "add_k_proj", None) is not None
            self.kind = "cross_attention" if len(given) > 1 and not joint else "self_attention"
        if self.kind not in self._wanted:
            self.reason = f"it is {self.kind}"
            return
        leaf = next((number for number, one in enumerate(found) if one.shape[:2] == x.shape[:2]), None)
        if leaf is None or _TEXT.search(self.path.rpartition(".")[2]):
            self.reason = "its tokens are not those of the image"
            return
        names = [name for name in inspect.signature(type(module).forward).parameters if name != "self"]
        others = {one.shape[1] for _, one in given[1:]}
        order = torch.randperm(x.shape[1], generator=torch.Generator().manual_seed(0)).to(x.device)
        errors: dict[Rule, float] = {}
        for tables in _candidates(names, args, kwargs, x.shape[1], others):
            rule = Rule(slot, leaf, tables)
            try:
                few, named = _with(rule, args, kwargs, x[:, order], order, x.shape[1])
                turned = list(tensors(self._forward(module, *few, **named)))[leaf]
                # And with fewer of them, which is what merging makes.
                few, named = _with(rule, args, kwargs, x[:, order[1:]], order[1:], x.shape[1])
                self._forward(module, *few, **named)
            except (RuntimeError, ValueError, IndexError, TypeError):
                continue
            expected = found[leaf][:, order]
            errors[rule] = float((turned - expected).norm() / expected.norm().clamp(min=1e-12))
        best = min(errors, key=lambda rule: errors[rule], default=None)
        if best is None or not errors[best] < _CLOSE.get(x.dtype, 3e-2):
            self.reason = "what it gives for a token depends on the order of the tokens"
            return
        self.rule, self.reason = best, ""
        self._place.shared = self._place.shared or bool(best.tables)


def _call(module: Any, *args: Any, **kwargs: Any) -> Any:
    return module._hasten_part.call(module, args, kwargs)


def sequences(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[tuple[Slot, Tensor]]:
    """The arguments of shape (batch, tokens, channels)."""
    for slot, value in arguments(args, kwargs):
        if isinstance(value, Tensor) and value.ndim == 3 and value.is_floating_point() and not _is_table(slot):
            yield slot, value


def _is_table(name: Slot) -> bool:
    return isinstance(name, str) and any(word in name for word in _POSITIONS)


def _candidates(
    names: list[str], args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int, others: set[int]
) -> Iterator[tuple[Table, ...]]:
    """Ways to read the tables of positions among the arguments: none, the image's alone, or text and image in one."""
    yield ()
    found: list[tuple[Slot, int, Tensor]] = []
    for slot, value in arguments(args, kwargs):
        name = names[slot] if isinstance(slot, int) and slot < len(names) else slot
        if _is_table(name):
            parts = value if isinstance(value, (tuple, list)) else (value,)
            found += [(slot, leaf, one) for leaf, one in enumerate(parts) if isinstance(one, Tensor)]
    ways = {
        (dim, rows): None
        for _, _, one in found
        for dim, rows in enumerate(one.shape)
        if rows == tokens or rows - tokens in others
    }
    for dim, rows in ways:
        for last in (True, False) if rows != tokens else (False,):
            yield tuple(
                Table(slot, leaf, dim, last) for slot, leaf, one in found if dim < one.ndim and one.shape[dim] == rows
            )


def _get(args: tuple[Any, ...], kwargs: dict[str, Any], slot: Slot) -> Any:
    return args[slot] if isinstance(slot, int) else kwargs[slot]


def _with(
    rule: Rule, args: tuple[Any, ...], kwargs: dict[str, Any], x: Tensor, kept: Tensor, tokens: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments with other tokens, and the tables with the positions of those."""
    changed: dict[Slot, Any] = {rule.slot: x}
    for table in rule.tables:
        value = changed.get(table.slot, _get(args, kwargs, table.slot))
        if isinstance(value, Tensor):
            changed[table.slot] = _pick(value, table, kept, tokens)
        else:
            leaves = list(value)
            leaves[table.leaf] = _pick(leaves[table.leaf], table, kept, tokens)
            changed[table.slot] = type(value)(leaves)
    positional = tuple(changed.get(slot, value) for slot, value in enumerate(args))
    return positional, {name: changed.get(name, value) for name, value in kwargs.items()}


def _pick(table: Tensor, how: Table, kept: Tensor, tokens: int) -> Tensor:
    rows = table.shape[how.dim]
    begin = rows - tokens if how.last else 0
    places = torch.arange(rows, device=kept.device)
    return table.index_select(how.dim, torch.cat([places[:begin], kept + begin, places[begin + tokens :]]))


def _put(result: Any, leaf: int, change: Callable[[Tensor], Tensor]) -> Any:
    """A result in which one of the tensors is changed."""
    if isinstance(result, Tensor):
        return change(result)
    number = -1
    values = []
    for value in result:
        number += isinstance(value, Tensor)
        values.append(change(value) if number == leaf and isinstance(value, Tensor) else value)
    return type(result)(values)
