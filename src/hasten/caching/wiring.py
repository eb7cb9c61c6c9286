"""Wiring: how a model's repeated blocks hang together, learned by watching one real call.

There is no registry of model classes. While the model computes a step as it always does, each block's results are
followed: who takes them, and does anything outside of the blocks read their values? Where all that a block returns goes
to the blocks after it and to nobody else, the blocks form a span, which can be left out as one piece. Where somebody
else looks (a ControlNet residual is added, a skip connection branches off, two streams are joined), the span ends.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode, _get_current_function_mode

from hasten.caching.patching import CALL, Tap
from hasten.caching.trees import Meta, numbered, replace, tensors

Slot = int | str
"""Where a tensor goes into a block: the position or the name of the argument."""

# Looking at these reads no values. What is not listed counts as reading, which costs memory at worst.
METADATA = frozenset(
    {
        getattr(Tensor, name).__get__
        for name in ("shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "_version")
    }
    | {Tensor.size, Tensor.dim, Tensor.stride, Tensor.numel, Tensor.is_floating_point, Tensor.is_contiguous}
    | {Tensor.is_complex, Tensor.element_size, Tensor.get_device, Tensor.__len__, Tensor.is_inference}
    | {torch.is_floating_point, torch.is_complex, torch.numel}
)

# Smaller stacks beside the main one (text refiners and the like) are cheap to run and dear to store.
WORTH = 0.2
MOST_SPANS = 4
# Where less of the blocks can be left out than this, a skipped step saves too little: predict the output instead.
ENOUGH = 0.75


@dataclass(frozen=True)
class Stream:
    """A tensor that comes out of a span and is read after it.

    Attributes:
        out: which of the leaves of what the last block returns.
        into: where the same stream enters the first block; None where it has no counterpart there of the same shape.
    """

    out: int
    into: Slot | None


@dataclass(frozen=True)
class Span:
    """Blocks that can be left out as one piece.

    Attributes:
        first, last: positions in the sequence of block calls.
        streams: what has to be put in the place of their work.
        verifies: it runs even so, on what was predicted, to be compared with what is predicted of itself.
    """

    first: int
    last: int
    streams: tuple[Stream, ...]
    verifies: bool = False


@dataclass(frozen=True)
class Wiring:
    """What a model does with its blocks in one call.

    Attributes:
        sequence: the blocks in the order of their calls.
        spans: the pieces to leave out, in order; empty where there are none.
        reason: why there are none.
        interleaved: there may be some for whoever looks more closely.
        written: positions of calls whose results somebody writes into.
    """

    sequence: tuple[nn.Module, ...]
    spans: tuple[Span, ...]
    reason: str = ""
    written: frozenset[int] = frozenset()
    interleaved: bool = False


@dataclass
class _Call:
    """What was seen of one call of a block."""

    module: nn.Module
    inputs: dict[Slot, Meta]
    outputs: dict[int, Meta] = field(default_factory=dict)
    links: list[tuple[int, int, Slot]] = field(default_factory=list)
    """(position, output, argument): an output of an earlier call that this one takes."""
    read: set[int] = field(default_factory=set)
    """Outputs whose values were read outside of the blocks."""
    users: dict[int, set[int]] = field(default_factory=dict)
    """Output → positions of the calls that take it."""
    in_place: bool = False


def repeated_blocks(model: nn.Module) -> list[nn.Module]:
    """The members of the model's outermost module lists: what it calls in a row, one after another."""
    return [block for blocks in block_lists(model) for block in blocks]


def block_lists(model: nn.Module) -> list[list[nn.Module]]:
    """The model's outermost module lists."""
    found: list[list[nn.Module]] = []
    for child in model.children():
        found += [_members(child)] if isinstance(child, nn.ModuleList) else block_lists(child)
    return found


def _members(blocks: nn.ModuleList) -> list[nn.Module]:
    if any(isinstance(block, nn.ModuleList) for block in blocks):  # lists of lists are not called either
        return [inner for block in blocks if isinstance(block, nn.ModuleList) for inner in _members(block)]
    return list(blocks)


def arguments(args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Slot, Any]]:
    """The arguments of a call by their slots."""
    yield from enumerate(args)
    yield from kwargs.items()


