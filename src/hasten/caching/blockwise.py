"""Blocks that are left out one by one, known only as lists: the part below `helpers`.

Nothing is known of the model around the blocks, only their calls. On a computed pass it is seen, by identity, which
results a block hands to the block after it, and which streams run through from the first block to the last. What is
kept is what a block that runs, or the model, can still read on a skipped pass; the others return stand-ins of no size.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import permutations
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hasten.caching.bands import Grid, LowBand
from hasten.caching.prediction import Moment, Prediction
from hasten.caching.predictors import Weights
from hasten.caching.snapshots import History
from hasten.caching.trees import Meta, numbered, replace, tensors
from hasten.caching.wiring import Slot, arguments
from hasten.errors import CacheError

Kind = Literal["double_blocks", "single_blocks"]
Key = tuple[Kind, int]
"""A block: which list, and its place there."""

Layout = dict[int, tuple[Slot, ...]]
"""Result of the last block → the arguments of the first that it continues; several where they were joined."""


class Forecast(NamedTuple):
    """How the value at the end of the blocks is made on a skipped pass.

    Attributes:
        keeps: how many snapshots.
        residual: whether it is the blocks' change that is predicted, where a stream runs through all of them.
        grid: (…, height, width) of the tokens, for frequency bands; nothing where it is not known.
    """

    prediction: Prediction
    keeps: int = 1
    residual: bool = False
    grid: Grid = ()


class Memory:
    """What is kept of one of the passes through the blocks that each step makes.

    Attributes:
        history: the snapshots of all kept results.
        sort: what the first block was called with, without values.
        places: kept block → (where its tensors begin in a snapshot, its result without values).
        blanks: left-out block → its result without values.
        copies: results that the model may read later than in the next block.
        lost: why there is no snapshot.
        bases: of each value in a snapshot, the arguments of the first block that it is a change of.
    """

    def __init__(self) -> None:
        self.history = History()
        self.sort: object = None
        self.forget()

    def forget(self) -> None:
        self.history.trim(0)
        self.lost = ""
        self.places: dict[Key, tuple[int, Any]] = {}
        self.blanks: dict[Key, Any] = {}
        self.copies: dict[Key, Any] = {}
        self.bases: dict[int, tuple[Slot, ...]] = {}

    @property
    def newest(self) -> dict[Key, Any]:
        """What is kept of the last computed pass, by block; of a residual, the change."""
        found = dict(self.copies)
        for key, (place, blank) in self.places.items() if len(self.history) else ():
            found[key] = _filled(blank, self.history.values[0][place:])
        return found


def sort_of(args: Any, kwargs: Any) -> object:
    """What has to be the same in two passes for the values of one to stand in for those of the other."""
    return tuple((slot, Meta.of(value)) for slot, value in arguments(args, kwargs) if isinstance(value, Tensor))


class Computing:
    """A pass in which all blocks run.

    Args:
        index: the step.
        last: the last block.
        runs: whether a block runs on skipped passes, too.
    """

    def __init__(self, memory: Memory, index: int, last: Key, runs: Callable[[Key], bool], forecast: Forecast) -> None:
        self._memory, self._index, self._last, self._runs = memory, index, last, runs
        self._forecast = forecast
        self._kept: dict[Key, tuple[Any, tuple[Tensor, ...]]] = {}
        self._open: tuple[Key, Any] | None = None
        self._passed_on: dict[Key, tuple[Any, list[weakref.ref[Tensor]]]] = {}
        self._streams = Streams()

    def block(self, key: Key, module: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._streams.enter(module, args, kwargs)
        self._hand_over(key, args, kwargs)
        result = inner(*args, **kwargs)
        self._streams.leave(result)
        self._open = None if self._runs(key) else (key, result)
        if key == self._last:
            self._close()
        return result

    def _hand_over(self, key: Key, args: Any, kwargs: Any) -> None:
        """The block before: does the next one take all of its result, and nobody else?"""
        if self._open is None:
            return
        before, result = self._open
        given = {id(tensor) for tensor in tensors((args, kwargs))}
        blank = _blank(result)
        passed_on = blank is not None and all(id(tensor) in given for tensor in tensors(result))
        if passed_on and not self._runs(key):
            self._passed_on[before] = blank, [weakref.ref(tensor) for tensor in tensors(result)]
        else:
            self._keep(before, result, blank)
        self._open = None

    def _keep(self, key: Key, result: Any, blank: Any) -> None:
        if blank is None:
            self._memory.lost = f"{key[0]}[{key[1]}] returns a {type(result).__name__}, which cannot be built again"
            return
        # Copies: models write to what they get.
        self._kept[key] = blank, tuple(tensor.detach().clone() for tensor in tensors(result))

    def _close(self) -> None:
        """The last block is done: what was kept becomes a snapshot."""
        memory = self._memory
        if self._open is not None:
            self._keep(self._open[0], self._open[1], _blank(self._open[1]))
        if memory.lost:
            return
        memory.blanks = {key: blank for key, (blank, _) in self._passed_on.items()}
        memory.copies = dict(self._held())
        places: dict[Key, tuple[int, Any]] = {}
        values: list[Tensor] = []
        for key, (blank, kept) in self._kept.items():
            places[key] = len(values), blank
            values += kept
        bases = self._change(values, places) if self._forecast.residual else {}
        if {key: place for key, (place, _) in places.items()} != {key: at for key, (at, _) in memory.places.items()}:
            memory.history.trim(0)
        memory.places, memory.bases = places, bases
        memory.history.trim(self._forecast.keeps - 1)
        memory.history.add(self._index, tuple(values))

    def _held(self) -> Iterator[tuple[Key, Any]]:
        """Results that were passed on and are still there: somebody holds them, and may read them.

        Of what entered the last block nobody can tell: it counts as held.
        """
        for key, (blank, references) in self._passed_on.items():
            alive = [reference() for reference in references]
            if any(tensor is not None for tensor in alive):
                empty = tensors(blank)
                values = [next(empty) if tensor is None else tensor.detach().clone() for tensor in alive]
                yield key, _filled(blank, values)

    def _change(self, values: list[Tensor], places: dict[Key, tuple[int, Any]]) -> dict[int, tuple[Slot, ...]]:
        """Make the last block's results differences to what entered the first, stream by stream."""
        if self._last not in places:
            return {}
        first = places[self._last][0]
        bases = {}
        numbers = [number for number, _ in numbered(places[self._last][1])]
        for offset, number in enumerate(numbers):
            slots = self._streams.layout.get(number, ())
            base = joined(slots, *self._streams.entered)
            if base is not None and Meta.of(base) == Meta.of(values[first + offset]):
                values[first + offset].sub_(base.detach())
                bases[first + offset] = slots
        return bases


