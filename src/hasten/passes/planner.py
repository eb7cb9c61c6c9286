"""The planner: all passes of a plan put on a pipeline in one order, all or none, and taken off again.

The order is sampler → precision → quantization → attention → tokens → cache → compile → memory. The cache
stands outermost whatever its place in the order: it taps the call of a module, compilation and offloading what a call
runs (`forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from hasten.caching.report import PassRow
from hasten.passes.change import Change
from hasten.passes.precision import precision
from hasten.passes.sampler import sampler
from hasten.passes.target import Target
from hasten.plan import Plan

Pass = Callable[[Target, Plan], Iterator[Change]]

PASSES: tuple[Pass, ...] = (sampler, precision)
SECTIONS = ("sampler", "precision")
"""The sections of a plan that the passes read."""


class Passes:
    """The passes at work on a pipeline.

    Attributes:
        rows: what was really done, in order.
    """

    def __init__(self, rows: tuple[PassRow, ...], undo: ExitStack) -> None:
        self.rows = rows
        self._undo = undo

    def remove(self) -> None:
        """Leave everything as it was, the last change first. Doing it twice does no harm."""
        self._undo.close()


def apply_passes(pipe: Any, plan: Plan) -> Passes:
    """Apply what a plan says besides its cache.

    Args:
        pipe: a pipeline or a bare denoiser.

    Raises:
        PassError: something that this pipeline or machine cannot take. Nothing is changed then, nor by any other error.
    """
    target = Target.of(pipe)
    changes = [change for one in PASSES for change in one(target, plan)]
    rows: list[PassRow] = []
    with ExitStack() as stack:
        for change in changes:
            done = change.make()
            stack.callback(done.undo)
            if change.what:
                rows.append(PassRow(change.name, change.component, change.what, dict(done.figures)))
        return Passes(tuple(rows), stack.pop_all())


def wants_passes(plan: Plan) -> bool:
    """Whether a plan names anything for the passes to do."""
    return any(getattr(plan, name) != type(plan).model_fields[name].default for name in SECTIONS)


class Keeper:
    """The passes on one pipeline over many runs: put on when a run needs them, exchanged when the next needs others.

    Compiling and quantizing cost seconds to minutes, and runs of one plan follow each other.
    """

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self._passes: Passes | None = None
        self._sections: tuple[object, ...] = ()

    def engage(self, plan: Plan) -> tuple[PassRow, ...]:
        """Have the passes of this plan at work, and no others; tell what they did.

        Raises:
            PassError: as `apply_passes`; none are at work then.
        """
        sections = tuple(getattr(plan, name) for name in SECTIONS)
        if sections != self._sections:
            self.release()
            if wants_passes(plan):
                self._passes = apply_passes(self._pipe, plan)
            self._sections = sections
        return self._passes.rows if self._passes is not None else ()

    def release(self) -> None:
        """Take off whatever is at work."""
        if self._passes is not None:
            self._passes.remove()
        self._passes, self._sections = None, ()


def without_passes(plan: Plan) -> Plan:
    """The reference of a plan: its formats and its sampler, and nothing that makes it faster."""
    fields = type(plan).model_fields
    kept = ("precision", "sampler")
    return plan.model_copy(
        update={"cache": None} | {name: fields[name].default for name in SECTIONS if name not in kept}
    )
