"""`accelerate`: a plan applied to a pipeline, and the handle that reports on it and takes it off again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

from hasten.caching.clock import Clock
from hasten.caching.patching import CALL, is_tapped
from hasten.caching.report import Report
from hasten.caching.resolving import resolve_all
from hasten.caching.stack import Stack
from hasten.errors import CacheError
from hasten.passes import Passes, apply_passes, wants_passes
from hasten.plan.build import build_plan
from hasten.targets import ports_of

if TYPE_CHECKING:
    from hasten.plan import Plan


class Handle:
    """A plan at work on a pipeline or a denoiser, until `remove()` or the end of its `with` block.

    Attributes:
        plan: what was asked for.
    """

    def __init__(self, plan: Plan, stack: Stack, passes: Passes | None = None, notes: tuple[str, ...] = ()) -> None:
        self.plan = plan
        self._notes = notes
        self._stack = stack
        self._passes = passes
        self._active = True
        stack.attach()

    @property
    def active(self) -> bool:
        """False once it was removed."""
        return self._active

    def report(self) -> Report:
        """What happened in the last run, also after `remove()`."""
        report = self._stack.report()
        if self._notes:
            report = replace(report, notes=(*self._notes, *report.notes))
        return report if self._passes is None else replace(report, passes=self._passes.rows)

    def step(self, index: int, sigma: float | None = None, total: int | None = None) -> None:
        """Tell which step comes next, where no scheduler does and the timestep argument cannot.

        Args:
            index: the step about to be computed, from 0; a new run begins where it does not grow.
            sigma: its noise level, in any unit, the same for all steps; the index stands in where none is given.
            total: the number of steps of the run, so that the last of them can be computed in full.
        """
        self._stack.clock.step(index, sigma, total)

    def remove(self) -> None:
        """Leave everything as it was before `accelerate`. Doing it twice does no harm."""
        if self._active:
            self._active = False
            self._stack.detach()
            if self._passes is not None:
                self._passes.remove()

    def __enter__(self) -> Handle:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.remove()

    def __repr__(self) -> str:
        first_line, *_ = str(self.report()).splitlines()
        return f"<Handle ({'active' if self._active else 'removed'}): {first_line}>"


def accelerate(target: Any, plan: Plan | str | Path | Mapping[str, Any] | None = None, **overrides: Any) -> Handle:
    """Apply a plan to a diffusers pipeline, or to a bare denoiser; keep calling it as before.

    Args:
        target: a pipeline, or the module that is called at every step.
        plan: a plan, a preset's or method's name, a YAML file or a mapping; None is "taylorseer".
        overrides: keys of the plan as keywords, such as `interval=4`.

    Returns:
        the handle, which also works as a context manager.

    Raises:
        PlanError: a plan that cannot be.
        CacheError: a target with no denoiser, or one that is accelerated already.
        PassError: something besides the cache that this pipeline or machine cannot take.

    >>> with accelerate(pipe, "taylorseer", interval=4) as handle:  # doctest: +SKIP
    ...     image = pipe("a red circle").images[0]
    ...     print(handle.report())
    """
    made = build_plan("taylorseer" if plan is None else plan, (), overrides, caller="accelerate", own_steps=True)
    return attach(target, made, passes=True)


def attach(target: Any, plan: Plan, *, passes: bool) -> Handle:
    """`accelerate` for a plan that is complete.

    Args:
        passes: also apply what the plan says besides its cache; False where somebody else has done so.
    """
    notes: tuple[str, ...] = ()
    if plan.quality is not None:
        from hasten.quality import resolve_quality

        named = "num_inference_steps" in plan.generation.model_fields_set
        plan, note = resolve_quality(plan, target, plan.generation.num_inference_steps if named else None)
        notes = (note,)
    layers = resolve_all(plan.cache)
    if plan.adaptive.on:
        # How sure a run is shows in what the denoiser says, not in what a cache predicts of it.
        warmup = plan.adaptive.warmup
        layers = tuple(replace(layer, first_enhance=max(layer.first_enhance, warmup)) for layer in layers)
    ports = list(ports_of(target))
    for port in ports:
        if is_tapped(port.module, CALL):
            raise CacheError(
                f"{port.name} ({type(port.module).__name__}) is accelerated already; call remove() on its handle first"
            )
    owner = None if isinstance(target, nn.Module) else target
    figures = {}
    for layer in layers:
        if layer.needs is not None:
            from hasten.calibration.store import Shelf

            shelf = Shelf(target, ports, layer.calibration)
            shelf.require(f"method {layer.method!r}", layer.needs)
            figures[layer] = shelf.figures
    stack = Stack(layers, ports, lambda on_run, on_end: Clock(owner, on_run, on_end), figures)
    if not passes or not wants_passes(plan):
        return Handle(plan, stack, None, notes)
    applied = apply_passes(target, plan)
    try:
        return Handle(plan, stack, applied, notes)
    except BaseException:
        applied.remove()
        raise
