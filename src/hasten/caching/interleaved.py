"""Stacks that are no plain row of blocks: hints are added between them, streams joined, tensors laid out anew.

`wiring` takes blocks as one piece only if nothing else looks at what passes between them. Here one more call is
followed operation by operation, and all that only serves to bring a stack's first input to its last output is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import nn

from hasten.caching.tracing import TracedCall, Tracer
from hasten.caching.wiring import ENOUGH, MOST_SPANS, WORTH, Slot, Span, Stream, Wiring, block_lists, parameters


@dataclass(frozen=True)
class _Stack:
    """Blocks between two calls.

    Attributes:
        leaving: leaf of what the last returns → node, for what is needed afterwards.
        into: the same leaf → where that stream enters the first; None where nothing like it does.
    """

    begin: TracedCall
    end: TracedCall
    leaving: dict[int, int]
    into: dict[int, Slot | None]

    @property
    def entering(self) -> set[int]:
        return {self.begin.inputs[slot].node for slot in self.into.values() if slot is not None} - {-1}


class StackTracer(Tracer):
    """Follows one call of a model around its repeated blocks; ask for the `wiring` afterwards.

    Args:
        model: the model.
        first, last: so many blocks at the start and the end keep running.
    """

    def __init__(self, model: nn.Module, first: int = 0, last: int = 0) -> None:
        lists = block_lists(model)
        super().__init__(model, {block for blocks in lists for block in blocks})
        self._keep = (first, last)
        weights = [parameters(blocks) for blocks in lists]
        self._main = {
            block
            for blocks, weight in zip(lists, weights, strict=True)
            for block in blocks
            if weight >= WORTH * max(weights)
        }

    def wiring(self) -> tuple[Wiring, dict[int, Any]]:
        """What to leave out, and what these calls returned without values."""
        stacks = self._stacks()
        if not stacks:
            return Wiring((), (), "nothing that enters its stack of blocks comes out of it again in that shape"), {}
        if not all(_alike(one, other) for one, other in combinations(map(self._shape, stacks), 2)):
            return Wiring((), (), "what passes through its blocks changes its size on the way, as in a UNet"), {}
        given = {node for stack in stacks for node in stack.leaving.values()}
        entering = {node for stack in stacks for node in stack.entering}
        idle = self.idle(given, also=entering, around=[stack.begin for stack in stacks])
        if not all(stack.begin in idle and stack.end in idle for stack in stacks):
            return Wiring((), (), "what passes between its blocks is needed elsewhere, too"), {}
        blocks = [call.module for call in self.top.every() if call.module in self.opaque]
        if parameters(call.module for call in idle if call.module in self.opaque) < ENOUGH * parameters(blocks):
            return Wiring((), (), f"less than {ENOUGH:.0%} of its blocks can be left out together"), {}
        wiring = Wiring(
            tuple(call.module for call in idle),
            tuple(_spans(idle, stacks)),
            written=frozenset(position for position, call in enumerate(idle) if call.written),
        )
        return wiring, {position: call.blank for position, call in enumerate(idle)}

    def _stacks(self) -> list[_Stack]:
        """The longest stacks, found from the model's end, in order."""
        first, last = self._keep
        calls = [call for call in self.top.every() if call.module in self._main]
        calls = calls[first : len(calls) - last]
        stacks: list[_Stack] = []
        while calls and len(stacks) < MOST_SPANS:
            stack = self._ending(calls, stacks)
            if stack is None:
                calls.pop()  # it keeps running
            else:
                stacks.insert(0, stack)
                calls = calls[: calls.index(stack.begin)]
        return stacks

    def _ending(self, calls: Sequence[TracedCall], after: Sequence[_Stack]) -> _Stack | None:
        """The longest stack that ends with the last of some calls."""
        end = calls[-1]
        used = self.ancestors(
            self.sinks.union(*(stack.entering for stack in after)),
            {node for stack in after for node in stack.leaving.values()},
        )
        leaving = {leaf: node for leaf, node in end.outputs.items() if node in used}
        for number, begin in enumerate(calls):
            into = self._entrances(begin, leaving)
            size = {self.metas[node].shape.numel() for leaf, node in leaving.items() if into[leaf] is not None}
            if size and all(size & self._sizes(call) for call in calls[number:]):
                return _Stack(begin, end, leaving, into)
        return None

    def _entrances(self, begin: TracedCall, leaving: dict[int, int]) -> dict[int, Slot | None]:
        """For each result of a stack, the first argument of its first block that is like it, and like no other."""
        metas = [self.metas[node] for node in leaving.values()]
        return {
            leaf: next((slot for slot, given in begin.inputs.items() if given.meta == meta), None)
            if metas.count(meta) == 1
            else None
            for leaf, meta in zip(leaving, metas, strict=True)
        }

    def _shape(self, stack: _Stack) -> torch.Size:
        return next(self.metas[node].shape for leaf, node in stack.leaving.items() if stack.into[leaf] is not None)

    def _sizes(self, call: TracedCall) -> set[int]:
        """A stream may be laid out anew on its way, but it stays what it is: a UNet's does not."""
        return {self.metas[node].shape.numel() for node in call.outputs.values()}


def _alike(one: torch.Size, other: torch.Size) -> bool:
    """Whether two streams can be one that was laid out anew, or had tokens appended."""
    if one.numel() == other.numel():
        return True
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) == 1


def _spans(idle: Sequence[TracedCall], stacks: Sequence[_Stack]) -> list[Span]:
    """The stacks by their positions among what is left out; what only prepares something for them has no streams."""
    spans, free = [], 0
    for stack in stacks:
        start, stop = idle.index(stack.begin), idle.index(stack.end)
        if start > free:
            spans.append(Span(free, start - 1, ()))
        spans.append(Span(start, stop, tuple(Stream(leaf, stack.into[leaf]) for leaf in sorted(stack.leaving))))
        free = stop + 1
    return spans
