"""Full runs, looked over the shoulder: nothing is skipped, and what the methods need is written down."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise
from math import exp, isfinite, log
from typing import Any

from torch import nn

from hasten.caching.adaptive import Adaptive, Observed
from hasten.caching.cache import Cache
from hasten.caching.clock import Clock
from hasten.caching.figures import Figures
from hasten.caching.policies import Decision
from hasten.caching.resolving import resolve
from hasten.caching.settings import Settings
from hasten.caching.stack import Stack
from hasten.calibration.fit import fit
from hasten.calibration.key import key_of
from hasten.calibration.store import BranchFigures, Calibration
from hasten.errors import CacheError, HastenError
from hasten.targets import ports_of

# Nothing is ever skipped: the threshold means nothing.
_WATCHED = {"policy": "accumulate", "threshold": 0, "branches": "own", "first_enhance": 1, "cooldown": 0}
_CACHED = {**_WATCHED, "method": "reuse", "signal": "input", "predictor": "poly", "coordinate": "sigma", "order": 1}
_OUTPUT = {**_WATCHED, "method": "reuse", "signal": "modulated", "site": "output"}


@dataclass
class _Recorder(Adaptive):
    """Computes every step and writes down what it shows."""

    observes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self.seen: dict[int, Observed] = {}
        self.signals: dict[int, float] = {}
        self._signal: float | None = None

    def judge(self, signal: float) -> Decision:
        self._signal = signal
        return Decision(True, "measured")

    def observe(self, seen: Observed) -> None:
        self.seen[seen.index] = seen

    def settle(self, index: int, computed: bool) -> None:
        super().settle(index, computed)
        if self._signal is not None:
            self.signals[index] = self._signal
        self._signal = None


class _Recording(Settings):
    """Settings whose policy writes down what it sees."""

    def adaptive(self, sigmas: Sequence[float], figures: Figures | None = None, lacking: str = "") -> Adaptive | None:
        return _Recorder(self.fixed)


def _recording(section: dict[str, Any]) -> _Recording:
    settings = resolve(section)
    return _Recording(**{field.name: getattr(settings, field.name) for field in fields(settings)})


Seen = dict[tuple[str, str], list[_Recorder]]
"""By denoiser and branch, one of each run."""


def measure(
    target: Any, run: Callable[[int], object], runs: int, progress: Callable[[int], None] | None = None
) -> Calibration:
    """Measure a pipeline, or a bare denoiser.

    Args:
        run: makes the run of that number, with nothing accelerated.
        runs: how many there are.
        progress: told the number of each run before it is made.

    Raises:
        HastenError: nothing that could be cached was seen.
    """
    ports = list(ports_of(target))
    owner = None if isinstance(target, nn.Module) else target
    notes: list[str] = []
    layers = [_recording(_OUTPUT), _recording(_CACHED)]
    stack = Stack(layers, ports, lambda on_run, on_end: Clock(owner, on_run, on_end))
    seen: list[Seen] = [{}, {}]
    stack.attach()
    try:
        for number in range(runs):
            if progress is not None:
                progress(number)
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "hasten skipped nothing")
                try:
                    run(number)
                except CacheError as error:
                    if "cache.signal" not in str(error) or len(stack.layers) == 1:
                        raise
                    # Without that signal there is no polynomial; the rest can be measured all the same.
                    notes.append(f"no polynomial: {str(error).partition(': ')[2].partition(';')[0]}")
                    stack.detach()
                    stack = Stack(layers[1:], ports, lambda on_run, on_end: Clock(owner, on_run, on_end))
                    stack.attach()
                    run(number)
            for layer, found in zip(reversed(stack.layers), reversed(seen), strict=False):
                _gather(layer, found)
        site = stack.layers[-1].report().site
    finally:
        stack.detach()
    outputs, cached = seen
    denoisers: dict[str, dict[str, BranchFigures]] = {}
    for (denoiser, branch), recorders in cached.items():
        figures = _figures(recorders, outputs.get((denoiser, branch), []))
        if figures is not None:
            denoisers.setdefault(denoiser, {})[branch] = figures
    if not denoisers:
        raise HastenError(
            "the runs had too few steps, or none that scheduler and denoiser agree on: nothing was measured"
        )
    steps = max(len(branch.sigmas) for branches in denoisers.values() for branch in branches.values())
    return Calibration(
        key=key_of(target, ports), site=site, steps=steps, prompts=runs, denoisers=denoisers, notes=tuple(notes)
    )


def _gather(layer: Cache, seen: Seen) -> None:
    for denoiser in layer.denoisers:
        for name, branch in denoiser.branches.items():
            if branch.gauge is not None:
                assert isinstance(branch.gauge.policy, _Recorder)
                seen.setdefault((denoiser.name, name), []).append(branch.gauge.policy)


def _figures(cached: Sequence[_Recorder], outputs: Sequence[_Recorder]) -> BranchFigures | None:
    """One branch, each step averaged over the runs that show it: the first step of all may be lost to watching."""
    steps = sorted(set.union(*(set(recorder.seen) for recorder in cached)))
    if len(steps) < 2:
        return None
    sigmas = {step: recorder.seen[step].sigmas[0] for recorder in cached for step in recorder.seen}
    ratios, changes, errors = [1.0], [0.0], [0.0]
    for before, step in pairwise(steps):
        both = [recorder.seen for recorder in cached if before in recorder.seen and step in recorder.seen]
        growths = [growth for seen in both if (growth := seen[step].growth) and isfinite(growth)]
        ratios.append(exp(_mean([log(growth) for growth in growths])))
        changes.append(_mean([change / seen[before].size for seen in both if (change := seen[step].change)]))
        errors.append(_mean([error / seen[step].size for seen in both if (error := seen[step].error)]))
    pairs = [pair for recorder in outputs for pair in _pairs(recorder)]
    return BranchFigures(
        sigmas=_rounded([sigmas[step] for step in steps]),
        ratios=_rounded(ratios),
        changes=_rounded(changes),
        errors=_rounded(errors),
        fit=fit(*zip(*pairs, strict=True)) if pairs else None,
    )


def _pairs(recorder: _Recorder) -> list[tuple[float, float]]:
    """The change of the modulated input and that of the output, for each step that has both."""
    seen = recorder.seen
    return [
        (signal, seen[step].change / seen[step - 1].size)  # type: ignore[operator]
        for step, signal in recorder.signals.items()
        if step in seen and step - 1 in seen and seen[step].change is not None and seen[step - 1].size
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _rounded(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(f"{value:.7g}") for value in values)
