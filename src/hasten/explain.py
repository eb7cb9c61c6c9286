"""What a plan would do to a pipeline: the modules that it leaves out, and what becomes of each step."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any, Literal

from torch import nn

from hasten.caching.adaptive import Adaptive, Table
from hasten.caching.cache import Cache
from hasten.caching.clock import Clock
from hasten.caching.figures import Figures, figures_for
from hasten.caching.policies import Decision, Policy, interval
from hasten.caching.resolving import resolve_all
from hasten.caching.settings import Settings
from hasten.caching.stack import Stack
from hasten.caching.vocabulary import FIXED
from hasten.calibration.store import Shelf
from hasten.errors import CacheError
from hasten.plan import Plan
from hasten.targets import ports_of

# The first step is watched; where its values could not be taken along, those of the second are.
_LOOKS = 2


@dataclass(frozen=True)
class Step:
    """One step of a run.

    Attributes:
        sigma: its noise level.
        fate: "open" where what is measured in the run decides.
        reason: what decides.
    """

    index: int
    sigma: float
    fate: Literal["computed", "skipped", "open"]
    reason: str


@dataclass(frozen=True)
class Part:
    """What is left out of one denoiser at a skipped step.

    Attributes:
        denoiser, kind: its name in the pipeline, and its class.
        branches: for what it is called in each step.
        site: where values are taken.
        modules: what is not called, by name; empty where it is the whole denoiser.
        share: how much of its weights that is.
        snapshot_bytes: what one snapshot of one branch takes.
    """

    denoiser: str
    kind: str
    branches: tuple[str, ...]
    site: str
    modules: tuple[str, ...]
    share: float
    snapshot_bytes: int


@dataclass(frozen=True)
class Explanation:
    """One layer of a plan on a pipeline.

    Attributes:
        snapshots: so many are kept of each branch.
        notes: what is otherwise than the plan asks, and why.
    """

    method: str
    policy: str
    predictor: str
    signal: str
    snapshots: int
    parts: tuple[Part, ...]
    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


class _SeenEnoughError(Exception):
    """The run has shown what it was made for."""


class _Looker(Adaptive):
    """Computes a few steps, and then ends the run."""

    def decide(self, index: int, total: int | None, signal: float | None = None) -> Decision:
        if index >= _LOOKS:
            raise _SeenEnoughError
        return Decision(True, "looked at")


class _Looking(Settings):
    """Settings that compute, and have their site watch."""

    @property
    def fixed(self) -> Policy:
        return partial(interval, interval=None, first_enhance=1, cooldown=0)

    def adaptive(self, sigmas: Sequence[float], figures: Figures | None = None, lacking: str = "") -> Adaptive:
        return _Looker(self.fixed)


def _looking(settings: Settings) -> _Looking:
    if settings.policy in FIXED:
        settings = replace(settings, policy="table", timesteps=None, conditional_only=False)
    return _Looking(**{field.name: getattr(settings, field.name) for field in fields(settings)})


def explain(target: Any, plan: Plan, run: Callable[[], object]) -> tuple[Explanation, ...]:
    """Make the first steps of a run, and say what the plan would do: one explanation for each layer, outermost first.

    Args:
        target: a pipeline, or a bare denoiser.
        run: calls it, as it would be called under the plan; it is ended after two steps.

    Raises:
        CacheError: something that the plan needs is not there.
    """
    settings = resolve_all(plan.cache)
    if not settings:
        return ()
    ports = list(ports_of(target))
    owner = None if isinstance(target, nn.Module) else target
    stack = Stack([_looking(layer) for layer in settings], ports, lambda on_run, on_end: Clock(owner, on_run, on_end))
    stack.attach()
    try:
        with suppress(_SeenEnoughError):
            run()
        shelf: dict[Settings, Shelf] = {}
        for layer in settings:
            if layer.needs is not None:
                shelf[layer] = Shelf(target, ports, layer.calibration)
        return tuple(
            Explanation(
                method=layer.method,
                policy=layer.policy,
                predictor=layer.predictor_text,
                signal=layer.signal_text,
                snapshots=layer.snapshots,
                parts=tuple(_parts(looked)),
                steps=tuple(_steps(Cache(layer, ports, stack.clock), shelf.get(layer))),
                notes=looked.report().notes,
            )
            for layer, looked in zip(settings, stack.layers, strict=True)
        )
    finally:
        stack.detach()


def _parts(layer: Cache) -> Iterator[Part]:
    for denoiser in layer.denoisers:
        named = {branch.name: branch for branch in denoiser.branches.values() if branch.site is not None}
        if not named:
            continue
        branch = next(iter(named.values()))
        modules = getattr(branch.site, "left_out", ())
        names = tuple(name for name, module in denoiser.module.named_modules() if module in modules)
        yield Part(
            denoiser=denoiser.name,
            kind=type(denoiser.module).__name__,
            branches=tuple(named),
            site=branch.site.name if branch.site is not None else "none",
            modules=names,
            share=_weights(modules) / max(_weights([denoiser.module]), 1) if names else 1.0,
            snapshot_bytes=branch.history.nbytes // max(len(branch.history), 1),
        )


def _weights(modules: Sequence[nn.Module]) -> int:
    return sum(parameter.numel() for parameter in {p for module in modules for p in module.parameters()})


def _steps(layer: Cache, shelf: Shelf | None) -> Iterator[Step]:
    """What is known of each step beforehand."""
    clock, settings = layer.clock, layer.settings
    assert settings is not None
    total = clock.total or 0
    sigmas = tuple(map(clock.sigma, range(total)))
    policy = settings.adaptive(sigmas)
    if shelf is not None:
        known, why = shelf.figures(layer.denoisers[0].port)
        if why:
            raise CacheError(f"method {settings.method!r}: {why}")
        policy = settings.adaptive(sigmas, figures_for("", known))
    for index in range(total):
        decision: Decision | None = layer.timetable.planned(index, total)
        if policy is not None and decision is not None and not decision.compute:
            # Of the adaptive policies only a table goes by nothing that is seen in the run.
            decision = policy.decide(index, total) if isinstance(policy, Table) else None
        if isinstance(policy, Table):
            policy.settle(index, decision is None or decision.compute)
        if decision is None:
            yield Step(index, sigmas[index], "open", settings.signal or settings.policy)
        else:
            yield Step(index, sigmas[index], "computed" if decision.compute else "skipped", decision.reason)
