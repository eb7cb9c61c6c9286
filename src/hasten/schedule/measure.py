"""Measure what a search needs to know of a model: how its outputs hang together, and what becomes of an error."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from hasten.caching.clock import noise_levels, places_of
from hasten.caching.effects import effects_of
from hasten.caching.patching import Tap
from hasten.errors import HastenError
from hasten.generation import Session
from hasten.schedule.problem import Problem, Vector


@dataclass
class Run:
    """What passed through the scheduler in one run.

    Attributes:
        outputs: what the scheduler was given at each step (guidance combined), float32, on the CPU, flat.
        final: what its last step returned, likewise.
        sigmas: the noise level of each step.
        response: how much each step's output enters into the final latent, see `responses`.
        pixels: the image.
    """

    outputs: list[torch.Tensor] = field(default_factory=list)
    final: torch.Tensor = field(default_factory=lambda: torch.empty(0))
    sigmas: tuple[float, ...] = ()
    response: Vector = field(default_factory=lambda: np.empty(0))
    pixels: torch.Tensor = field(default_factory=lambda: torch.empty(0))


class _SeenEnoughError(Exception):
    """Enough of this run was seen."""


def watch(session: Session, prompt: str, seed: int, disturbance: tuple[int, torch.Tensor] | None = None) -> Run:
    """One run of the reference, with its scheduler looked over the shoulder.

    Args:
        disturbance: (step, what to add to that step's output, flat).

    Raises:
        HastenError: the pipeline has no scheduler, or one whose steps cannot be followed.
    """
    run = Run()
    with _Following(session, run, disturbance):
        run.pixels = session.run(prompt, seed, accelerated=False).pixels
    if not run.outputs or not run.final.numel():
        raise HastenError(f"{type(session.pipe).__name__} takes no steps with its scheduler: there is nothing to plan")
    return run


def timetable(session: Session, steps: int) -> Run:
    """The noise levels and responses of another number of steps, for the price of one step; no outputs."""
    run = Run()
    prompt, seed = session.jobs[0]
    try:
        with _Following(session, run, None, stop=True):
            session.run(prompt, seed, accelerated=False, steps=steps)
    except _SeenEnoughError:
        return run
    raise HastenError(f"{type(session.pipe).__name__} takes no steps with its scheduler: there is nothing to plan")


class _Following:
    """Taps on a pipeline's scheduler for the length of a `with` block."""

    def __init__(
        self, session: Session, run: Run, disturbance: tuple[int, torch.Tensor] | None, *, stop: bool = False
    ) -> None:
        self._scheduler = getattr(session.pipe, "scheduler", None)
        self._run, self._disturbance, self._stop = run, disturbance, stop
        self._taps: list[Tap] = []

    def __enter__(self) -> None:
        if self._scheduler is not None:
            self._taps = [
                Tap(self._scheduler, "set_timesteps", self._set_timesteps),
                Tap(self._scheduler, "step", self._step),
            ]

    def __exit__(self, *_: object) -> None:
        for tap in reversed(self._taps):
            tap.remove()

    def _set_timesteps(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        self._run.outputs.clear()
        _, self._run.sigmas = noise_levels(self._scheduler)
        self._run.response = responses(self._scheduler, args, kwargs)
        return result

    def _step(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._stop:
            raise _SeenEnoughError
        output, *rest = args if args else (kwargs.pop("model_output"),)
        index = len(self._run.outputs)
        self._run.outputs.append(output.detach().float().cpu().flatten())
        if self._disturbance is not None and self._disturbance[0] == index:
            output = output + self._disturbance[1].view(output.shape).to(output)
        result = inner(output, *rest, **kwargs)
        final = result if isinstance(result, torch.Tensor) else result[0]
        self._run.final = final.detach().float().cpu().flatten()
        return result


def responses(scheduler: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Vector:
    """How the final latent depends on each step's output while the others stay: `∂x_T/∂y_k`, shape (T,).

    Args:
        args, kwargs: of the `set_timesteps` call.
    """
    return np.array(effects_of(scheduler, args, kwargs).outputs)


@dataclass(frozen=True)
class Measured:
    """A model's full runs in a few numbers, which serve other step counts as well.

    Attributes:
        sigmas: the noise levels of the measured runs, shape (T,).
        factor: `F` with `F Fᵀ = E⟨y_i, y_j⟩` per element, shape (T, r), nothing but zeros above the diagonal.
        gains: `g_k` at each of the sigmas.
        power: mean square of the final latent per element.
        prompts: so many runs.
    """

    sigmas: Vector
    factor: Vector
    gains: Vector
    power: float
    prompts: int

    def problem(self, sigmas: Sequence[float], response: Vector) -> Problem:
        """The search problem of a schedule with these noise levels.

        Outputs are smooth in the places of noise levels, so that rows of the factor and gains are interpolated there.
        """
        largest = float(self.sigmas.max())
        at, all_known = (np.array(places_of(list(levels), largest)) for levels in (sigmas, self.sigmas))
        order = np.argsort(all_known)
        known = all_known[order]

        def resampled(values: Vector) -> Vector:
            return np.interp(at, known, values[order])

        factor = np.stack([resampled(column) for column in self.factor.T], axis=1)
        return Problem(
            np.asarray(sigmas, dtype=float), resampled(self.gains) * response, factor @ factor.T, self.power, response
        )


def measure(
    session: Session,
    jobs: Sequence[tuple[str, int]],
    gain_jobs: int = 2,
    gain_steps: int = 8,
    progress: Callable[[str], None] = lambda what: None,
) -> Measured:
    """Full runs of the reference, and a few disturbed ones.

    Args:
        jobs: (prompt, seed) of each run.
        gain_jobs: for so many of them the gains are measured as well,
        gain_steps: at so many steps, with the error that reuse would make there; `g = ‖δx_T‖ / ‖a_k ε_k‖`.
        progress: told what is being done.
    """
    gram: Vector | None = None
    power = 0.0
    sigmas: tuple[float, ...] = ()
    points: dict[int, list[float]] = {}
    for number, (prompt, seed) in enumerate(jobs):
        progress(f"full run {number + 1} of {len(jobs)}")
        run = watch(session, prompt, seed)
        if sigmas and run.sigmas != sigmas:
            raise HastenError("the noise levels differ from prompt to prompt: there is no schedule to plan for")
        sigmas = run.sigmas[: len(run.outputs)]
        outputs = torch.stack(run.outputs)
        products = (outputs @ outputs.T).double().numpy() / outputs.shape[1]
        gram = products if gram is None else gram + products
        power += float(run.final.square().mean())
        if number < gain_jobs:
            for index in _spread(len(run.outputs), gain_steps):
                progress(f"full run {number + 1} of {len(jobs)}: what becomes of an error at step {index}")
                points.setdefault(index, []).append(_gain(session, prompt, seed, run, index))
    assert gram is not None
    known = sorted(points)
    means = [float(np.mean(points[index])) for index in known]
    gains = np.interp(np.arange(len(sigmas)), known, means) if known else np.ones(len(sigmas))
    return Measured(np.asarray(sigmas), _factor(gram / len(jobs)), gains, power / len(jobs), len(jobs))


def _gain(session: Session, prompt: str, seed: int, run: Run, index: int) -> float:
    error = run.outputs[index - 1] - run.outputs[index]
    disturbed = watch(session, prompt, seed, (index, error))
    moved = torch.linalg.vector_norm(disturbed.final - run.final)
    return float(moved / torch.linalg.vector_norm(float(run.response[index]) * error))


def _spread(steps: int, count: int) -> list[int]:
    """Steps from 1 to the last, evenly, since step 0 is always computed."""
    return sorted({round(position) for position in np.linspace(1, steps - 1, min(count, steps - 1))})


def _factor(gram: Vector) -> Vector:
    """`F` with `F Fᵀ = G` to 1e-12 of its largest eigenvalue, triangular, so that few numbers hold the whole matrix."""
    values, vectors = np.linalg.eigh(gram)
    kept = values > values[-1] * 1e-12
    return np.asarray(np.linalg.qr((vectors[:, kept] * np.sqrt(values[kept])).T, mode="r")).T
