"""The planner: all passes of a plan put on a pipeline in one order, all or none, and taken off again.

The order is sampler → adaptive → precision → quantization → attention → tokens → cache → compile → memory. The cache
stands outermost whatever its place in the order: it taps the call of a module, compilation and offloading what a call
runs (`forward`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

from hasten.caching.report import PassRow
from hasten.errors import PassError
from hasten.passes.adaptive import adaptive
from hasten.passes.attention import attention, fuse
from hasten.passes.change import Change, Done
from hasten.passes.compile import compile_
from hasten.passes.conflicts import check_conflicts
from hasten.passes.memory import memory
from hasten.passes.precision import precision
from hasten.passes.quantization import quantization
from hasten.passes.sampler import sampler
from hasten.passes.target import Target
from hasten.passes.tokens import tokens
from hasten.plan import Plan
from hasten.plan.speed import SPEED

Pass = Callable[[Target, Plan], Iterator[Change]]

PASSES: tuple[Pass, ...] = (sampler, adaptive, precision, fuse, quantization, attention, tokens, compile_, memory)


class Passes:
    """The passes at work on a pipeline."""

    def __init__(self, made: list[tuple[Change, Done]], undo: ExitStack) -> None:
        self._made = [(change, done) for change, done in made if change.what]
        self._undo = undo

    @property
    def rows(self) -> tuple[PassRow, ...]:
        """What was really done, in order, with what was measured so far."""
        return tuple(
            PassRow(change.name, change.component, change.what, {**done.figures, **done.live()})
            for change, done in self._made
        )

    def remove(self) -> None:
        """Leave everything as it was, the last change first. Doing it twice does no harm."""
        self._undo.close()


def apply_passes(pipe: Any, plan: Plan, *, keeps: bool = True) -> Passes:
    """Apply what a plan says besides its cache.

    Args:
        pipe: a pipeline or a bare denoiser.
        keeps: False frees weights that are replaced by others, which cannot be put back then.

    Raises:
        PassError: something that this pipeline or machine cannot take. Nothing is changed then, nor by any other error.
    """
    check_conflicts(plan)
    target = Target.of(pipe, keeps=keeps)
    changes = [change for one in PASSES for change in one(target, plan)]
    made: list[tuple[Change, Done]] = []
    with ExitStack() as stack:
        for change in changes:
            done = change.make()
            stack.callback(done.undo)
            made.append((change, done))
        return Passes(made, stack.pop_all())


def wants_passes(plan: Plan) -> bool:
    """Whether a plan names anything for the passes to do."""
    return any(getattr(plan, name) != type(plan).model_fields[name].default for name in SPEED)


class Keeper:
    """The passes on one pipeline over many runs: put on when a run needs them, exchanged when the next needs others.

    Compiling and quantizing cost seconds to minutes, and runs of one plan follow each other.

    Args:
        keeps: False for a pipeline that serves one plan and is thrown away then: weights that are replaced are freed.
    """

    def __init__(self, pipe: Any, *, keeps: bool = True) -> None:
        self._pipe = pipe
        self._keeps = keeps
        self._passes: Passes | None = None
        self._sections: tuple[object, ...] = ()

    @property
    def rows(self) -> tuple[PassRow, ...]:
        """What was done for the plan that is at work."""
        return self._passes.rows if self._passes is not None else ()

    def engage(self, plan: Plan) -> None:
        """Have the passes of this plan at work, and no others.

        Raises:
            PassError: as `apply_passes`; none are at work then.
        """
        sections = tuple(getattr(plan, name) for name in SPEED)
        if sections != self._sections:
            if self._passes is not None and not self._keeps:
                raise PassError("this pipeline's weights were replaced for good: load it again for another plan")
            self.release()
            if wants_passes(plan):
                self._passes = apply_passes(self._pipe, plan, keeps=self._keeps)
            self._sections = sections

    def release(self) -> None:
        """Take off whatever is at work."""
        if self._passes is not None:
            self._passes.remove()
        self._passes, self._sections = None, ()


def without_passes(plan: Plan) -> Plan:
    """The reference of a plan: its formats and its sampler, and nothing that makes it faster."""
    fields = type(plan).model_fields
    kept = ("precision", "sampler")
    return plan.model_copy(update={"cache": None} | {name: fields[name].default for name in SPEED if name not in kept})
