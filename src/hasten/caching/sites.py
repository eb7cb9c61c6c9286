"""Sites: the part of a denoiser whose work a skipped step leaves out, and where its stand-in is read and written.

A site does two things with a call of the denoiser: `compute` it, and take along the values that a later prediction
needs; or `skip` it, with predicted values in the place of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace as replace_fields
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from hasten.caching.interleaved import StackTracer
from hasten.caching.midway import EnoughError, Question
from hasten.caching.patching import CALL, Tap, is_compiled
from hasten.caching.tracing import UntraceableError, follow
from hasten.caching.trees import Meta, fresh, numbered, replace, tensors
from hasten.caching.wiring import Slot, Span, Stream, Watcher, Wiring, arguments, repeated_blocks

Call = Callable[..., Any]
Predict = Callable[[int, Tensor | None, torch.dtype], Tensor]
"""(which of the cached values, what it is a change of, the number format wanted) → its stand-in."""

Values = tuple[Tensor, ...]
Blanks = dict[int, Any]
"""What a branch's modules return, without values: by the position of the block, or 0 for the denoiser's own result."""


class UnfitError(Exception):
    """The site does not fit this call; the message says why. Nothing was computed."""


class MisfitError(UnfitError):
    """The site turned out not to fit while the step was computed in full: the result is there all the same."""

    def __init__(self, reason: str, result: Any) -> None:
        super().__init__(reason)
        self.result = result


class Site(Protocol):
    """Where a skipped step's work is left out."""

    name: str
    reached: bool
    """Whether the last call came to what the site leaves out; a layer outside of this one may leave it out, too."""

    def arm(self) -> None:
        """A run begins: put taps back that something else was put in the place of."""
        ...

    def detach(self) -> None:
        """Leave everything as it was."""
        ...

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        """Call the denoiser; give its result and, with `keep`, the values to store.

        Args:
            blanks: written to, for `skip` of the same branch.
            dtype: the number format of the values, None for the model's own.

        Raises:
            UnfitError: this denoiser has no such site.
        """
        ...

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        """The denoiser's result with predicted values in it.

        Raises:
            UnfitError: nothing came of it; compute instead.
        """
        ...


class Decided(NamedTuple):
    """What became of a call whose fate was decided on the way.

    Attributes:
        values: to store, where it was computed.
    """

    result: Any
    values: Values
    computed: bool


class OutputSite:
    """The whole denoiser: its result is predicted, and none of it runs."""

    name = "output"
    reached = True

    def arm(self) -> None:
        """There is nothing to put back."""

    def detach(self) -> None:
        """There is nothing to take off."""

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        result = inner(*args, **kwargs)
        return result, self.values(result, blanks, dtype) if keep else ()

    def decide(
        self,
        inner: Call,
        args: Any,
        kwargs: Any,
        blanks: Blanks,
        dtype: torch.dtype | None,
        predict: Predict,
        question: Question,
        *,
        keep: bool,
    ) -> Decided:
        """Compute until the question is put, and to the end unless the answer is no.

        Raises:
            UnfitError: as `compute` and `skip`.
        """
        question.stoppable = True
        try:
            result, values = self.compute(inner, args, kwargs, blanks, dtype, keep=keep)
        except EnoughError:
            return Decided(self.skip(inner, args, kwargs, blanks, predict), (), False)
        return Decided(result, values, True)

    def values(self, result: Any, blanks: Blanks, dtype: torch.dtype | None) -> Values:
        """What to store of a result: copies, because pipelines may write to what they get."""
        try:
            blanks[0] = blank_of(result)
        except TypeError as error:
            raise MisfitError(f"of what the denoiser returns, {error}", result) from None
        return tuple(tensor.detach().to(dtype or tensor.dtype, copy=True) for tensor in tensors(result))

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        if 0 not in blanks:
            raise UnfitError("no computed step has shown what it returns")
        slots = iter(range(len(list(tensors(blanks[0])))))
        return replace(blanks[0], lambda blank: predict(next(slots), None, blank.dtype))


