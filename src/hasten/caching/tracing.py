"""Tracing: what depends on what in one real call of a model, followed operation by operation.

`wiring` looks at a model's repeated blocks alone, which is cheap and enough for most. A tracer also sees what is done
to tensors between modules, and so can tell which modules nothing needs once some tensors are given. No class and no
attribute of a model is known here.
"""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from hasten.caching.patching import CALL, Tap, is_compiled
from hasten.caching.trees import Meta, numbered, replace, tensors
from hasten.caching.wiring import METADATA, Slot, arguments

_JOINS = (torch.cat, torch.concat, torch.concatenate)
_WRITERS = frozenset(
    f"__{name}__"
    for name in ("setitem", "iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "iand", "ior", "ixor", "imod")
)


class Argument(NamedTuple):
    """A tensor that a call was given."""

    node: int
    meta: Meta


@dataclass(eq=False)
class TracedCall:
    """One call of a module.

    Attributes:
        begin, end: its operations, those of the modules within included, are the nodes from `begin` to `end` - 1.
        inner: the calls within.
        inputs: the tensors that it was given; of opaque modules only.
        outputs: leaf of what it returned → node.
        blank: what it returned, without values; `...` where that cannot be built again.
        written: whether somebody wrote into what it returned.
    """

    module: nn.Module
    begin: int
    end: int = 0
    inner: list[TracedCall] = field(default_factory=list)
    inputs: dict[Slot, Argument] = field(default_factory=dict)
    outputs: dict[int, int] = field(default_factory=dict)
    blank: Any = ...
    written: bool = False

    def every(self) -> Iterator[TracedCall]:
        """The calls within, at any depth, in the order in which they began."""
        for call in self.inner:
            yield call
            yield from call.every()


class Tracer(TorchFunctionMode):
    """Follows one call of a model: use it as a context around the call, and hand the result to `returned`.

    Args:
        model: the model.
        opaque: modules that are not looked into; all they return is taken to be made from all they are given.

    Attributes:
        top: the call of the model.
        inputs: node → the nodes it was made from. A node is one tensor at one time.
        makers: node → the calls that returned it, the innermost first.
        metas: the shapes and number formats of the nodes that calls returned.
        sinks: the nodes that the model returned, or whose values somebody looked at.
    """

    def __init__(self, model: nn.Module, opaque: Collection[nn.Module] = ()) -> None:
        super().__init__()
        self.model = model
        self.top = TracedCall(model, 0)
        self.inputs: list[tuple[int, ...]] = []
        self.makers: dict[int, list[TracedCall]] = {}
        self.metas: dict[int, Meta] = {}
        self.sinks: set[int] = set()
        self.opaque = frozenset(opaque)
        self._nodes: dict[int, tuple[weakref.ref[Tensor], int]] = {}
        self._stack = [self.top]
        self._taps: list[Tap] = []

    def __enter__(self) -> Tracer:
        self._taps = [Tap(module, CALL, self._around(module)) for module in self._modules()]
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
            self.joins(list(tensors((args[:1], kwargs.get("tensors")))))
        given = list(tensors((args, kwargs) if kwargs else args))
        inputs = self._known(given)
        result = func(*args, **kwargs)
        made = [result] if isinstance(result, Tensor) else list(tensors(result))
        written = _written(func, args, kwargs)
        if not made and not written:
            self.sinks |= inputs  # somebody looks at values, and decides by them
        for tensor in written:
            self._write(tensor)
        for tensor in made:
            if not any(tensor is one for one in given):
                written.append(tensor)
        for tensor in written:
            self._enter(tensor, inputs)
        return result

    def joins(self, parts: Sequence[Tensor]) -> None:
        """Tensors are about to be concatenated."""

    def returned(self, result: Any) -> None:
        """Tell what the model returned."""
        self.sinks |= self._known(tensors(result))
        self.top.end = len(self.inputs)

    def node(self, tensor: Tensor) -> int:
        """The node that a tensor is now; -1 for one that no operation has made."""
        found = self._nodes.get(id(tensor))
        return found[1] if found is not None and found[0]() is tensor else -1

    # --- what was learned ---

    def ancestors(self, nodes: Iterable[int], given: Collection[int] = (), floor: int = 0) -> set[int]:
        """What nodes were made from, themselves included; not what was made before `floor`, nor for those `given`."""
        found: set[int] = set()
        waiting = [node for node in nodes if node >= floor]
        while waiting:
            node = waiting.pop()
            if node not in found:
                found.add(node)
                if node not in given:
                    waiting += [before for before in self.inputs[node] if before >= floor and before not in found]
        return found

    def idle(
        self, given: Collection[int], also: Iterable[int] = (), around: Collection[TracedCall] = ()
    ) -> list[TracedCall]:
        """The outermost calls that are not needed once some nodes are given, and were needed to make these.

        Args:
            given: the nodes, each returned by a call.
            also: nodes that are needed beside what the model returns.
            around: calls that are to be left out themselves, and not as a part of a larger one.
        """
        deep = sorted(self.ancestors(given))
        needed = sorted(self.ancestors(self.sinks.union(also), given) - set(given))
        every = Counter(call.module for call in self.top.every())
        shared: set[nn.Module] = set()

        def is_idle(call: TracedCall) -> bool:
            if call.blank is ... or call.module in shared or any(within in around for within in call.every()):
                return False
            if _within(needed, call.begin, call.end) or any(_within(needed, n, n + 1) for n in call.outputs.values()):
                return False
            return bool(_within(deep, call.begin, call.end))

        def outermost(calls: Sequence[TracedCall]) -> Iterator[TracedCall]:
            for call in calls:
                if is_idle(call):
                    yield call
                else:
                    yield from outermost(call.inner)

        while True:
            found = list(outermost(self.top.inner))
            left = Counter(call.module for call in found)
            again = {module for module in left if left[module] < every[module]}
            if not again:
                return found
            shared |= again  # called elsewhere, too: cannot be told apart by the order of the calls

    def share(self, parameters: Iterable[nn.Parameter]) -> float:
        """How much of the model these are."""
        everything = sum(parameter.numel() for parameter in self.model.parameters())
        return sum(parameter.numel() for parameter in dict.fromkeys(parameters)) / max(everything, 1)

    def at_work(self, nodes: Sequence[int]) -> Iterator[nn.Module]:
        """The modules that made some nodes (in order), and those around them."""
        calls = (call for call in self.top.every() if _within(nodes, call.begin, call.end or nodes[-1] + 1))
        yield from dict.fromkeys(call.module for call in calls)

    # --- watching ---

    def _modules(self) -> Iterator[nn.Module]:
        seen: set[nn.Module] = set()
        waiting = list(self.model.children())
        while waiting:
            module = waiting.pop()
            if module not in seen:
                seen.add(module)
                yield module
                if not self._is_opaque(module):
                    waiting += module.children()

    def _is_opaque(self, module: nn.Module) -> bool:
        return module in self.opaque or is_compiled(module)

    def _around(self, module: nn.Module) -> Callable[[Callable[..., Any], Any, Any], Any]:
        opaque = self._is_opaque(module)

        def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            call = TracedCall(module, len(self.inputs))
            self._stack[-1].inner.append(call)
            self._stack.append(call)
            try:
                result = self._through(call, inner, args, kwargs) if opaque else inner(*args, **kwargs)
            finally:
                self._stack.pop()
            call.end = len(self.inputs)
            for leaf, tensor in numbered(result):
                node = self.node(tensor)
                if node >= 0:
                    call.outputs[leaf] = node
                    self.metas[node] = Meta.of(tensor)
                    self.makers.setdefault(node, []).append(call)
            with suppress(TypeError):
                call.blank = replace(result, lambda tensor: Meta.of(tensor).blank())
            return result

        return around

    def _through(self, call: TracedCall, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """A call that is not looked into."""
        for slot, value in arguments(args, kwargs):
            if isinstance(value, Tensor):
                call.inputs[slot] = Argument(self.node(value), Meta.of(value))
        before = [(tensor, _version(tensor)) for tensor in tensors((args, kwargs))]
        known = self._known(tensor for tensor, _ in before)
        # Compiled code must not see the mode: it would be compiled twice.
        hide = _get_current_function_mode() is self  # type: ignore[no-untyped-call]
        if hide:
            super().__exit__(None, None, None)  # type: ignore[no-untyped-call]
        try:
            result = inner(*args, **kwargs)
        finally:
            if hide:
                super().__enter__()  # type: ignore[no-untyped-call]
        changed = [tensor for tensor, version in before if _version(tensor) != version]
        for tensor in changed:
            self._write(tensor)
        for tensor in (*changed, *tensors(result)):
            self._enter(tensor, known)
        return result

    def _write(self, tensor: Tensor) -> None:
        for call in self.makers.get(self.node(tensor), ()):
            call.written = True

    def _enter(self, tensor: Tensor, inputs: Iterable[int]) -> None:
        self._nodes[id(tensor)] = (weakref.ref(tensor), len(self.inputs))
        self.inputs.append(tuple(inputs))

    def _known(self, given: Iterable[Tensor]) -> set[int]:
        return {node for tensor in given if (node := self.node(tensor)) >= 0}


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> list[Tensor]:
    """The arguments that an operation writes to."""
    name = getattr(func, "__name__", "")
    if name in _WRITERS or (name.endswith("_") and not name.endswith("__")) or kwargs.get("inplace"):
        return list(tensors(args[:1]))
    return list(tensors(kwargs["out"])) if "out" in kwargs else []


def _within(ordered: Sequence[int], begin: int, end: int) -> Sequence[int]:
    return ordered[bisect_left(ordered, begin) : bisect_left(ordered, end)]


def _version(tensor: Tensor) -> int:
    # Under inference_mode nobody counts; the check of the first snapshot then has to find it.
    return 0 if tensor.is_inference() else tensor._version


class UntraceableError(Exception):
    """A model cannot be followed; the message says why."""


def follow(tracer: Tracer, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
    """The result of a call that is followed.

    Raises:
        UntraceableError: the call failed because of that. It may not have ended.
    """
    try:
        with tracer:
            result = inner(*args, **kwargs)
    except Exception as error:  # code that is compiled on its way may not bear to be followed
        raise UntraceableError(f"it cannot be followed through a call ({type(error).__name__})") from error
    tracer.returned(result)
    return result
