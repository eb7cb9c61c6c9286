"""A run that chooses its own number of steps: a warm-up, a score, and the rest of the schedule re-spaced.

The pipeline's loop is not touched. It reads its timesteps one by one from a `Schedule`, and before the first one after
the warm-up that schedule, and the scheduler's sigmas, get other entries from there on. Latents and the history of a
multistep solver stay: the run goes on at the noise level that it has reached.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.caching.clock import noise_levels
from hasten.caching.patching import Tap
from hasten.errors import PassError
from hasten.plan.adaptive import METHOD, AdaptiveSteps, Score
from hasten.sampling.noise import Kind, Level, denoiser_output, kind_of, levels_of, prediction_of
from hasten.sampling.respacing import respaced, steps_for
from hasten.sampling.scores import SCORES, Prediction
from hasten.sampling.timesteps import Schedule, Timesteps

Choose = Callable[[Sequence[Prediction], int], tuple[int, float]]
"""From the warm-up's predictions and the number of steps that was asked for: the number to make, and the score."""


@dataclass(frozen=True)
class Rule:
    """A plan's section `adaptive`, complete.

    Attributes:
        fewest, most: None for half of the steps that are asked for, and for all of them.
    """

    score: Score
    low: float
    high: float
    warmup: int
    fewest: int | None
    most: int | None

    @classmethod
    def of(cls, section: AdaptiveSteps) -> Rule:
        low, high = section.uncertainty.thresholds
        score = section.uncertainty.method or METHOD
        return cls(score, low, high, section.warmup, section.min_steps, section.max_steps)

    def choose(self, past: Sequence[Prediction], asked: int) -> tuple[int, float]:
        """The number of steps, by the least sure image of the batch, and its score."""
        score = float(SCORES[self.score](past).max())
        most = min(self.most or asked, asked)
        fewest = min(self.fewest or (asked + 1) // 2, most)
        return steps_for(score, low=self.low, high=self.high, fewest=fewest, most=most), score


class Stride(int):
    """A number of steps by which the training's timesteps divide into exactly this stride.

    Schedulers such as DDIM's find the end of a step as `timestep − training_steps // num_inference_steps`, which holds
    for steps of one width alone.
    """

    stride: int

    def __new__(cls, steps: int, stride: int) -> Stride:
        made = super().__new__(cls, steps)
        made.stride = stride
        return made

    def __rfloordiv__(self, other: int) -> int:
        return self.stride


class Respacer:
    """Watches each run on a scheduler, and chooses its number of steps after the warm-up; until `remove()`.

    Args:
        scheduler: one that `suits`.
        kind, prediction: what `suits` found out.
        warmup: so many steps are made first.
        choose: by what.
    """

    def __init__(self, scheduler: Any, kind: Kind, prediction: str, warmup: int, choose: Choose) -> None:
        self._scheduler, self._kind, self._prediction = scheduler, kind, prediction
        self._warmup, self._choose = warmup, choose
        self._schedule: Schedule | None = None
        self._levels: tuple[Level, ...] = ()
        self._past: list[Prediction] = []
        self._strides: list[int] = []
        self._chosen: dict[str, int | float] = {}
        self._obstacle = ""
        self._taps = [Tap(scheduler, "set_timesteps", self._set_timesteps), Tap(scheduler, "step", self._step)]

    def remove(self) -> None:
        """Leave the scheduler as it was; of the last run its schedule."""
        for tap in reversed(self._taps):
            tap.remove()
        self._end_run()

    def figures(self) -> Mapping[str, str | int | float]:
        """Of the last run: the steps that it made, or is to make, of how many, and the score."""
        if self._schedule is None:
            return {}
        if self._chosen:
            return self._chosen
        return {"unchanged": self._obstacle} if self._obstacle else {}

    def _end_run(self) -> None:
        scheduler = self._scheduler
        if isinstance(vars(scheduler).get("timesteps"), Timesteps):
            scheduler.timesteps = scheduler.timesteps.now
        if isinstance(vars(scheduler).get("num_inference_steps"), Stride):
            scheduler.num_inference_steps = int(scheduler.num_inference_steps)

    def _set_timesteps(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        self._schedule = Schedule(self._scheduler.timesteps, self._between)
        self._scheduler.timesteps = self._schedule.view()
        self._levels = levels_of(self._scheduler, self._kind)
        self._past, self._strides, self._chosen = [], [], {}
        self._obstacle = "the pipeline keeps a list of its own of the timesteps"
        return result

    def _step(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        schedule = self._schedule
        if schedule is not None and schedule.position is not None:
            # Some loops call the scheduler several times a step, for several streams: the first one is watched.
            if schedule.position - schedule.start == len(self._past) < self._warmup and not self._chosen:
                self._watch(self._levels[schedule.position], args, kwargs)
            if self._strides:
                self._scheduler.num_inference_steps = Stride(len(schedule.current), self._strides[schedule.position])
        return inner(*args, **kwargs)

    def _watch(self, level: Level, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        output = args[0] if args else kwargs["model_output"]
        sample = args[2] if len(args) > 2 else kwargs["sample"]
        if output.shape != sample.shape:
            # A learned variance stands behind the prediction, in channels of its own.
            output = output[:, : sample.shape[1]]
        if output.shape != sample.shape:
            self._obstacle = "what the denoiser predicts has another shape than the sample"
            return
        self._obstacle = "the run was over before the warm-up"
        self._past.append(Prediction.of(output.detach(), sample.detach(), level, self._prediction))

    def _between(self) -> None:
        """Before a timestep is handed out: is it the first one after the warm-up?"""
        schedule = self._schedule
        if schedule is None or schedule.position is None or self._chosen or len(self._past) != self._warmup:
            return
        done, asked = schedule.position + 1 - schedule.start, len(schedule.current) - schedule.start
        if done != self._warmup or done >= asked:
            return
        steps, score = self._choose(self._past, asked)
        self._past = []
        steps = min(max(steps, done + 1), asked)
        self._chosen = {"steps": steps, "of": asked, "score": score}
        if steps < asked:
            self._respace(schedule, schedule.start + done, steps - done)

    def _respace(self, schedule: Schedule, done: int, steps: int) -> None:
        """Give the rest of the schedule, from entry `done` on, so many steps."""
        scheduler, old = self._scheduler, schedule.current
        timesteps, levels = noise_levels(scheduler)
        alphas = vars(scheduler).get("alphas_cumprod")
        training = _training_sigmas(alphas) if self._kind != "flow" and isinstance(alphas, Tensor) else []
        whole = not old.is_floating_point()
        new, sigmas = respaced(timesteps, levels, done, steps, whole=whole, training=training)
        schedule.current = _continued(old, new, done)
        own = vars(scheduler).get("sigmas")
        if isinstance(own, Tensor) and own.ndim == 1 and len(own) >= len(old):
            scheduler.sigmas = torch.cat([_continued(own, sigmas, done), own[len(old) :]])
        elif not hasattr(scheduler, "previous_timestep") and scheduler.num_inference_steps:
            width = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
            whole_new = [*map(round, new), round(timesteps[-1]) - width]
            self._strides = [a - b for a, b in itertools.pairwise(whole_new)]
        # A new object, so that whoever knows the old one sees that it is no more.
        scheduler.timesteps = schedule.view()
        if isinstance(vars(scheduler).get("num_inference_steps"), int):
            scheduler.num_inference_steps = len(new)


def _continued(old: Tensor, new: Sequence[float], kept: int) -> Tensor:
    """A tensor whose first entries, up to and with the one that the run has come to, are the very same."""
    return torch.cat([old[: kept + 1], torch.tensor(new[kept + 1 :], dtype=torch.float64).to(old)])


def _training_sigmas(alphas: Tensor) -> list[float]:
    bars = alphas.detach().double().cpu().clamp(1e-8, 1 - 1e-8)
    sigmas: list[float] = ((1 - bars) / bars).sqrt().tolist()
    return sigmas


# --- which schedulers can do this

_TRIED = 12  # steps of a trial run,
_TRIED_WARMUP, _TRIED_STEPS = 4, 7  # of which so many are made before, and in all
_TOLERANCE = 0.03  # of u, the noise level from 0 to 1: solvers that add noise are random


def suits(scheduler: Any) -> tuple[Kind, str]:
    """How a scheduler counts noise, and what its denoiser predicts, if its schedule can be re-spaced in a run.

    No list of classes: a copy makes a run of twelve steps on some thousand numbers whose clean value is known, is
    re-spaced in it, and has to land on the noise levels of its new schedule.

    Raises:
        PassError: it cannot; with the reason.
    """
    reason = _told_by_its_parts(scheduler)
    if reason:
        raise PassError(f"adaptive: the steps of {type(scheduler).__name__} cannot be chosen in a run: {reason}")
    trial = copy.deepcopy(scheduler)
    _set_timesteps(trial)
    kind = kind_of(trial)
    prediction = prediction_of(trial, kind) if kind is not None else None
    if kind is None or prediction is None:
        reason = "how it mixes signal and noise, or what its denoiser predicts, is not known here"
    elif not _lands(copy.deepcopy(scheduler), kind, prediction):
        reason = "tried on a re-spaced schedule, it does not land on its noise levels"
    else:
        return kind, prediction
    raise PassError(f"adaptive: the steps of {type(scheduler).__name__} cannot be chosen in a run: {reason}")


def _told_by_its_parts(scheduler: Any) -> str:
    if getattr(scheduler, "order", 1) != 1:
        return "it calls the denoiser more than once a step"
    if "ets" in vars(scheduler):
        return "its formulas hold for steps of one width"
    if hasattr(scheduler, "get_order_list"):
        return "it plans the orders of all steps before the first"
    return ""


def _set_timesteps(scheduler: Any) -> None:
    config = {**scheduler.config, **(scheduler.config.get("flow_schedule") or {})}
    scheduler.set_timesteps(_TRIED, **({"mu": 0.5} if config.get("use_dynamic_shifting") else {}))


def _lands(scheduler: Any, kind: Kind, prediction: str) -> bool:
    respacer = Respacer(scheduler, kind, prediction, _TRIED_WARMUP, lambda past, asked: (_TRIED_STEPS, 0.0))
    try:
        # Solvers that add noise may take it from the generator that the user's own code uses.
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(0)
            return _trial_lands(scheduler, kind, prediction)
    except (RuntimeError, ValueError, TypeError, IndexError, AttributeError, NotImplementedError):
        return False
    finally:
        respacer.remove()


def _trial_lands(scheduler: Any, kind: Kind, prediction: str) -> bool:
    _set_timesteps(scheduler)
    clean = torch.ones(1, 1, 128, 128)
    level = levels_of(scheduler, kind)[0]
    sample = level.alpha * clean + level.sigma * torch.randn_like(clean)
    made = 0
    for timestep in scheduler.timesteps:
        level = levels_of(scheduler, kind)[made]
        if hasattr(scheduler, "scale_model_input"):  # some count their steps there
            scheduler.scale_model_input(sample, timestep)
        output = denoiser_output(clean, sample, level, prediction)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        made += 1
        levels = levels_of(scheduler, kind)
        if made < len(levels):
            found = Level(float(sample.mean().abs()), float(sample.std()))
            if abs(found.place - levels[made].place) > _TOLERANCE:
                return False
    return made == _TRIED_STEPS