class Skipping:
    """A pass in which blocks return what stands in for their results.

    Args:
        runs: whether a block runs all the same.
        entered: the arguments of the first block.
    """

    def __init__(
        self,
        memory: Memory,
        index: int,
        last: Key,
        runs: Callable[[Key], bool],
        forecast: Forecast,
        entered: tuple[Any, Any],
    ) -> None:
        self._memory, self._last, self._runs, self._entered = memory, last, runs, entered
        indices = tuple(memory.history.indices)
        places = tuple(map(float, indices))
        moment = Moment(indices, index, places, float(index), gram=memory.history.gram)
        self._weights = forecast.prediction.weights(moment)
        low = forecast.prediction.low_weights(moment)
        grids = (forecast.grid,) if forecast.grid else ()
        self._low = None if low is None else LowBand(low, forecast.prediction.cut, grids)

    def block(self, key: Key, module: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        memory = self._memory
        if self._runs(key):
            return inner(*args, **kwargs)
        if key in memory.places:
            place, blank = memory.places[key]
            # Only what leaves the blocks for good is predicted; what a block takes that runs is the newest value.
            at_end = key == self._last
            weights, low = (self._weights, self._low) if at_end else ((1.0,), None)
            slots = iter(range(place, place + len(list(tensors(blank)))))
            return replace(blank, lambda empty: self._value(next(slots), empty.dtype, weights, low))
        if key in memory.copies:
            return replace(memory.copies[key], Tensor.clone)
        if key in memory.blanks:
            return memory.blanks[key]
        raise CacheError(f"{key[0]}[{key[1]}] is called on a skipped step, and was not on the computed ones")

    def _value(self, slot: int, dtype: torch.dtype, weights: Weights, low: LowBand | None) -> Tensor:
        base = joined(self._memory.bases.get(slot, ()), *self._entered)
        return self._memory.history.predict(weights, slot, base, dtype, low)


class Streams:
    """Follows tensors from the arguments of the first block to the results of the last."""

    def __init__(self) -> None:
        self.entered: tuple[Any, Any] = ((), {})
        self._classes: list[type] = []
        self._links: list[list[tuple[int, Slot]]] = []
        self._pairs: dict[type, dict[Slot, int]] = {}
        self._result: dict[int, Tensor] = {}
        self._inputs: dict[Slot, Tensor] = {}

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        """A block is called."""
        inputs = {slot: value for slot, value in arguments(args, kwargs) if isinstance(value, Tensor)}
        kind = type(module)
        if not self._classes:
            self.entered = args, kwargs
        else:
            link = [
                (out, slot) for out, value in self._result.items() for slot, given in inputs.items() if given is value
            ]
            if self._classes[-1] is kind:
                self._pairs.setdefault(kind, {}).update({slot: out for out, slot in link})
            self._links.append(link or _joint(self._result, inputs))
        self._classes.append(kind)
        self._inputs = inputs

    def leave(self, result: Any) -> None:
        """A block returns."""
        self._result = dict(numbered(result))
        kind = self._classes[-1]
        if kind not in self._pairs:  # a block without a neighbour of its kind: its shapes may tell
            for out, value in self._result.items():
                alike = [slot for slot, given in self._inputs.items() if Meta.of(given) == Meta.of(value)]
                if len(alike) == 1:
                    self._pairs.setdefault(kind, {})[alike[0]] = out

    @property
    def layout(self) -> Layout:
        """Which results of the last block continue which arguments of the first."""
        through = self._pairs.get(self._classes[0], {})
        streams: Layout = {out: (slot,) for slot, out in through.items()}
        for kind, link in zip(self._classes[1:], self._links, strict=True):
            through = self._pairs.get(kind, {})
            arrived: dict[Slot, tuple[Slot, ...]] = {}
            for out, slot in link:
                arrived[slot] = (*arrived.get(slot, ()), *streams.get(out, ()))
            streams = {through[slot]: origin for slot, origin in arrived.items() if slot in through and origin}
        return streams


def _joint(results: dict[int, Tensor], inputs: dict[Slot, Tensor]) -> list[tuple[int, Slot]]:
    """Where all results of a block were joined along the tokens to one argument: they, in that order."""
    for slot, given in inputs.items():
        for order in permutations(results, 2) if len(results) == 2 else ():
            if _is_joint(given, *(results[out] for out in order)):
                return [(out, slot) for out in order]
    return []


def _is_joint(given: Tensor, first: Tensor, second: Tensor) -> bool:
    if given.ndim != 3 or first.ndim != 3 or second.ndim != 3 or given.shape[1] != first.shape[1] + second.shape[1]:
        return False
    return torch.equal(given[:, : first.shape[1]], first) and torch.equal(given[:, first.shape[1] :], second)


def joined(slots: Sequence[Slot], args: Any, kwargs: Any) -> Tensor | None:
    """The arguments of these slots, one after the other along the tokens; None without any."""
    found = dict(arguments(args, kwargs))
    parts = [part for part in map(found.get, slots) if isinstance(part, Tensor)]
    if not parts or len(parts) != len(slots):
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


def _blank(result: Any) -> Any:
    """A result without values; None if it cannot be built again."""
    try:
        return replace(result, lambda tensor: Meta.of(tensor).blank())
    except TypeError:
        return None


def _filled(blank: Any, values: Sequence[Tensor]) -> Any:
    """A result without values, with values."""
    rest = iter(values)
    return replace(blank, lambda _: next(rest))


def blocks_of(kind: Kind, blocks: Sequence[nn.Module] | None) -> Iterator[tuple[Key, nn.Module]]:
    """The blocks of a list with their keys."""
    return (((kind, number), block) for number, block in enumerate(blocks or ()))
