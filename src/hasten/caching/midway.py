"""Signals from the middle of a call: where in a denoiser they show themselves, found by watching one call.

`modulated`: the stream as the first block modulates it by the time embedding, which is the first tensor within that
block that depends on both (TeaCache). `state`: the stream after so many first blocks. `probe`: what these blocks did to
it. Nothing runs twice: where the answer is to go on, the call simply goes on.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from hasten.caching.patching import CALL, Tap, Taps
from hasten.caching.trees import tensors
from hasten.caching.vocabulary import SignalName
from hasten.caching.wiring import Slot, Watcher, arguments, repeated_blocks

Timestep = Callable[[Any, Any], object]
Seen = tuple[Tensor, Tensor | None]
"""The tensor to measure, and what the blocks before it did to the stream."""

Arguments = tuple[Sequence[Any], dict[str, Any]]


class EnoughError(Exception):
    """The rest of a call is not wanted."""


class NowhereError(Exception):
    """A signal does not show itself in this denoiser; the message says why."""


class Question:
    """Whether the rest of a call is to be computed, asked once, where the signal shows itself.

    Args:
        ask: gets the tensor to measure, and what the blocks so far did to the stream where that is known; True to go
            on.

    Attributes:
        answer: None until it was asked.
        stoppable: whether somebody waits for `EnoughError`; else the blocks go on until somebody looks at the answer.
    """

    def __init__(self, ask: Callable[[Tensor, Tensor | None], bool], *, stoppable: bool = False) -> None:
        self._ask = ask
        self.answer: bool | None = None
        self.stoppable = stoppable

    def put(self, value: Tensor, change: Tensor | None = None) -> None:
        """Ask, if nobody has.

        Raises:
            EnoughError: the answer is no.
        """
        if self.answer is None:
            self.answer = self._ask(value, change)
        if not self.answer and self.stoppable:
            raise EnoughError


@dataclass(frozen=True)
class _Place:
    """Where a signal shows itself.

    Attributes:
        start, start_slot: the first block of the stack, and the argument that is the stream.
        asks, asks_slot: the block before which, or (if it is `start`) within which the question is put.
        inside, inside_slot: the module within `start` whose argument is measured.
    """

    start: nn.Module
    start_slot: Slot
    asks: nn.Module
    asks_slot: Slot
    inside: nn.Module | None = None
    inside_slot: Slot = 0


class Probe:
    """Puts a question in the middle of a denoiser's calls.

    Args:
        timestep: finds the timestep among the denoiser's arguments.
        signal: modulated, state or probe.
        blocks: so many blocks run before the question, for state and probe.
    """

    def __init__(self, model: nn.Module, timestep: Timestep, signal: SignalName, blocks: int) -> None:
        self._model = model
        self._timestep = timestep
        self._signal = signal
        self._blocks = blocks
        # By the sort of call, as in `SpanSite`.
        self._places: dict[object, _Place | str] = {}
        self._taps = Taps(self._through)
        self._place: _Place | None = None
        self._question: Question | None = None
        self._entered: Tensor | None = None

    def arm(self) -> None:
        self._taps.arm()

    def detach(self) -> None:
        self._taps.detach()

    def call(self, question: Question, inner: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser and put the question on the way, unless it is answered already.

        The first call is watched; it is computed to its end, and the question is put afterwards.

        Raises:
            NowhereError: the denoiser has no such place.
            EnoughError: the answer was no, and somebody waits for that.
        """
        if question.answer is not None:
            return inner(*args, **kwargs)
        sort = tuple((slot, value is None) for slot, value in arguments(args, kwargs))
        place = self._places.get(sort)
        if isinstance(place, str):
            raise NowhereError(place)
        if place is None:
            return self._learn(sort, question, inner, args, kwargs)
        self._place, self._question, self._entered = place, question, None
        try:
            return inner(*args, **kwargs)
        finally:
            self._place = self._question = self._entered = None

    def _learn(self, sort: object, question: Question, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        time = self._timestep(args, kwargs)
        watcher = _Watcher(repeated_blocks(self._model), self._blocks, time if isinstance(time, Tensor) else None)
        with watcher:
            result = inner(*args, **kwargs)
        watcher.returned(result)
        try:
            place, seen = watcher.find(self._signal, self._blocks)
        except NowhereError as nowhere:
            self._places[sort] = str(nowhere)
            raise
        self._places[sort] = place
        self._taps.put_on((place.start, place.asks))
        if seen is not None:
            question.stoppable = False
            with _unseen():
                question.put(*seen)
        return result

    def _through(self, module: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._question is None or self._question.answer is not None:
            return inner(*args, **kwargs)
        return self._block(module, inner, args, kwargs)

    def _block(self, module: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        place, question = self._place, self._question
        assert place is not None
        assert question is not None
        if module is place.start and self._entered is None:
            self._entered = _argument(place.start_slot, args, kwargs)
            if place.inside is not None:
                return _within(module, place.inside, place.inside_slot, question, inner, args, kwargs)
        elif module is place.asks and self._entered is not None:
            reached = _argument(place.asks_slot, args, kwargs)
            if reached is not None:
                change = reached - self._entered
                question.put(change if self._signal == "probe" else reached, change)
        return inner(*args, **kwargs)


def _within(
    block: nn.Module,
    inside: nn.Module,
    slot: Slot,
    question: Question,
    inner: Callable[..., Any],
    args: Any,
    kwargs: Any,
) -> Any:
    """Call a block and put the question where a module within it is called."""

    def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        value = _argument(slot, args, kwargs)
        if value is not None:
            question.put(value)
        return inner(*args, **kwargs)

    # A compiled block cannot be interrupted: this one runs as it was written.
    innermost = vars(block)[CALL]
    while isinstance(innermost.covered, Tap):
        innermost = innermost.covered
    compiled = innermost.inner
    if innermost.covered is not None:
        innermost.inner = block._call_impl
        if innermost is vars(block)[CALL]:
            inner = innermost.inner
    tap = Tap(inside, CALL, around)
    try:
        return inner(*args, **kwargs)
    finally:
        tap.remove()
        innermost.inner = compiled


def _unseen() -> AbstractContextManager[None]:
    """Within this context nobody follows what is done: a site may be watching the call, and this is not the model."""
    return torch._C.DisableTorchFunction()


def _argument(slot: Slot, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor | None:
    found = (value for name, value in arguments(args, kwargs) if name == slot and isinstance(value, Tensor))
    return next(found, None)


class _Marks:
    """Which sources a tensor depends on."""

    def __init__(self) -> None:
        self._of: dict[int, tuple[weakref.ref[Tensor], frozenset[str]]] = {}

    def of(self, *trees: Any) -> frozenset[str]:
        found = frozenset[str]()
        for tensor in tensors(trees):
            reference, marks = self._of.get(id(tensor), (None, found))
            if reference is not None and reference() is tensor:
                found |= marks
        return found

    def put(self, tree: Any, marks: Iterable[str]) -> None:
        marks = frozenset(marks)
        if marks:
            for tensor in tensors(tree):
                self._of[id(tensor)] = weakref.ref(tensor), marks


class _Watcher(Watcher):
    """A watcher that also follows the time embedding, and holds what enters the first blocks.

    Args:
        blocks: the modules to follow.
        count: so many of them run before the question.
        time: the timestep.
    """

    def __init__(self, blocks: Sequence[nn.Module], count: int, time: Tensor | None) -> None:
        super().__init__(blocks)
        self._count = count
        self._marks = _Marks()
        self._marks.put(time, ("time",))
        self._timed: dict[int, frozenset[Slot]] = {}
        self._held: dict[int, Arguments] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if not self._depth:
            self._marks.put(result, self._marks.of(args, kwargs))
        return result

    def _block(self, block: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        position = len(self._calls)
        slots = arguments(args, kwargs)
        self._timed[position] = frozenset(slot for slot, value in slots if self._marks.of(value))
        result = super()._block(block, inner, args, kwargs)
        self._marks.put(result, self._marks.of(args, kwargs))
        return result

    def _hold(self, position: int, call: Any, args: Any, kwargs: Any, *, enters: bool) -> None:
        super()._hold(position, call, args, kwargs, enters=enters)
        if self._since_start <= self._count + 1:
            self._held[position] = (args, kwargs)

    def find(self, signal: SignalName, count: int) -> tuple[_Place, Seen | None]:
        """Where the signal shows itself, and what it was in the watched call.

        Raises:
            NowhereError: it does not.
        """
        return self._inside() if signal == "modulated" else self._after(count, signal)

    def _after(self, count: int, signal: SignalName) -> tuple[_Place, Seen | None]:
        pieces = self._pieces()
        if not pieces:
            raise NowhereError(self.wiring.reason)
        start, last = next((piece for piece in pieces if piece[1] - piece[0] >= count), pieces[0])
        if last - start < count:
            raise NowhereError(f"its stack has {last - start + 1} blocks, so that none is left after the first {count}")
        asks, slot = start + count, self._stream(start, last)
        reached_by = self._carried(start, slot, asks)
        if reached_by is None:
            raise NowhereError("its blocks do not hand the stream on")
        place = _Place(self._calls[start].module, slot, self._calls[asks].module, reached_by)
        if start not in self._held or asks not in self._held:
            return place, None
        entered, reached = _argument(slot, *self._held[start]), _argument(reached_by, *self._held[asks])
        if entered is None or reached is None:
            return place, None
        with _unseen():
            change = reached - entered
            return place, (change if signal == "probe" else reached, change)

    def _stream(self, start: int, last: int) -> Slot:
        """The argument of a stack's first block by which what leaves the stack has entered."""
        into = [stream.into for stream in self._span(start, last).streams if stream.into is not None]
        return into[0] if into else next(iter(self._calls[start].inputs))

    def _carried(self, start: int, slot: Slot, position: int) -> Slot | None:
        """By which argument the stream that enters one call reaches a later one."""
        pairs = self._pairs()
        current: Slot | None = slot
        for before in range(start, position):
            through = pairs[type(self._calls[before].module)]
            links = {out: into for source, out, into in self._calls[before + 1].links if source == before}
            current = links.get(through[current]) if current in through else None
        return current

    def _inside(self) -> tuple[_Place, Seen | None]:
        """Within the first block that takes a stream and the time embedding apart from each other."""
        if not self._calls:
            raise NowhereError("it calls no list of repeated blocks")
        stacks = dict(self._pieces())
        for position in stacks or range(min(len(self._calls), 2)):
            call = self._calls[position]
            if not call.inputs or position not in self._held:
                continue
            slot = self._stream(position, stacks[position]) if stacks else next(iter(call.inputs))
            args, kwargs = self._held[position]
            timed = [value for name, value in arguments(args, kwargs) if name in self._timed[position] - {slot}]
            stream = _argument(slot, args, kwargs)
            if stream is None or not timed:
                continue
            found = _Tracer(call.module, stream, timed).find(args, kwargs)
            if found is not None:
                inside, inside_slot, value = found
                return _Place(call.module, slot, call.module, slot, inside, inside_slot), (value, None)
        raise NowhereError("no time embedding enters its first block beside the stream")


class _Tracer(TorchFunctionMode):
    """Runs a block until a module within it takes a tensor that depends on both the stream and the time embedding."""

    def __init__(self, block: nn.Module, stream: Tensor, timed: Sequence[Tensor]) -> None:
        super().__init__()
        self._block = block
        self._numbers = stream.numel()
        self._marks = _Marks()
        self._marks.put(stream, ("stream",))
        self._marks.put(timed, ("time",))
        self._found: tuple[nn.Module, Slot, Tensor] | None = None

    def find(self, args: Any, kwargs: Any) -> tuple[nn.Module, Slot, Tensor] | None:
        """The module, its argument, and that argument's value."""
        within = [module for module in self._block.modules() if module is not self._block]
        taps = [Tap(module, CALL, self._around(module)) for module in within]
        try:
            with self:
                self._block._call_impl(*args, **kwargs)  # type: ignore[no-untyped-call]
        except EnoughError:
            pass
        finally:
            for tap in reversed(taps):
                tap.remove()
        return self._found

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self._marks.put(result, self._marks.of(args, kwargs))
        return result

    def _around(self, module: nn.Module) -> Callable[[Callable[..., Any], Any, Any], Any]:
        def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            for slot, value in arguments(args, kwargs):
                if isinstance(value, Tensor) and value.numel() == self._numbers and len(self._marks.of(value)) == 2:
                    self._found = module, slot, value
                    raise EnoughError
            return inner(*args, **kwargs)

        return around