class LatentSite(OutputSite):
    """The whole denoiser, like `output`; what is predicted is what it adds to its input, so that this still counts.

    Args:
        latent: finds the input among the arguments of a call.
    """

    name = "latent"

    def __init__(self, latent: Callable[[Any, Any], Tensor | None]) -> None:
        self._latent = latent

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        before = self._latent(args, kwargs)
        before = None if before is None else before.detach().clone() if keep else before
        result = inner(*args, **kwargs)
        (after, *more) = tensors(result)
        if before is None or before.shape != after.shape or more:
            raise MisfitError("what it returns is not of the shape of its input", result)
        if not keep:
            return result, ()
        blanks[0] = blank_of(result)
        wide = torch.promote_types(after.dtype, dtype or after.dtype)
        return result, (torch.sub(after.detach().to(wide), before).to(dtype or after.dtype),)

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        if 0 not in blanks:
            raise UnfitError("no computed step has shown what it returns")
        base = self._latent(args, kwargs)
        return replace(blanks[0], lambda blank: predict(0, base, blank.dtype))


class SpanSite:
    """One or more stacks of blocks: what they change is predicted, and the rest of the denoiser runs.

    What is stored of a stream is its change on the way through the stack, so that what enters at the skipped step
    still counts. The blocks are left out by taps on the instances; the denoiser's own code around them runs as it is.

    Args:
        model: the denoiser.
        first, last: so many blocks at the start and at the end of the stack keep running.
        absolute: what leaves the stack is predicted in the place of its change (site `last_block`).
        verifies: the last block, which keeps running, is predicted as well and compared with what it computes, as SpeCa
            does (Liu et al. 2025, arXiv 2509.11628). What it computes is what goes on.

    Attributes:
        error: of a site that verifies, mean |ŷ − y| / mean |y| at the last skipped step.
    """

    reached = True

    def __init__(
        self, model: nn.Module, first: int = 0, last: int = 0, *, absolute: bool = False, verifies: bool = False
    ) -> None:
        self.error: Tensor | None = None
        self._verifies = verifies
        self.name = "last_block" if absolute else "span" if first or last else "residual"
        self._absolute = absolute
        self._model = model
        self._keep = (first, last)
        self._taps: dict[nn.Module, Tap] = {}
        self._live: _Computing | _Skipping | None = None
        # By the sort of call: which optional arguments were given decides which way the model takes.
        self._plans: dict[object, _Plan | str] = {}
        self._checked: set[object] = set()

    @property
    def left_out(self) -> tuple[nn.Module, ...]:
        """The blocks that are not called at a skipped step, as far as calls were watched."""
        plans = [plan for plan in self._plans.values() if isinstance(plan, _Plan)]
        roles = [role for plan in plans for role in plan.roles if role.span is not None and not role.span.verifies]
        return tuple(dict.fromkeys(role.module for role in roles))

    def arm(self) -> None:
        """Put taps back that something else was put in the place of."""
        for module, tap in list(self._taps.items()):
            if not tap.in_place:
                tap.remove()
                self._tap(module)

    def detach(self) -> None:
        """Leave the blocks as they were."""
        for tap in self._taps.values():
            tap.remove()
        self._taps = {}

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        sort = sort_of(args, kwargs)
        plan = self._plans.get(sort)
        if plan is None and is_compiled(self._model):
            plan = "it is compiled as a whole, so that its blocks cannot be left out"
        if isinstance(plan, str):
            raise UnfitError(plan)
        spare = None if sort in self._checked else fresh((args, kwargs))
        if plan is None:
            assert spare is not None  # what was checked is known
            result, values = self._watch(sort, inner, args, kwargs, spare, blanks, dtype)
        elif not keep:
            return inner(*args, **kwargs), ()
        else:
            live = _Computing(plan, blanks, dtype)
            result = self._run(live, inner, args, kwargs)
            if not live.complete:
                # The model went another way through its blocks than when it was watched: watch again.
                self._unlearn(sort)
                return result, ()
            values = tuple(live.values)
        if values and spare is not None:
            self._check(sort, inner, spare[0], spare[1], blanks, result, values)
        return result, values

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        plan = self._plans.get(sort_of(args, kwargs))
        if not isinstance(plan, _Plan):
            raise UnfitError("called with other arguments than in the computed steps")
        live = _Skipping(plan, blanks, predict)
        result = self._run(live, inner, args, kwargs)
        if not live.complete:
            raise UnfitError(_OTHER_BLOCKS)
        self.error = live.error
        return result

    def decide(
        self,
        inner: Call,
        args: Any,
        kwargs: Any,
        blanks: Blanks,
        dtype: torch.dtype | None,
        predict: Predict,
        question: Question,
        *,
        keep: bool,
    ) -> Decided:
        """Run the blocks until the question is put, and those that follow unless the answer is no.

        Raises:
            UnfitError: as `compute` and `skip`.
        """
        sort = sort_of(args, kwargs)
        plan = self._plans.get(sort)
        if not isinstance(plan, _Plan) or sort not in self._checked:
            return Decided(*self.compute(inner, args, kwargs, blanks, dtype, keep=keep), True)
        live = _Deciding(plan, blanks, dtype, predict, question)
        result = self._run(live, inner, args, kwargs)
        if live.left and not live.complete:
            raise UnfitError(_OTHER_BLOCKS)
        if not live.complete:
            self._unlearn(sort)
        return Decided(result, tuple(live.values) if keep and live.complete and not live.left else (), not live.left)

    def _unlearn(self, sort: object) -> None:
        del self._plans[sort]
        self._checked.discard(sort)

    def _run(self, live: _Computing | _Skipping, inner: Call, args: Any, kwargs: Any) -> Any:
        self._live = live
        try:
            return inner(*args, **kwargs)
        finally:
            self._live = None

    def _watch(
        self,
        sort: object,
        inner: Call,
        args: Any,
        kwargs: Any,
        spare: tuple[Any, Any],
        blanks: Blanks,
        dtype: torch.dtype | None,
    ) -> tuple[Any, Values]:
        """Learn how the blocks hang together while the step is computed.

        Args:
            spare: the arguments once more: some models take something out of the lists that they are given.
        """
        watcher = Watcher(repeated_blocks(self._model), *self._keep)
        with watcher:
            result = inner(*args, **kwargs)
        watcher.returned(result)
        wiring = watcher.verified if self._verifies else watcher.wiring
        if not wiring.spans and wiring.interleaved and not self._verifies:
            return result, self._trace(sort, inner, spare, blanks, dtype, result)
        wiring = self._fit(wiring)
        plan = self._adopt(sort, wiring, watcher.blanks, blanks, result)
        values: list[Tensor] = []
        for span in wiring.spans:
            ends = watcher.ends_of(span)
            if ends is None or span.last not in blanks:
                return result, self._values(plan, inner, spare, blanks, dtype)
            first_args, first_kwargs, left = ends
            values += _changes(span, _bases(span, first_args, first_kwargs), left, dtype)
        return result, tuple(values)

    def _trace(
        self,
        sort: object,
        inner: Call,
        spare: tuple[Any, Any],
        blanks: Blanks,
        dtype: torch.dtype | None,
        result: Any,
    ) -> Values:
        """Look more closely: compute the step once more, followed operation by operation."""
        tracer = StackTracer(self._model, *self._keep)
        args, kwargs = fresh(spare)
        try:
            follow(tracer, inner, args, kwargs)
        except UntraceableError as error:
            self._plans[sort] = str(error)
            raise MisfitError(str(error), result) from error
        wiring, seen = tracer.wiring()
        plan = self._adopt(sort, self._fit(wiring), seen, blanks, result)
        return self._values(plan, inner, spare, blanks, dtype)

    def _values(
        self, plan: _Plan, inner: Call, spare: tuple[Any, Any], blanks: Blanks, dtype: torch.dtype | None
    ) -> Values:
        """What is to be stored, where it was not held while the step was computed: compute it once more."""
        args, kwargs = fresh(spare)
        live = _Computing(plan, blanks, dtype)
        self._run(live, inner, args, kwargs)
        return tuple(live.values) if live.complete else ()

    def _fit(self, wiring: Wiring) -> Wiring:
        if self._absolute:
            return _absolute(wiring)
        if any(stream.into is not None for span in wiring.spans for stream in span.streams) or not wiring.spans:
            return wiring
        return Wiring(wiring.sequence, (), "nothing that enters its stack of blocks comes out of it again")

    def _adopt(self, sort: object, wiring: Wiring, seen: Blanks, blanks: Blanks, result: Any) -> _Plan:
        """Lay out what was learned of a sort of call, and put taps on what it leaves out."""
        if not wiring.spans:
            self._plans[sort] = wiring.reason
            raise MisfitError(wiring.reason, result)
        plan = self._plans[sort] = _Plan(wiring)
        for role in plan.roles:
            if role.module not in self._taps:
                self._tap(role.module)
            if role.position in seen:
                blanks[role.position] = seen[role.position]
        return plan

    def _check(
        self, sort: object, inner: Call, args: Any, kwargs: Any, blanks: Blanks, result: Any, values: Values
    ) -> None:
        """Skip the very step that was computed, with its own values: the result has to be the same.

        It costs as much as one skipped step and finds what watching cannot see: values that are read in an unseen way
        are NaN here, and a block that does more than return its results is missed.
        """

        def exact(slot: int, base: Tensor | None, dtype: torch.dtype) -> Tensor:
            return values[slot].to(dtype, copy=True) if base is None else (base + values[slot]).to(dtype)

        try:
            again = self.skip(inner, args, kwargs, blanks, exact)
            same = all(close(one, other) for one, other in zip(tensors(again), tensors(result), strict=True))
        except UnfitError:
            same = False
        if not same:
            self._plans[sort] = reason = "leaving its blocks out does not leave the rest as it was"
            raise MisfitError(reason, result)
        self._checked.add(sort)

    def _tap(self, module: nn.Module) -> None:
        def around(inner: Call, args: Any, kwargs: Any) -> Any:
            live = self._live
            return inner(*args, **kwargs) if live is None else live.block(module, inner, args, kwargs)

        self._taps[module] = Tap(module, CALL, around)


