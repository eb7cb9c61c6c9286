"""Joins: where a skip connection comes back, and what only the deep side of it needs, learned by watching a real call.

A UNet keeps tensors on its way down and joins them, by `torch.cat`, with what comes up again. No class and no attribute
is known here: one call is followed operation by operation, and a join is a concatenation of a module's result with
something that was itself made from that result. Everything that the model's result does not need once the deep side of
a join is given can be left out.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from hasten.caching.patching import CALL, Tap, is_compiled
from hasten.caching.trees import Meta, numbered, replace, tensors
from hasten.caching.wiring import METADATA, Span, Stream, Wiring

# A concatenation with less work than this on its deep side is some block's own affair.
_LEAST = 0.01

_JOINS = (torch.cat, torch.concat, torch.concatenate)
_WRITERS = frozenset(
    f"__{name}__"
    for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "imod")
)


@dataclass
class _Call:
    """One call of a module.

    Attributes:
        begin, end: its operations, those of the modules within included, are the nodes from `begin` to `end` - 1.
        outputs: leaf of what it returned → node.
        blank: what it returned, without values; absent where that cannot be built again.
        written: whether somebody wrote into what it returned.
    """

    module: nn.Module
    begin: int
    end: int = 0
    inner: list[_Call] = field(default_factory=list)
    outputs: dict[int, int] = field(default_factory=dict)
    blank: Any = ...
    written: bool = False


class _Maker(NamedTuple):
    """That a call returned a tensor."""

    call: _Call
    leaf: int


class Join(NamedTuple):
    """A place where a skip connection comes back.

    Attributes:
        cut: the node of the deep side: what a module returned.
        value: the tensor, if what was joined is what the module returned.
    """

    cut: int
    value: Tensor | None


class Tracer(TorchFunctionMode):
    """Follows what depends on what through one call of a model.

    Use it as a context around the call, hand the result to `returned`, and ask for the `wiring()`.

    Args:
        model: the model.
        branch: the join to leave the deep side of out, counted from the model's end.
    """

    def __init__(self, model: nn.Module, branch: int) -> None:
        super().__init__()
        self._model = model
        self._branch = branch
        self._inputs: list[tuple[int, ...]] = []
        """Node → the nodes it was made from. A node is one tensor at one time; an operation makes one or more."""
        self._nodes: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._makers: dict[int, list[_Maker]] = {}
        """Node → the calls that returned it, the innermost first."""
        self._top = _Call(model, 0)
        self._stack = [self._top]
        self._sinks: set[int] = set()
        self._joins: deque[Join] = deque(maxlen=branch + 1)
        self._taps: list[Tap] = []
        self.count = 0
        """How many joins there are."""

    # --- watching ---

    def __enter__(self) -> Tracer:
        self._taps = [Tap(module, CALL, self._around(module)) for module in _modules(self._model)]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for tap in self._taps:
            tap.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in METADATA:
            return func(*args, **kwargs)
        if func in _JOINS:
            self._concatenates(*args, **kwargs)
        given = list(tensors((args, kwargs) if kwargs else args))
        inputs = self._known(given)
        result = func(*args, **kwargs)
        made = [result] if isinstance(result, Tensor) else list(tensors(result))
        written = _written(func, args, kwargs)
        if not made and not written:
            self._sinks |= inputs  # somebody looks at values, and decides by them
        for tensor in written:
            for maker in self._makers.get(self._node(tensor), ()):
                maker.call.written = True
        for tensor in made:
            if not any(tensor is one for one in given):
                written.append(tensor)
        for tensor in written:
            self._enter(tensor, inputs)
        return result

    def returned(self, result: Any) -> None:
        """Tell what the model returned."""
        self._sinks |= self._known(tensors(result))
        self._top.end = len(self._inputs)

    def _around(self, module: nn.Module) -> Callable[[Callable[..., Any], Any, Any], Any]:
        opaque = is_compiled(module)

        def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            call = _Call(module, len(self._inputs))
            self._stack[-1].inner.append(call)
            self._stack.append(call)
            # A compiled module must not see the mode: it would be compiled twice.
            hide = opaque and _get_current_function_mode() is self  # type: ignore[no-untyped-call]
            if hide:
                super(Tracer, self).__exit__(None, None, None)  # type: ignore[no-untyped-call]
            try:
                result = inner(*args, **kwargs)
            finally:
                if hide:
                    super(Tracer, self).__enter__()  # type: ignore[no-untyped-call]
                self._stack.pop()
            if opaque:
                known = self._known(tensors((args, kwargs)))
                for tensor in tensors(result):
                    self._enter(tensor, known)
            call.end = len(self._inputs)
            for leaf, tensor in numbered(result):
                node = self._node(tensor)
                if node >= 0:
                    call.outputs[leaf] = node
                    self._makers.setdefault(node, []).append(_Maker(call, leaf))
            with suppress(TypeError):
                call.blank = replace(result, lambda tensor: Meta.of(tensor).blank())
            return result

        return around

    def _enter(self, tensor: Tensor, inputs: Iterable[int]) -> None:
        self._nodes[id(tensor)] = (weakref.ref(tensor), len(self._inputs))
        self._inputs.append(tuple(inputs))

    def _node(self, tensor: Tensor) -> int:
        found = self._nodes.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else -1

    def _known(self, given: Iterable[Tensor]) -> set[int]:
        return {node for tensor in given if (node := self._node(tensor)) >= 0}

    def _concatenates(self, parts: Any = (), *args: Any, **kwargs: Any) -> None:
        parts = [(self._node(tensor), tensor) for tensor in tensors((parts, kwargs.get("tensors")))]
        parts.sort(key=lambda part: -part[0])  # what comes from deeper was made later
        sources = {node: self._sources(node) for node, _ in parts}
        for node, tensor in parts:
            if len(sources[node]) != 1:
                continue
            (cut,) = sources[node]
            others = set().union(*(sources[other] for other, _ in parts)) - {cut}
            if any(self._weight(self._path(other, cut)) >= _LEAST for other in others):
                self.count += 1
                self._joins.append(Join(cut, tensor if cut == node else None))
                return

    def _sources(self, node: int) -> set[int]:
        """The results of modules that a tensor was made from by operations alone."""
        found: set[int] = set()
        waiting = {node}
        while waiting:
            node = waiting.pop()
            if node in self._makers:
                found.add(node)
            elif node >= 0:
                waiting.update(self._inputs[node])
        return found

    # --- what was learned ---

    def wiring(self, least: float = 0.0) -> tuple[Wiring, dict[int, Any], Tensor | None]:
        """What to leave out, what these calls returned without values, and what the cut holds in this call.

        Args:
            least: the share of the model's parameters that has to be left out.
        """
        if not self.count:
            return Wiring((), (), "it has no skip connections that come back"), {}, None
        if self._branch >= self.count:
            return Wiring((), (), f"it has {self.count} branches, cache.branch 0 to {self.count - 1}"), {}, None
        cut, value = self._joins[0]
        calls = self._calls_to_leave_out(cut)
        if not calls:
            return Wiring((), (), "the deep side of its skip connection is no module's own result"), {}, None
        if self._share(parameter for call in calls for parameter in call.module.parameters()) < least:
            return Wiring((), (), f"below its branch {self._branch} lies less than {least:.0%} of it"), {}, None
        (leaf,) = [leaf for leaf, node in calls[-1].outputs.items() if node == cut][:1]
        wiring = Wiring(
            tuple(call.module for call in calls),
            (Span(0, len(calls) - 1, (Stream(leaf, None),)),),
            written=frozenset(position for position, call in enumerate(calls) if call.written),
        )
        return wiring, {position: call.blank for position, call in enumerate(calls)}, value

    def _calls_to_leave_out(self, cut: int) -> list[_Call]:
        """The outermost calls that nothing but the cut needs, the one that returns the cut last; empty if none does."""
        deep = sorted(self._ancestors({cut}))
        needed = sorted(self._ancestors(self._sinks, cut))
        everything = Counter(call.module for call in _every(self._top))
        shared: set[nn.Module] = set()

        def idle(call: _Call) -> bool:
            if call.blank is ... or call.module in shared:
                return False
            returns = any(node != cut and _within(needed, node, node + 1) for node in call.outputs.values())
            works = any(node != cut for node in _within(needed, call.begin, call.end))
            return not returns and not works and bool(_within(deep, call.begin, call.end))

        def outermost(calls: Sequence[_Call]) -> Iterator[_Call]:
            for call in calls:
                if idle(call):
                    yield call
                else:
                    yield from outermost(call.inner)

        while True:
            found = list(outermost(self._top.inner))
            left = Counter(call.module for call in found)
            again = {module for module in left if left[module] < everything[module]}
            if not again:
                break
            shared |= again  # called elsewhere, too: cannot be told apart by the order of the calls
        return found if found and cut in found[-1].outputs.values() else []

    def _ancestors(self, nodes: Iterable[int], given: int = -1, floor: int = 0) -> set[int]:
        """What nodes were made from, themselves included; not what was made before `floor`, nor for `given`."""
        found: set[int] = set()
        waiting = [node for node in nodes if node >= floor]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                if node != given:
                    waiting += [before for before in self._inputs[node] if before >= floor and before not in found]
        return found

    def _path(self, source: int, node: int) -> list[int]:
        """What was made from one node on the way to another; empty if the way does not go there."""
        path = {source}
        for between in sorted(self._ancestors({node}, floor=source)):
            if not path.isdisjoint(self._inputs[between]):
                path.add(between)
        return sorted(path - {source}) if node in path else []

    def _weight(self, path: list[int]) -> float:
        """The share of the model's parameters that is at work on a path."""
        if not path:
            return 0.0
        calls = (call for call in _every(self._top) if _within(path, call.begin, call.end or path[-1] + 1))
        modules = dict.fromkeys(call.module for call in calls)
        return self._share(parameter for module in modules for parameter in module.parameters(recurse=False))

    def _share(self, parameters: Iterable[nn.Parameter]) -> float:
        everything = sum(parameter.numel() for parameter in self._model.parameters())
        return sum(parameter.numel() for parameter in dict.fromkeys(parameters)) / max(everything, 1)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    name = getattr(func, "__name__", "")
    if name in _WRITERS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace"):
        return list(tensors(args[:1]))
    return list(tensors(kwargs["out"])) if "out" in kwargs else []


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """All modules within, but not what is within compiled ones."""
    seen: set[nn.Module] = set()
    waiting = list(model.children())
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            yield module
            if not is_compiled(module):
                waiting += module.children()


def _every(call: _Call) -> Iterator[_Call]:
    for inner in call.inner:
        yield inner
        yield from _every(inner)


def _within(ordered: Sequence[int], begin: int, end: int) -> Sequence[int]:
    return ordered[bisect_left(ordered, begin) : bisect_left(ordered, end)]
