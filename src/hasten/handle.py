"""`accelerate`: a plan applied to a pipeline, and the handle that reports on it and takes it off again."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from torch import nn

from hasten.caching.clock import Clock
from hasten.caching.denoiser import Port
from hasten.caching.methods import resolve_all
from hasten.caching.patching import CALL, is_tapped
from hasten.caching.report import Report
from hasten.caching.stack import Stack
from hasten.errors import CacheError
from hasten.plan.build import build_plan

if TYPE_CHECKING:
    from hasten.plan import Plan

# What a denoiser's forward calls the noise level it is given. Nothing but a denoiser, and what steers one, takes one.
_TIMESTEP = ("timestep", "timesteps", "t", "sigma", "sigmas", "timestep_ratio")
_STEERING = ("controlnet", "adapter", "vae", "encoder", "embed", "guider")


class Handle:
    """A plan at work on a pipeline or a denoiser, until `remove()` or the end of its `with` block.

    Attributes:
        plan: what was asked for.
    """

    def __init__(self, plan: Plan, stack: Stack) -> None:
        self.plan = plan
        self._stack = stack
        self._active = True
        stack.attach()

    @property
    def active(self) -> bool:
        """False once it was removed."""
        return self._active

    def report(self) -> Report:
        """What happened in the last run, also after `remove()`."""
        return self._stack.report()

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

    >>> with accelerate(pipe, "taylorseer", interval=4) as handle:  # doctest: +SKIP
    ...     image = pipe("a red circle").images[0]
    ...     print(handle.report())
    """
    made = build_plan("taylorseer" if plan is None else plan, (), overrides, caller="accelerate", own_steps=True)
    layers = resolve_all(made.cache)
    ports = list(_ports(target))
    for port in ports:
        if is_tapped(port.module, CALL):
            raise CacheError(
                f"{port.name} ({type(port.module).__name__}) is accelerated already; call remove() on its handle first"
            )
    owner = None if isinstance(target, nn.Module) else target
    return Handle(made, Stack(layers, ports, lambda on_run, on_end: Clock(owner, on_run, on_end)))


def _ports(target: Any) -> Iterator[Port]:
    if isinstance(target, nn.Module):
        yield Port("denoiser", target, _timestep_of(target) or (lambda args, kwargs: None))
        return
    components = getattr(target, "components", None)
    if not isinstance(components, Mapping):
        components = dict(vars(target)) if hasattr(target, "__dict__") else {}
    found = False
    for name, component in components.items():
        if isinstance(component, nn.Module) and not any(word in name for word in _STEERING):
            timestep = _timestep_of(component)
            if timestep is not None:
                found = True
                yield Port(name, component, timestep)
    if not found:
        names = ", ".join(name for name, part in components.items() if isinstance(part, nn.Module)) or "no modules"
        raise CacheError(
            f"{type(target).__name__} has no denoiser: none of its modules takes a timestep (it has {names}); "
            "pass the denoiser itself to accelerate()"
        )


def _timestep_of(module: nn.Module) -> Callable[[Any, Any], object] | None:
    """How to find the timestep among the arguments of a module's call; None if it takes none."""
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper takes anything
    # What replaces `forward` on the instance may not tell what it passes on.
    signatures = [list(inspect.signature(forward).parameters) for forward in (module.forward, type(module).forward)]
    signatures[1] = signatures[1][1:]  # self
    found = [(name, names.index(name)) for names in signatures for name in _TIMESTEP if name in names]
    if not found:
        return None
    name, position = found[0]

    def timestep(args: Any, kwargs: Any) -> object:
        return kwargs[name] if name in kwargs else args[position] if position < len(args) else None

    return timestep