class _Role(NamedTuple):
    """What one call of a block has to do with the spans."""

    module: nn.Module
    position: int
    span: Span | None
    slot: int
    """Where the span's streams begin among the stored values."""
    written: bool
    """Whether somebody writes into what it returns."""


class _Plan:
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
            _Role(module, position, span, slot, position in wiring.written)
            for position, module in enumerate(wiring.sequence)
            for span, slot in [spans.get(position, (None, 0))]
            if module in tapped
        )


class _Computing:
    """A computed call as its blocks see it: they run, and what the spans change is taken along."""

    def __init__(self, plan: _Plan, blanks: Blanks, dtype: torch.dtype | None) -> None:
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
                self._bases = _bases(span, args, kwargs)
            except UnfitError:
                self._lost = True
        result = inner(*args, **kwargs)
        if span is not None and not self._lost:
            if position not in self._blanks:
                self._blanks[position] = blank_of(result)
            if position == span.last:
                self.values += _changes(span, self._bases, result, self._dtype)
                self._bases = []
        return result


class _Skipping:
    """A skipped call as its blocks see it: the first of a span predicts, the last returns that, and none runs."""

    def __init__(self, plan: _Plan, blanks: Blanks, predict: Predict) -> None:
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
            raise UnfitError(_OTHER_BLOCKS)
        _, position, span, slot, written = self._roles[cursor]
        if span is None:
            return inner(*args, **kwargs)
        if position not in self._blanks:
            raise UnfitError("no computed step has shown what its blocks return")
        if position == span.first:
            self.predict(span, slot, _bases(span, args, kwargs))
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


