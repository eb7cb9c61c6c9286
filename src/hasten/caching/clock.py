"""The step clock: knows the run, the step and its noise level whenever a denoiser is called.

It listens to the pipeline's scheduler, on the instance: `set_timesteps` begins a run and tells every sigma, `step`
advances. Nothing is counted modulo anything and no number of steps is handed over, so that changed steps, an
image-to-image start in the middle, solvers that call the denoiser twice, and runs that ended in an exception are all
the same case.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import sqrt
from typing import Any

from torch import Tensor

from hasten.caching.effects import Effects, effects_of
from hasten.caching.patching import Tap

# A bare denoiser that is called at one timestep over and over is being called in runs of one step.
_MOST_CALLS = 8


class Clock:
    """Where a run stands.

    Args:
        owner: whatever has a `scheduler` attribute, looked up anew at each call so that an exchanged scheduler is
            followed; None for a bare denoiser, whose timestep argument then tells the step.
        on_run: called when a run begins.
        on_end: called after the last step of a run whose length is known.

    Attributes:
        run: the number of runs begun; 0 before the first.
        index: the step within the run, from 0.
        total: the number of steps of the run, None when nobody knows it.
        on_output: gets what the scheduler is given at each step, output and latent, and gives the output to go on with.
    """

    def __init__(
        self,
        owner: object | None = None,
        on_run: Callable[[], None] = lambda: None,
        on_end: Callable[[], None] = lambda: None,
    ) -> None:
        self._owner = owner
        self._on_run = on_run
        self._on_end = on_end
        self._scheduler: Any = None
        self._taps: list[Tap] = []
        self._manual = False
        self._told: object = None  # the schedule that the timesteps were read from
        self._timesteps: tuple[float, ...] = ()
        self._sigmas: list[float] = []
        self._offset = 0
        self._calls = 0
        self._last = 0.0
        self.run = 0
        self.index = 0
        self.total: int | None = None
        self.on_output: Callable[[Tensor, Tensor], Tensor] | None = None
        self._timed: tuple[Any, Any] | None = None
        self._effects: Effects | None = None

    def attach(self) -> None:
        """Begin to listen."""
        self._follow(_attribute(self._owner, "scheduler"))

    def detach(self) -> None:
        """Leave the scheduler as it was."""
        for tap in reversed(self._taps):
            tap.remove()
        self._taps = []
        self._scheduler = None

    def sigma(self, index: int) -> float:
        """The noise level of a step of this run, as far as it is known."""
        position = min(self._offset + index, len(self._sigmas) - 1)
        return self._sigmas[position] if position >= 0 else float(index)

    def place(self, index: int) -> float:
        """Where a step lies on the way from noise to picture, see `places_of`; stand-ins for sigma are left alone."""
        known = self._scheduler is not None and not self._manual
        return places_of((self.sigma(index),), max(self._sigmas, default=0.0))[0] if known else self.sigma(index)

    def shares(self, index: int) -> tuple[float, float]:
        """How much of the picture and how much noise there is in a step's latent as the denoiser gets it.

        Flow models mix `(1 − σ)·x + σ·ε`; for all others σ is noise by signal, of a latent scaled to the size of x.
        """
        sigma = self.sigma(index)
        if max(self._sigmas, default=0.0) <= 1:
            return 1 - sigma, sigma
        scale = 1 / sqrt(1 + sigma * sigma)
        return scale, sigma * scale

    def timestep(self, index: int) -> float | None:
        """The timestep of a step of this run on the scale from 0 to 1000; None where it is not known."""
        known = self._timesteps[self._offset :] or self._sigmas
        if not 0 <= index < len(known):
            return None
        scale = 1.0 if max(known) <= 1 else _attribute(_attribute(self._scheduler, "config"), "num_train_timesteps")
        value = 1000 * known[index] / (scale if isinstance(scale, int | float) else 1000)
        return value if 0 <= value <= 1000 else None

    def effects(self) -> Effects:
        """What the scheduler makes of each step's output, from this run's first step on.

        Raises:
            ValueError: there is no scheduler, or none that can be followed.
        """
        if self._effects is None:
            if self._scheduler is None or self._timed is None or self._manual:
                raise ValueError("there is no scheduler whose steps are known beforehand")
            try:
                self._effects = effects_of(self._scheduler, *self._timed)
            except Exception as error:  # schedulers of any make: whatever they raise, they cannot be followed
                raise ValueError(f"{type(self._scheduler).__name__} cannot be followed on numbers: {error}") from error
        return self._effects.since(self._offset)

    def arrive(self, timestep: object = None) -> None:
        """A denoiser is being called.

        Args:
            timestep: its timestep argument; only looked at where there is no scheduler. On an accelerator that look
                waits for the device: use `step` where this matters.
        """
        if self._manual:
            self._calls += 1
            return
        if self._owner is not None:
            scheduler = _attribute(self._owner, "scheduler")
            if scheduler is not self._scheduler:
                self._follow(scheduler)
        if self._scheduler is None:
            self._by_timestep(timestep)
        elif self.run == 0 or (self.total is not None and self.index >= self.total):
            # A loop that does not call set_timesteps before each run.
            self._begin()
        elif vars(self._scheduler).get("timesteps") is not self._told:
            self._sigmas = self._read()  # the rest of the run has other steps than it had
            self.total = len(self._timesteps) - self._offset or None
        self._calls += 1

    def step(self, index: int, sigma: float | None = None, total: int | None = None) -> None:
        """Tell the step by hand; from then on the timestep argument and the scheduler are not asked any more.

        Args:
            index: the step about to be computed; a run begins where it does not grow.
            sigma: its noise level; the index stands in for it where none is given.
            total: the number of steps of the run, so that its last ones can be computed in full.
        """
        begins = not self._manual or index < self.index or (index == self.index and self._calls > 0)
        self._manual = True
        if begins:
            self._restart([])
        self._offset = 0
        self.total = total
        while len(self._sigmas) <= index:
            self._sigmas.append(float(len(self._sigmas)))
        if sigma is not None:
            self._sigmas[index] = float(sigma)
        self.index = index
        self._calls = 0

    def _follow(self, scheduler: Any) -> None:
        self.detach()
        if scheduler is None or not hasattr(scheduler, "step") or not hasattr(scheduler, "set_timesteps"):
            return
        self._scheduler, self._timed = scheduler, None
        self._taps = [Tap(scheduler, "set_timesteps", self._set_timesteps), Tap(scheduler, "step", self._step)]
        if hasattr(scheduler, "set_begin_index"):
            self._taps.append(Tap(scheduler, "set_begin_index", self._set_begin_index))
        if self.run:  # exchanged between runs, or even in the middle of one
            self._begin()

    def _set_timesteps(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        self._timed = args, kwargs
        if not self._manual:
            self._begin()
        return result

    def _set_begin_index(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = inner(*args, **kwargs)
        begin = args[0] if args else kwargs.get("begin_index", 0)
        if isinstance(begin, int) and self.index == 0 and not self._manual:
            self._start_at(begin)
        return result

    def _step(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        first = self.index == 0
        if self.on_output is not None and self._calls and not self._manual:
            args, kwargs = self._shown(self.on_output, args, kwargs)
        result = inner(*args, **kwargs)
        # Some loops call the scheduler several times for one call of the denoiser (one per sample, or per stream).
        if self._calls and not self._manual:
            if first:
                self._learn_start(args, kwargs)
            self.index += 1
            self._calls = 0
            if self.total is not None and self.index == self.total:
                self._on_end()
        return result

    @staticmethod
    def _shown(on_output: Callable[[Tensor, Tensor], Tensor], args: Any, kwargs: Any) -> tuple[Any, Any]:
        """The arguments of a scheduler's step with another output, where these are tensors as usual."""
        output = args[0] if args else kwargs.get("model_output")
        sample = args[2] if len(args) > 2 else kwargs.get("sample")
        if not isinstance(output, Tensor) or not isinstance(sample, Tensor):
            return args, kwargs
        output = on_output(output, sample)
        return ((output, *args[1:]), kwargs) if args else (args, {**kwargs, "model_output": output})

    def _learn_start(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Find out where in the schedule the run began: not every pipeline, and not every scheduler, tells."""
        after = _attribute(self._scheduler, "step_index")
        if isinstance(after, int):
            self._start_at(after - 1)
            return
        timestep = _as_float(args[1] if len(args) > 1 else kwargs.get("timestep"))
        if timestep in self._timesteps:
            self._start_at(self._timesteps.index(timestep))

    def _start_at(self, offset: int) -> None:
        if 0 <= offset < len(self._timesteps):
            self._offset = offset
            self.total = len(self._timesteps) - offset

    def _begin(self) -> None:
        self._restart(self._read())
        self.total = len(self._timesteps) or None

    def _read(self) -> list[float]:
        """The timesteps as they now are; gives the sigmas."""
        self._told = vars(self._scheduler).get("timesteps")
        self._timesteps, sigmas = noise_levels(self._scheduler)
        return list(sigmas)

    def _restart(self, sigmas: list[float]) -> None:
        self._sigmas = sigmas
        self._effects = None
        self._offset = 0
        self._calls = 0
        self.index = 0
        self.total = None
        self.run += 1
        self._on_run()

    def _by_timestep(self, timestep: object) -> None:
        value = _as_float(timestep)
        if value is None:
            if self.run == 0:
                self._restart([])
            return
        if self.run == 0 or self._turns_back(value) or self._calls >= _MOST_CALLS:
            self._restart([value])
        elif value != self._last:
            self.index += 1
            self._calls = 0
            self._sigmas.append(value)
        self._last = value

    def _turns_back(self, value: float) -> bool:
        """Noise levels go one way within a run."""
        return len(self._sigmas) > 1 and (value - self._last) * (self._sigmas[1] - self._sigmas[0]) < 0


def noise_levels(scheduler: Any) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The timesteps of a scheduler's current schedule and the noise level sigma at each.

    Flow matching and the Karras-style schedulers keep `sigmas`; for the DDPM family `σ = sqrt((1 − ᾱ)/ᾱ)`; where
    neither is to be had, the timesteps stand in, on a scale from 0 to 1.
    """
    timesteps = _floats(_attribute(scheduler, "timesteps"))
    sigmas = _floats(_attribute(scheduler, "sigmas"))
    if len(timesteps) <= len(sigmas) <= len(timesteps) + 2:
        return timesteps, sigmas[: len(timesteps)]
    alphas = _floats(_attribute(scheduler, "alphas_cumprod"))
    if alphas and all(-1 <= t < len(alphas) for t in timesteps):
        bars = [max(alphas[max(int(t), 0)], 1e-12) for t in timesteps]
        return timesteps, tuple(sqrt((1 - bar) / bar) for bar in bars)
    scale = _attribute(_attribute(scheduler, "config"), "num_train_timesteps")
    largest = max(timesteps, default=1.0)
    unit = 1.0 if largest <= 1 else float(scale) if isinstance(scale, int | float) and scale >= largest else largest
    return timesteps, tuple(t / unit for t in timesteps)


def places_of(sigmas: Sequence[float], largest: float) -> tuple[float, ...]:
    """Noise levels as flow matching counts them, from 1, all noise, to 0.

    Flow matching's own sigma is that already: `(1 − σ)·x + σ·ε`. Where noise is added to the picture, `x + σ·ε`, the
    same mixture but for its size has `σ/(1 + σ)`. Outputs are as smooth in the one as in the other; in a sigma that
    goes up to 15 and more they are not.

    Args:
        largest: of the whole schedule: above 1 it is noise that is added.

    >>> places_of((3.0, 1.0, 0.0), largest=14.6)
    (0.75, 0.5, 0.0)
    """
    return tuple(sigma / (1 + sigma) for sigma in sigmas) if largest > 1 else tuple(sigmas)


def _attribute(owner: object, name: str) -> Any:
    # Not plain getattr: diffusers' objects answer with a deprecation warning for names of their config.
    if owner is None:
        return None
    found = vars(owner).get(name)
    return getattr(owner, name) if found is None and hasattr(type(owner), name) else found


def _floats(values: Any) -> tuple[float, ...]:
    if isinstance(values, Tensor):
        values = values.detach().flatten().tolist()
    elif hasattr(values, "tolist"):
        values = values.tolist()
    return tuple(map(float, values)) if isinstance(values, (list, tuple)) else ()


def _as_float(timestep: object) -> float | None:
    if isinstance(timestep, Tensor):
        # One timestep per sample or per token: frames that are given beforehand stand at 0.
        return float(timestep.detach().max()) if timestep.numel() else None
    return float(timestep) if isinstance(timestep, (int, float)) else None
