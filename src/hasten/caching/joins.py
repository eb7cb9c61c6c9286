"""Joins: where a skip connection comes back, and what only the deep side of it needs, learned by following a call.

A UNet keeps tensors on its way down and joins them, by `torch.cat`, with what comes up again. A join is a concatenation
of a module's result with something that was itself what this result was made from. Everything that the model's result
does not need once the deep side of a join is given can be left out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from hasten.caching.tracing import Tracer
from hasten.caching.wiring import Span, Stream, Wiring

# A concatenation with less work than this on its deep side is some block's own affair.
_LEAST = 0.01


class Join(NamedTuple):
    """A place where a skip connection comes back.

    Attributes:
        cut: the node of the deep side: what a module returned.
        value: the tensor, if what was joined is what the module returned.
    """

    cut: int
    value: Tensor | None


class JoinTracer(Tracer):
    """Follows one call of a model and finds the joins in it; ask for the `wiring` afterwards.

    Args:
        model: the model.
        branch: the join to leave the deep side of out, counted from the model's end.

    Attributes:
        count: how many joins there are.
    """

    def __init__(self, model: nn.Module, branch: int) -> None:
        super().__init__(model)
        self._branch = branch
        self._joins: deque[Join] = deque(maxlen=branch + 1)
        self.count = 0

    def joins(self, parts: Sequence[Tensor]) -> None:
        sides = sorted(((self.node(tensor), tensor) for tensor in parts), key=lambda side: -side[0])
        skips = [self._skip(node, tensor) for node, tensor in sides]
        for number, (node, tensor) in enumerate(sides):  # what comes from deeper was made later
            sources = self._sources(node)
            others = skips[:number] + skips[number + 1 :]
            if len(sources) != 1 or not others or None in others:
                continue
            (cut,) = sources
            if any(self._weight(skip, cut) >= _LEAST for skip in others if skip is not None):
                self.count += 1
                self._joins.append(Join(cut, tensor if cut == node else None))
                return

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
        calls = self.idle({cut})
        if not calls or cut not in calls[-1].outputs.values():
            return Wiring((), (), "the deep side of its skip connection is no module's own result"), {}, None
        if self.share(parameter for call in calls for parameter in call.module.parameters()) < least:
            return Wiring((), (), f"below its branch {self._branch} lies less than {least:.0%} of it"), {}, None
        leaf = next(leaf for leaf, node in calls[-1].outputs.items() if node == cut)
        wiring = Wiring(
            tuple(call.module for call in calls),
            (Span(0, len(calls) - 1, (Stream(leaf, None),)),),
            written=frozenset(position for position, call in enumerate(calls) if call.written),
        )
        return wiring, {position: call.blank for position, call in enumerate(calls)}, value

    def _sources(self, node: int) -> set[int]:
        """The results of modules that a tensor was made from by operations alone."""
        found: set[int] = set()
        waiting = {node}
        while waiting:
            node = waiting.pop()
            if node in self.makers:
                found.add(node)
            elif node >= 0:
                waiting.update(self.inputs[node])
        return found

    def _skip(self, node: int, tensor: Tensor) -> int | None:
        """The one result of a module that a tensor was made from, if it is that result but for some change."""
        sources = self._sources(node)
        alike = [source for source in sources if self.metas[source].shape == tensor.shape]
        return alike[0] if len(sources) == len(alike) == 1 else None

    def _weight(self, skip: int, cut: int) -> float:
        """The share of the model's parameters that is at work between the two ends of a skip connection."""
        path = {skip}
        for between in sorted(self.ancestors({cut}, floor=skip)):
            if not path.isdisjoint(self.inputs[between]):
                path.add(between)
        path.remove(skip)
        if cut not in path:
            return 0.0
        return self.share(
            parameter for module in self.at_work(sorted(path)) for parameter in module.parameters(recurse=False)
        )