class _Deciding(_Computing):
    """A call as its blocks see it whose fate is decided on the way: computed up to there, then perhaps skipped."""

    def __init__(
        self, plan: _Plan, blanks: Blanks, dtype: torch.dtype | None, predict: Predict, question: Question
    ) -> None:
        super().__init__(plan, blanks, dtype)
        self._question = question
        self._rest = _Skipping(plan, blanks, predict)
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


def _absolute(wiring: Wiring) -> Wiring:
    """The same stacks, with streams that begin inside."""
    spans = [
        replace_fields(span, streams=tuple(Stream(one.out, None) for one in span.streams)) for span in wiring.spans
    ]
    return replace_fields(wiring, spans=tuple(spans))


_OTHER_BLOCKS = "other blocks are called than in the computed steps"


def _bases(span: Span, args: Sequence[Any], kwargs: dict[str, Any]) -> list[Tensor | None]:
    """What enters a span, stream by stream; None for a stream that begins inside."""
    return [None if stream.into is None else _argument(stream.into, args, kwargs) for stream in span.streams]


def _argument(slot: Slot, args: Sequence[Any], kwargs: dict[str, Any]) -> Tensor:
    for name, value in arguments(args, kwargs):
        if name == slot and isinstance(value, Tensor):
            return value
    raise UnfitError("its blocks are called with other arguments than in the computed steps")


def _changes(span: Span, bases: list[Tensor | None], left: Any, dtype: torch.dtype | None) -> Iterator[Tensor]:
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


def blank_of(tree: Any) -> Any:
    """What a module returns, without values. Raises TypeError for a structure that cannot be built again."""
    return replace(tree, lambda tensor: Meta.of(tensor).blank())


def sort_of(args: Sequence[Any], kwargs: dict[str, Any]) -> object:
    """The sort of a call: which optional arguments are given."""
    return tuple((slot, value is None) for slot, value in arguments(args, kwargs))


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results are one and the same but for rounding."""
    if not other.is_floating_point():
        return torch.equal(one, other)
    tolerance = 0.05 if torch.finfo(other.dtype).bits <= 16 else 0.002
    difference = torch.linalg.vector_norm(one.float() - other.float())
    return bool(difference <= tolerance * torch.linalg.vector_norm(other.float()))