class Watcher(TorchFunctionMode):
    """Follows the results of blocks through one call of their model.

    Use it as a context around the call, hand the result to `returned`, and ask for the `wiring`.

    Args:
        blocks: the modules to follow, see `repeated_blocks`.
        first, last: so many blocks at the start and the end keep running.
    """

    def __init__(self, blocks: Sequence[nn.Module], first: int = 0, last: int = 0) -> None:
        super().__init__()
        self._blocks = list(dict.fromkeys(blocks))
        self._keep = (first, last)
        self._calls: list[_Call] = []
        self._owners: dict[int, tuple[weakref.ref[Tensor], int, int]] = {}
        self._depth = 0
        self._taps: list[Tap] = []
        # What the values of a span are made of, so that the watched call itself can be the first snapshot. Only the
        # places where something enters and the ends of chains are held: what passes in between is free to go.
        self._seen: dict[int, weakref.ref[Tensor]] = {}
        self._since_start = 0
        self._entered: dict[int, tuple[Sequence[Any], dict[str, Any]]] = {}
        self._left: dict[int, Any] = {}
        self._recent: deque[tuple[int, Any]] = deque(maxlen=last + 1)
        self.blanks: dict[int, Any] = {}
        """What each call of a block returned, without values; missing where that cannot be built again."""

    def __enter__(self) -> Watcher:
        self._taps = [Tap(block, CALL, self._around(block)) for block in self._blocks]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *exception: Any) -> None:
        super().__exit__(*exception)  # type: ignore[no-untyped-call]
        for tap in self._taps:
            tap.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if not self._depth and func not in METADATA:
            self._reads(args)
            self._reads(kwargs)
        return func(*args, **(kwargs or {}))

    def returned(self, result: Any) -> None:
        """Tell what the model returned: a block's output in it has been read, too."""
        self._reads(result)

    def ends_of(self, span: Span) -> tuple[Sequence[Any], dict[str, Any], Any] | None:
        """The arguments of a span's first block and the result of its last, where they were held."""
        left = self._left | dict(self._recent)
        if span.first not in self._entered or span.last not in left:
            return None
        return (*self._entered[span.first], left[span.last])

    def _reads(self, tree: Any) -> None:
        for tensor in tensors(tree):
            owner = self._owner(tensor)
            if owner is not None:
                self._calls[owner[0]].read.add(owner[1])

    def _owner(self, tensor: Tensor) -> tuple[int, int] | None:
        found = self._owners.get(id(tensor))
        return found[1:] if found is not None and found[0]() is tensor else None

    def _was_seen(self, tensor: Tensor) -> bool:
        found = self._seen.get(id(tensor))  # of a tensor that is gone another may have the number
        return found is not None and found() is tensor

    def _around(self, block: nn.Module) -> Callable[[Callable[..., Any], Any, Any], Any]:
        def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            if self._depth:
                return inner(*args, **kwargs)
            self._depth += 1
            # Inside a block nobody watches. A compiled block must not see the mode: it would be compiled twice.
            top = _get_current_function_mode() is self  # type: ignore[no-untyped-call]
            if top:
                super(Watcher, self).__exit__(None, None, None)  # type: ignore[no-untyped-call]
            try:
                return self._block(block, inner, args, kwargs)
            finally:
                if top:
                    super(Watcher, self).__enter__()  # type: ignore[no-untyped-call]
                self._depth -= 1

        return around

    def _block(self, block: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        position = len(self._calls)
        call = _Call(block, {})
        self._calls.append(call)
        enters = False
        for slot, value in arguments(args, kwargs):
            if isinstance(value, Tensor):
                call.inputs[slot] = Meta.of(value)
                enters = enters or (self._owner(value) is None and not self._was_seen(value))
                self._seen[id(value)] = weakref.ref(value)
            for tensor in tensors(value):
                owner = self._owner(tensor)
                if owner is not None:
                    source, output = owner
                    self._calls[source].users.setdefault(output, set()).add(position)
                    if tensor is value:
                        call.links.append((source, output, slot))
        self._hold(position, call, args, kwargs, enters=enters)
        versions = [(tensor, _version(tensor)) for tensor in tensors((args, kwargs))]
        result = inner(*args, **kwargs)
        call.in_place = any(_version(tensor) != version for tensor, version in versions)
        for output, tensor in numbered(result):
            call.outputs[output] = Meta.of(tensor)
            self._owners[id(tensor)] = (weakref.ref(tensor), position, output)
        self._recent.append((position, result))
        with suppress(TypeError):
            self.blanks[position] = replace(result, lambda tensor: Meta.of(tensor).blank())
        return result

    def _hold(self, position: int, call: _Call, args: Any, kwargs: Any, *, enters: bool) -> None:
        if not any(source == position - 1 for source, _, _ in call.links):
            enters = True
            self._left |= dict(self._recent)
        if enters:
            self._since_start = 0
        if self._since_start <= self._keep[0]:
            self._entered[position] = (args, kwargs)
        self._since_start += 1

    @property
    def wiring(self) -> Wiring:
        """What was learned."""
        sequence = tuple(call.module for call in self._calls)
        if not sequence:
            return Wiring((), (), "it calls no list of repeated blocks")
        pieces = self._pieces()
        spans = tuple(self._span(first, last) for first, last in self._cut(pieces))
        spans = tuple(span for span in spans if span.streams)
        if spans:
            return Wiring(sequence, spans)
        if pieces:
            return Wiring(sequence, (), f"no block is left between the first {self._keep[0]} and last {self._keep[1]}")
        return Wiring(sequence, (), "something reads or changes what passes between its blocks", interleaved=True)

    @property
    def verified(self) -> Wiring:
        """What was learned, with the last block in a span of its own that verifies."""
        wiring, pieces = self.wiring, self._pieces()
        if not wiring.spans:
            return wiring
        end = pieces[-1][1]
        return replace_fields(wiring, spans=(*wiring.spans, replace_fields(self._span(end, end), verifies=True)))

    def _whole(self, first: int, last: int) -> bool:
        """Whether nothing but these calls looks at what passes between them."""
        within = self._calls[first:last]
        return not any(call.in_place for call in self._calls[first : last + 1]) and all(
            not call.read and all(user <= last for users in call.users.values() for user in users) for call in within
        )

    def _pieces(self) -> list[tuple[int, int]]:
        """The main stacks: the longest runs of calls that hang together, of some weight, in order."""
        pieces, first = [], 0
        while first < len(self._calls):
            last = next(
                (last for last in range(len(self._calls) - 1, first, -1) if self._whole(first, last)),
                first,
            )
            if last > first:
                pieces.append((self._entrance(first, last), last))
            first = last + 1
        modules = [call.module for call in self._calls]
        weights = {piece: parameters(modules[piece[0] : piece[1] + 1]) for piece in pieces}
        heaviest = max(weights.values(), default=0)
        pieces = [piece for piece in pieces if weights[piece] >= WORTH * heaviest]
        enough = sum(weights[piece] for piece in pieces) >= ENOUGH * parameters(modules)
        return pieces if enough and len(pieces) <= MOST_SPANS else []

    def _entrance(self, first: int, last: int) -> int:
        """The earliest call of a stack by which all streams that leave it have entered.

        A text refiner that hands over to the main stack would otherwise be its beginning, where there is no image yet.
        """
        for entrance in range(first, last):
            streams = self._span(entrance, last).streams
            if streams and all(stream.into is not None for stream in streams):
                return entrance
        return first

    def _cut(self, pieces: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Leave the first and the last blocks running."""
        first, last = self._keep
        positions = [position for piece in pieces for position in range(piece[0], piece[1] + 1)]
        kept = set(positions[first : len(positions) - last])
        cut = []
        for begin, end in pieces:
            inside = [position for position in range(begin, end + 1) if position in kept]
            if inside and self._whole(inside[0], inside[-1]):
                cut.append((inside[0], inside[-1]))
        return cut

    def _span(self, first: int, last: int) -> Span:
        end = self._calls[last]
        used = {output for output, users in end.users.items() if any(user > last for user in users)}
        into = self._follow(first, last)
        streams = []
        for output in sorted(end.read | used):
            slot = into.get(output)
            alike = slot is not None and self._calls[first].inputs[slot] == end.outputs[output]
            streams.append(Stream(output, slot if alike else None))
        return Span(first, last, tuple(streams))

    def _follow(self, first: int, last: int) -> dict[int, Slot]:
        """Which output of the last call is the stream that entered the first call by which argument."""
        pairs = self._pairs()
        streams = {pairs[type(self._calls[first].module)].get(slot): slot for slot in self._calls[first].inputs}
        for position in range(first + 1, last + 1):
            call = self._calls[position]
            through = pairs[type(call.module)]
            arrived = {
                through.get(slot): streams.get(out) for source, out, slot in call.links if source == position - 1
            }
            streams = {out: slot for out, slot in arrived.items() if slot is not None}
        return {out: slot for out, slot in streams.items() if out is not None}

    def _pairs(self) -> dict[type, dict[Slot, int]]:
        """For each class of block, which output continues which argument.

        Two blocks of a class in a row show it: what the one returns in a place, the other takes as an argument. For
        a block that stands alone, its shapes may tell.
        """
        pairs: dict[type, dict[Slot, int]] = {type(call.module): {} for call in self._calls}
        for position in range(1, len(self._calls)):
            call = self._calls[position]
            if type(call.module) is type(self._calls[position - 1].module):
                pairs[type(call.module)] |= {slot: out for source, out, slot in call.links if source == position - 1}
        for call in self._calls:
            if not pairs[type(call.module)]:
                metas = list(call.outputs.values())
                for out, meta in call.outputs.items():
                    alike = [slot for slot, given in call.inputs.items() if given == meta]
                    if len(alike) == 1 and metas.count(meta) == 1:
                        pairs[type(call.module)][alike[0]] = out
        return pairs


def parameters(modules: Iterable[nn.Module]) -> int:
    """How many parameters some modules have, each counted once."""
    return sum(parameter.numel() for module in dict.fromkeys(modules) for parameter in module.parameters())


def _version(tensor: Tensor) -> int:
    # Under inference_mode nobody counts; the check of the first snapshot then has to find it.
    return 0 if tensor.is_inference() else tensor._version
