"""The site of stacks of blocks: they are left out by taps on their instances, and what is around them runs as it is."""

from __future__ import annotations

from dataclasses import replace as replace_fields
from typing import Any

import torch
from torch import Tensor, nn

from hasten.caching.interleaved import StackTracer
from hasten.caching.midway import Question
from hasten.caching.passage import OTHER_BLOCKS, CallPlan, Computing, Deciding, Skipping, bases_of, changes_of
from hasten.caching.patching import Taps, is_compiled
from hasten.caching.sites import Blanks, Call, Decided, MisfitError, Predict, UnfitError, Values, close, sort_of
from hasten.caching.tracing import UntraceableError, follow
from hasten.caching.trees import fresh, tensors
from hasten.caching.wiring import Stream, Watcher, Wiring, repeated_blocks


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
        self._taps = Taps(self._through)
        self._live: Computing | Skipping | None = None
        # By the sort of call: which optional arguments were given decides which way the model takes.
        self._plans: dict[object, CallPlan | str] = {}
        self._checked: set[object] = set()

    @property
    def left_out(self) -> tuple[nn.Module, ...]:
        """The blocks that are not called at a skipped step, as far as calls were watched."""
        plans = [plan for plan in self._plans.values() if isinstance(plan, CallPlan)]
        roles = [role for plan in plans for role in plan.roles if role.span is not None and not role.span.verifies]
        return tuple(dict.fromkeys(role.module for role in roles))

    def arm(self) -> None:
        self._taps.arm()

    def detach(self) -> None:
        self._taps.detach()

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
            live = Computing(plan, blanks, dtype)
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
        if not isinstance(plan, CallPlan):
            raise UnfitError("called with other arguments than in the computed steps")
        live = Skipping(plan, blanks, predict)
        result = self._run(live, inner, args, kwargs)
        if not live.complete:
            raise UnfitError(OTHER_BLOCKS)
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
        if not isinstance(plan, CallPlan) or sort not in self._checked:
            return Decided(*self.compute(inner, args, kwargs, blanks, dtype, keep=keep), True)
        live = Deciding(plan, blanks, dtype, predict, question)
        result = self._run(live, inner, args, kwargs)
        if live.left and not live.complete:
            raise UnfitError(OTHER_BLOCKS)
        if not live.complete:
            self._unlearn(sort)
        return Decided(result, tuple(live.values) if keep and live.complete and not live.left else (), not live.left)

    def _unlearn(self, sort: object) -> None:
        del self._plans[sort]
        self._checked.discard(sort)

    def _run(self, live: Computing | Skipping, inner: Call, args: Any, kwargs: Any) -> Any:
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
            values += changes_of(span, bases_of(span, first_args, first_kwargs), left, dtype)
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
        self, plan: CallPlan, inner: Call, spare: tuple[Any, Any], blanks: Blanks, dtype: torch.dtype | None
    ) -> Values:
        """What is to be stored, where it was not held while the step was computed: compute it once more."""
        args, kwargs = fresh(spare)
        live = Computing(plan, blanks, dtype)
        self._run(live, inner, args, kwargs)
        return tuple(live.values) if live.complete else ()

    def _fit(self, wiring: Wiring) -> Wiring:
        if self._absolute:
            return _absolute(wiring)
        if all(any(stream.into is not None for stream in span.streams) for span in wiring.spans if span.streams):
            return wiring
        return Wiring(wiring.sequence, (), "nothing that enters its stack of blocks comes out of it again")

    def _adopt(self, sort: object, wiring: Wiring, seen: Blanks, blanks: Blanks, result: Any) -> CallPlan:
        """Lay out what was learned of a sort of call, and put taps on what it leaves out."""
        if not wiring.spans:
            self._plans[sort] = wiring.reason
            raise MisfitError(wiring.reason, result)
        plan = self._plans[sort] = CallPlan(wiring)
        self._taps.put_on(role.module for role in plan.roles)
        for role in plan.roles:
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

    def _through(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        live = self._live
        return inner(*args, **kwargs) if live is None else live.block(module, inner, args, kwargs)


def _absolute(wiring: Wiring) -> Wiring:
    """The same stacks, with streams that begin inside."""
    spans = [
        replace_fields(span, streams=tuple(Stream(one.out, None) for one in span.streams)) for span in wiring.spans
    ]
    return replace_fields(wiring, spans=tuple(spans))
