"""Sites within the blocks: many modules, each by itself. Their results are predicted, and all around them runs.

So gates, norms and modulation of the skipped step still count. What is stored is what a module returns, before anybody
has looked at it, for every one of them: this is dear in memory, and the report says how dear.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hasten.caching.parts import Key, Kind, Spotter, attentions, feed_forwards
from hasten.caching.patching import Taps, is_compiled
from hasten.caching.sites import Blanks, Call, MisfitError, Predict, UnfitError, Values, blank_of, sort_of
from hasten.caching.trees import replace, tensors
from hasten.caching.wiring import repeated_blocks

PARTS: dict[str, tuple[tuple[Kind, ...], str]] = {
    "block": (("block",), "it calls no list of repeated blocks"),
    "attention": (("spatial_attention", "temporal_attention"), "it has no self-attention in its blocks"),
    "spatial_attention": (("spatial_attention",), "it has no self-attention over space in its blocks"),
    "temporal_attention": (("temporal_attention",), "it has no self-attention over time in its blocks"),
    "cross_attention": (("cross_attention",), "it has no cross-attention in its blocks"),
    "feed_forward": (("feed_forward",), "it has no feed-forward networks beside the attention in its blocks"),
}
"""Site → the kinds of modules that it leaves out, and what is said of a denoiser that has none."""


class _Plan(NamedTuple):
    """What a sort of call comes to.

    Attributes:
        keys: the calls of modules to leave out, in order.
        known: all calls that were watched, those of other kinds too.
    """

    keys: tuple[Key, ...]
    known: frozenset[Key]


class ModulesSite:
    """All modules of a kind.

    Args:
        model: the denoiser.
        name: a key of `PARTS`.

    Attributes:
        reached: whether the last call came to any of the modules; a layer outside of this one may leave them out.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        self.name = name
        self.reached = True
        self._model = model
        self._kinds, self._none = PARTS[name]
        self._live: _Taking | _Standing | None = None
        # By the sort of call, as the wiring of a stack: which arguments are given may decide what is called.
        self._plans: dict[object, _Plan | str] = {}
        self._taps = Taps(self._through)
        self._taps.put_on(self._modules())

    def _modules(self) -> Iterable[nn.Module]:
        if self.name == "block":
            return repeated_blocks(self._model)
        return (feed_forwards if self.name == "feed_forward" else attentions)(self._model).values()

    @property
    def left_out(self) -> tuple[nn.Module, ...]:
        """The modules that are not called at a skipped step, as far as calls were watched."""
        plans = [plan for plan in self._plans.values() if isinstance(plan, _Plan)]
        return tuple(dict.fromkeys(key.module for plan in plans for key in plan.keys))

    def arm(self) -> None:
        self._taps.arm()

    def detach(self) -> None:
        self._taps.detach()

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        sort = sort_of(args, kwargs)
        plan = self._plans.get(sort)
        if plan is None and (compiled := self._compiled()):
            plan = self._plans[sort] = compiled
        if isinstance(plan, str):
            raise UnfitError(plan)
        if plan is None:
            return self._watch(sort, inner, args, kwargs, blanks, dtype, keep=keep)
        live = _Taking(dtype, plan.keys if keep else ())
        result = self._run(live, inner, args, kwargs)
        if not live.calls.keys() <= plan.known:
            del self._plans[sort]  # it came to modules that it did not come to when it was watched: watch again
            return result, ()
        return result, self._stored(plan.keys, live, blanks) if keep else ()

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        plan = self._plans.get(sort_of(args, kwargs))
        if not isinstance(plan, _Plan):
            raise UnfitError("called with other arguments than in the computed steps")
        if len(blanks) != len(plan.keys):
            raise UnfitError("no computed step has shown what its modules return")
        stand_ins: dict[Key, tuple[Any, int]] = {}
        slot = 0
        for number, key in enumerate(plan.keys):
            stand_ins[key] = blanks[number], slot
            slot += sum(1 for _ in tensors(blanks[number]))
        return self._run(_Standing(stand_ins, predict), inner, args, kwargs)

    def _run(self, live: _Taking | _Standing, inner: Call, args: Any, kwargs: Any) -> Any:
        self._live = live
        try:
            return inner(*args, **kwargs)
        finally:
            self._live = None
            self.reached = bool(live.calls)

    def _watch(
        self,
        sort: object,
        inner: Call,
        args: Any,
        kwargs: Any,
        blanks: Blanks,
        dtype: torch.dtype | None,
        *,
        keep: bool,
    ) -> tuple[Any, Values]:
        """Learn which modules there are, and take their values along."""
        spotter = Spotter(self._model)
        live = _Taking(dtype, kinds=self._kinds, spotter=spotter)
        with spotter:
            result = self._run(live, inner, args, kwargs)
        keys = tuple(live.calls)
        if self.name != "block":
            sample = next(tensors((args, kwargs)), None)
            kinds = spotter.kinds(len(sample) if sample is not None and sample.ndim else 1)
            keys = tuple(key for key, kind in kinds.items() if kind in self._kinds)
        reason = next((live.strange[key] for key in keys if key in live.strange), "") if keys else self._none
        if reason:
            self._plans[sort] = reason
            raise MisfitError(reason, result)
        self._plans[sort] = _Plan(keys, frozenset(live.calls))
        return result, self._stored(keys, live, blanks) if keep else ()

    def _stored(self, keys: Sequence[Key], live: _Taking, blanks: Blanks) -> Values:
        """What was taken of the modules to leave out; nothing where an outer layer left some of them out."""
        if not all(key in live.taken for key in keys):
            return ()
        blanks.clear()
        blanks.update(enumerate(live.taken[key][0] for key in keys))
        return tuple(value for key in keys for value in live.taken[key][1])

    def _compiled(self) -> str:
        """Why its modules cannot be left out, if what is around them is compiled code."""
        if is_compiled(self._model):
            return "it is compiled as a whole, so that its modules cannot be left out"
        for name, module in self._model.named_modules():
            if is_compiled(module) and any(one in self._taps for one in list(module.modules())[1:]):
                return f"its {name} is compiled, so that modules within it cannot be left out"
        return ""

    def _through(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        live = self._live
        return inner(*args, **kwargs) if live is None else live.call(module, inner, args, kwargs)


class _Taking:
    """A computed call as its modules see it: they run, and copies of what they return are taken along.

    Args:
        keys: the calls to take along.
        kinds: the kinds of calls to take along, while `spotter` learns which these are.

    Attributes:
        calls: all calls, in order.
        taken: what was returned, without values, and copies of the values.
        strange: why a result cannot be taken.
    """

    def __init__(
        self,
        dtype: torch.dtype | None,
        keys: Iterable[Key] = (),
        kinds: Collection[Kind] = (),
        spotter: Spotter | None = None,
    ) -> None:
        self._keys = frozenset(keys)
        self._kinds = kinds
        self._dtype = dtype
        self._spotter = spotter
        self.calls: dict[Key, None] = {}
        self._numbers: Counter[nn.Module] = Counter()
        self.taken: dict[Key, tuple[Any, Values]] = {}
        self.strange: dict[Key, str] = {}

    def call(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        key = _enter(module, self._numbers, self.calls)
        if self._spotter is None:
            result = inner(*args, **kwargs)
            wanted = key in self._keys
        else:
            result = self._spotter.watch(key, inner, args, kwargs)
            wanted = "block" in self._kinds or self._spotter.may_be(key, self._kinds)
        if wanted:
            try:
                blank = blank_of(result)
            except TypeError as error:
                self.strange[key] = f"of what its {type(module).__name__} returns, {error}"
            else:
                self.taken[key] = blank, tuple(_copy(tensor, self._dtype) for tensor in tensors(result))
        return result


class _Standing:
    """A skipped call as its modules see it: what they return is predicted, and they do not run.

    Args:
        stand_ins: for each call to leave out, what it returns without values, and the number of its first value.
    """

    def __init__(self, stand_ins: dict[Key, tuple[Any, int]], predict: Predict) -> None:
        self._stand_ins = stand_ins
        self._predict = predict
        self.calls: dict[Key, None] = {}
        self._numbers: Counter[nn.Module] = Counter()

    def call(self, module: nn.Module, inner: Call, args: Any, kwargs: Any) -> Any:
        key = _enter(module, self._numbers, self.calls)
        if key not in self._stand_ins:
            return inner(*args, **kwargs)
        blank, first = self._stand_ins[key]
        slots = count(first)
        return replace(blank, lambda one: self._predict(next(slots), None, one.dtype))


def _enter(module: nn.Module, numbers: Counter[nn.Module], calls: dict[Key, None]) -> Key:
    key = Key(module, numbers[module])
    numbers[module] += 1
    calls[key] = None
    return key


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    return tensor.detach().to(dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype, copy=True)
