"""A call of a denoiser as the blocks of its spans see it: computed, skipped, or decided on the way."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hasten.caching.midway import EnoughError, Question
from hasten.caching.sites import Blanks, Call, Predict, UnfitError, blank_of
from hasten.caching.trees import numbered, replace
from hasten.caching.wiring import Slot, Span, Wiring, arguments

OTHER_BLOCKS = "other blocks are called than in the computed steps"


def bases_of(span: Span, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor | None]:
    """What enters a span, stream by stream; None for a stream that begins inside."""
    return [None if stream.into is None else _argument(stream.into, args, kwargs) for stream in span.streams]


def _argument(slot: Slot, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    for name, value in arguments(args, kwargs):
        if name == slot and isinstance(value, Tensor):
            return value
    raise UnfitError("its blocks are called with other arguments than in the computed steps")


def changes_of(span: Span, bases: list[Tensor | None], left: Any, dtype: torch.dtype | None) -> Iterator[Tensor]:
    """What a span did to its streams."""
    outputs = dict(numbered(left))
    for stream, base in zip(span.streams, bases, strict=True):
        after = outputs[stream.out].detach()
        store = dtype or after.dtype
        if base is None:
            yield after.to(store, copy=True)
        else:
            # In the wider of the two formats: a difference of two bfloat16 has few digits left as it is.
            yield torch.sub(after.to(torch.promote_types(after.dtype, store)), base.detach()).to(store)


class Role(NamedTuple):
    """What one call of a block has to do with the spans."""

    module: nn.Module
    position: int
    span: Span | None
    slot: int
    """Where the span's streams begin among the stored values."""
    written: bool
    """Whether somebody writes into what it returns."""


class CallPlan:
    """A wiring, laid out call by call for the blocks that bear taps."""

    def __init__(self, wiring: Wiring) -> None:
        spans: dict[int, tuple[Span, int]] = {}
        slot = 0
        for span in wiring.spans:
            spans |= dict.fromkeys(range(span.first, span.last + 1), (span, slot))
            slot += len(span.streams)
        tapped = {wiring.sequence[position] for position in spans}
        # A module that is called in a span and once more elsewhere is in the sequence twice, the second time to run.
        self.roles = tuple(
            Role(module, position, span, slot, position in wiring.written)
            for position, module in enumerate(wiring.sequence)
            for span, slot in [spans.get(position, (None, 0))]
            if module in tapped
        )


class Computing:
    """A computed call as its blocks see it: they run, and what the spans change is taken along."""

    def __init__(self, plan: CallPlan, blanks: Blanks, dtype: torch.dtype | None) -> None:
        self._roles = plan.roles
        self._cursor = 0
        self._blanks = blanks
        self._dtype = dtype
        self._bases: list[Tensor | None] = []
        self._lost = False
        self.values: list[Tensor] = []

    @property
    def complete(self) -> bool:
        """Whether the blocks that were expected have been called, and no others."""
        return not self._lost and self._cursor == len(self._roles)

    def block(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        cursor = self._cursor
        self._cursor = cursor + 1
        if self._lost or cursor >= len(self._roles) or self._roles[cursor].module is not module:
            self._lost = True
            return inner(*args, **kwargs)
        _, position, span, _, _ = self._roles[cursor]
        if span is not None and position == span.first:
            try:
                self._bases = bases_of(span, args, kwargs)
            except UnfitError:
                self._lost = True
        result = inner(*args, **kwargs)
        if span is not None and not self._lost:
            if position not in self._blanks:
                self._blanks[position] = blank_of(result)
            if position == span.last:
                self.values += changes_of(span, self._bases, result, self._dtype)
                self._bases = []
        return result


class Skipping:
    """A skipped call as its blocks see it: the first of a span predicts, the last returns that, and none runs."""

    def __init__(self, plan: CallPlan, blanks: Blanks, predict: Predict) -> None:
        self._roles = plan.roles
        self._cursor = 0
        self._blanks = blanks
        self._predict = predict
        self._stand_ins: dict[int, Tensor] = {}
        self.error: Tensor | None = None

    @property
    def complete(self) -> bool:
        return self._cursor == len(self._roles)

    def block(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        cursor = self._cursor
        self._cursor = cursor + 1
        if cursor >= len(self._roles) or self._roles[cursor].module is not module:
            raise UnfitError(OTHER_BLOCKS)
        _, position, span, slot, written = self._roles[cursor]
        if span is None:
            return inner(*args, **kwargs)
        if position not in self._blanks:
            raise UnfitError("no computed step has shown what its blocks return")
        if position == span.first:
            self.predict(span, slot, bases_of(span, args, kwargs))
        if span.verifies:
            return self._verified(inner(*args, **kwargs))
        if position != span.last:
            # What is written into has to have memory; nobody reads it all the same.
            return replace(self._blanks[position], torch.clone) if written else self._blanks[position]
        outputs = iter([number for number, _ in numbered(self._blanks[position])])
        return replace(self._blanks[position], lambda blank: self._stand_ins.get(next(outputs), blank))

    def _verified(self, result: Any) -> Any:
        """Compare what a block computed with what was predicted of it."""
        outputs = dict(numbered(result))
        pairs = [(predicted, outputs[out]) for out, predicted in self._stand_ins.items()]
        wrong = torch.stack([(predicted - real).abs().sum(dtype=torch.float32) for predicted, real in pairs]).sum()
        self.error = wrong / torch.stack([real.abs().sum(dtype=torch.float32) for _, real in pairs]).sum()
        return result

    def begin(self, cursor: int) -> None:
        """Begin in the middle: the blocks before have run."""
        self._cursor = cursor

    def predict(self, span: Span, slot: int, bases: list[Tensor | None]) -> None:
        """Make what a span's last block is to return of what has entered its first."""
        wanted = dict(numbered(self._blanks[span.last]))
        self._stand_ins = {
            stream.out: self._predict(slot + offset, base, wanted[stream.out].dtype)
            for offset, (stream, base) in enumerate(zip(span.streams, bases, strict=True))
        }


class Deciding(Computing):
    """A call as its blocks see it whose fate is decided on the way: computed up to there, then perhaps skipped."""

    def __init__(
        self, plan: CallPlan, blanks: Blanks, dtype: torch.dtype | None, predict: Predict, question: Question
    ) -> None:
        super().__init__(plan, blanks, dtype)
        self._question = question
        self._rest = Skipping(plan, blanks, predict)
        self.left = False

    @property
    def complete(self) -> bool:
        return self._rest.complete if self.left else super().complete

    def block(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        if self.left:
            return self._rest.block(module, inner, args, kwargs)
        cursor = self._cursor
        role = self._roles[cursor] if cursor < len(self._roles) else None
        expected = role is not None and role.span is not None and role.module is module and not self._lost
        if not expected:
            return super().block(module, inner, args, kwargs)
        self._question.stoppable = True
        try:
            if self._question.answer is False:
                raise EnoughError
            return super().block(module, inner, args, kwargs)
        except EnoughError:
            self._leave(cursor)
            return self._rest.block(module, inner, args, kwargs)
        finally:
            self._question.stoppable = False

    def _leave(self, cursor: int) -> None:
        """Leave out what follows, from the middle of a span if need be."""
        self.left = True
        self._rest.begin(cursor)
        role = self._roles[cursor]
        if role.span is not None and role.position != role.span.first:
            self._rest.predict(role.span, role.slot, self._bases)
