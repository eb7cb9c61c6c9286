"""The way to the fastest plan: parts one by one, schedules by their theory, whole plans by trial, the best few checked.

A quarter of the time goes to the parts and to calibrating a schedule, a third at most to whole plans on the tuning
prompts, and the rest to the finalists on prompts that nothing was chosen by. Every trial is on disk when it is done.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from hasten.bench.rows import reason, sample_row
from hasten.bench.run import FAILURES, Bench
from hasten.bench.schema import FILE, BenchReport, Sample, read_report
from hasten.devices import clean_up
from hasten.errors import HastenError
from hasten.files import check_writable
from hasten.generation import Result, Session
from hasten.metrics.clip import Clip
from hasten.plan import Plan
from hasten.schedule import store
from hasten.schedule.measure import measure
from hasten.schedule.problem import Forecast
from hasten.schedule.solve import Point, solve
from hasten.tune.floors import Floor, judge
from hasten.tune.outcome import Outcome, finished
from hasten.tune.space import (
    ADAPTIVE,
    AS_IT_IS,
    Axis,
    axes_of,
    chooses_steps,
    memory_axes,
    merged,
    plan_of,
    samplers_of,
    step_counts,
    values_of,
)
from hasten.tune.trials import Log, Trial, Values

TRIALS, CALIBRATION, HELD_OUT = "trials.jsonl", "schedule.json", "held_out"
Objective = Literal["latency", "memory"]

_WORTH = 0.98
"""A part has to bring so much to be taken into whole plans."""
_HOPELESS = -3.0
"""A plan that is so far below a floor on its first image, in dB, is not run on the others."""
_FORECASTS = (*(Forecast(order, corrected=True) for order in (1, 2)), Forecast(2, corrected=True, fitted=True))
"""Those that searches usually end with."""
_SHARES = (0.06, 0.08, 0.1, 0.12, 0.14, 0.16, 0.18, 0.2, 0.24, 0.28, 0.32, 0.4, 0.5)
_SAFETY = (0.0, 1.5, 4.0, 8.0, 12.0)
"""In dB above the floors on the tuning prompts: images differ by more than a few prompts show."""
_STALE = 20
"""So many whole plans in a row that were no better end the search."""


@dataclass
class Tuner:
    """One tuning.

    Attributes:
        base: the reference's plan, complete.
        prompts: what plans are chosen by.
        held_out: what they are checked on.
        seconds: for everything together.
        max_bytes: a ceiling for the peak of memory.
        clip: folder of a CLIP model, for its floor.
    """

    base: Plan
    floors: Sequence[Floor]
    prompts: Sequence[str]
    held_out: Sequence[str]
    seconds: float
    out: Path
    objective: Objective = "latency"
    max_bytes: float | None = None
    compiles: bool = True
    clip: str | Path | None = None
    seed: int = 0
    progress: Callable[[str], None] = lambda what: None
    command: str = ""
    log: Log = field(init=False)
    report: BenchReport | None = field(init=False, default=None)
    checked: list[Trial] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        if self.clip is None and any(floor.metric == "clip" for floor in self.floors):
            raise HastenError("--floor clip needs a CLIP model: name its folder (--clip FOLDER)")
        self._clip = None if self.clip is None else Clip(self.clip, self.base.device)
        check_writable(self.out)
        self.log = Log(self.out / TRIALS)
        self.log.read()
        self._began = time.monotonic()
        self._session = Session.open(self.base, [*self.prompts, *self.held_out])
        self.base = self._session.plan.model_copy(update={"cache": None})
        self._references: list[Result] = []
        self._warm: str | None = None
        self._points: list[Point] = []

    def run(self) -> Outcome:
        """Everything; an interrupt leaves what is known in `outcome`."""
        with self._session.cleaning():
            self._reference()
            axes = self._parts()
            self._calibrate()
            self._whole(axes)
            clean_up(self._session.device)
        self._check()
        return self.outcome

    @property
    def outcome(self) -> Outcome:
        """What is known at this moment."""
        return finished(self)

    @property
    def spent(self) -> float:
        """The share of the time that is gone."""
        return (time.monotonic() - self._began) / self.seconds

    @property
    def reference(self) -> Trial:
        """The reference's own images of the tuning prompts."""
        return next(trial for trial in self.log.trials if trial.stage == "reference")

    def margin(self, trial: Trial) -> float:
        """How far a trial is above the lowest of its floors by its means, in dB; below 0 one is broken."""
        return min((floor.margin(judge(floor, self._pairs(trial)).value) for floor in self.floors), default=0.0)

    def fits(self, trial: Trial) -> bool:
        """Whether a trial ran for all tuning prompts, holds its floors there, and keeps within the memory."""
        whole = len(trial.samples) == len(self.prompts)
        return whole and self.margin(trial) >= 0 and (self.max_bytes is None or trial.peak_bytes <= self.max_bytes)

    def cost(self, trial: Trial) -> float:
        """What is to be small: seconds of an image, or bytes."""
        return float(trial.peak_bytes) if self.objective == "memory" else trial.seconds or float("inf")

    def _pairs(self, trial: Trial) -> list[tuple[Sample, Sample]]:
        return list(zip(trial.samples, self.reference.samples, strict=False))

    def _reference(self) -> None:
        self.progress("reference")
        self._session.run(self.prompts[0], self.seed, accelerated=False, steps=2)
        self._references = [self._session.run(prompt, self.seed, accelerated=False) for prompt in self.prompts]
        if self.log.find("reference", {}) is None:
            samples = [self._sample(number, result) for number, result in enumerate(self._references)]
            self.log.add(Trial(stage="reference", chosen={}, values={}, samples=tuple(samples)))

    def _parts(self) -> list[Axis]:
        """Every option by itself; those that are of use stay."""
        axes = axes_of(self._session.pipe, self.base, self._session.device, compiles=self.compiles)
        if self.objective == "memory" or self.max_bytes is not None:
            axes += memory_axes()
        left = []
        for axis in axes:
            able = {}
            for option, values in axis.options.items():
                if self.spent > 0.2:
                    break
                trial = self._try("part", {axis.name: option}, values, self.prompts[:1])
                if trial.error is None and trial.samples and self._is_of_use(trial):
                    able[option] = values
            if able:
                left.append(Axis(axis.name, able))
        return left

    def _is_of_use(self, trial: Trial) -> bool:
        """Whether a part would make an accelerated image faster (or smaller) and does not break a floor by itself."""
        if self.margin(trial) < 0:
            return False
        smaller = trial.peak_bytes < _WORTH * self.reference.samples[0].peak_bytes
        if smaller and (self.objective == "memory" or self.max_bytes is not None):
            return True
        return self._expected(trial.samples[0], 0.25) < _WORTH * self._expected(self.reference.samples[0], 0.25)

    def _expected(self, sample: Sample, share: float) -> float:
        """Seconds of an image by its stages, if that share of its steps were computed."""
        timings = sample.timings
        return timings.total - timings.denoise * (1 - share)

    def _calibrate(self) -> None:
        """A schedule for every number of computed steps, from this run or an earlier one."""
        path = self.out / CALIBRATION
        self._session.keeper.release()
        if path.exists():
            measured = store.read(path).measured
        else:
            jobs = [(prompt, self.seed + 10_000 + number) for number, prompt in enumerate(self.prompts)]
            measured = measure(self._session, jobs, gain_jobs=1, gain_steps=6, progress=self.progress)
            path.write_text(store.text(store.calibration_of(self._session, measured)), "utf-8")
        for steps in step_counts(self.base.generation.num_inference_steps):
            budgets = sorted({max(3, round(steps * share)) for share in _SHARES})
            self._points += solve(self._session, measured, steps, budgets, forecasts=_FORECASTS, progress=self.progress)

    def _whole(self, axes: Sequence[Axis]) -> None:
        """Whole plans, chosen by Optuna, until time or ideas run out."""
        from hasten.tune.joint import Chooser

        steps: list[int | str] = [*step_counts(self.base.generation.num_inference_steps)]
        if chooses_steps(self.base):
            steps.append(ADAPTIVE)
        chooser = Chooser(axes, steps, samplers_of(self._session.pipe), self.seed)
        chooser.begin([trial.chosen for trial in self.log.trials if trial.stage == "joint"])
        best, stale = self.cost(self.reference), 0
        while self.spent < 0.6 and stale < _STALE:
            chosen = chooser.ask()
            values = values_of(chosen, axes, self._points, self.base)
            trial = self.log.find("joint", values) or self._whole_one(chosen, values, axes, best)
            fits = trial.error is None and trial.skipped is None and self.fits(trial)
            chooser.tell(self._told(trial), self.margin(trial) if trial.samples else _HOPELESS)
            if fits and self.cost(trial) < best * 0.995:
                best, stale = self.cost(trial), 0
            else:
                stale += 1

    def _whole_one(self, chosen: Mapping[str, Any], values: Values, axes: Sequence[Axis], best: float) -> Trial:
        expected = self._foretold(chosen, values, axes)
        if self.objective == "latency" and expected > 1.05 * best:
            why = f"expected to take {expected:.2f} s, where {best:.2f} s is known"
            return self.log.add(
                Trial(stage="joint", chosen=dict(chosen), values=dict(values), expected=expected, skipped=why)
            )
        return self._try("joint", chosen, values, self.prompts, expected)

    def _told(self, trial: Trial) -> float:
        cost = self.cost(trial) if trial.samples else trial.expected
        return cost if cost is not None else 10 * self.cost(self.reference)

    def _foretold(self, chosen: Mapping[str, Any], values: Values, axes: Sequence[Axis]) -> float:
        """Seconds of an image by what its parts took alone; 0 where the run decides by itself how much it skips."""
        sample = self.reference.samples[0]
        stages = {name: getattr(sample.timings, name) for name in ("text", "denoise", "decode", "other")}
        for axis in axes:
            trial = self.log.find("part", axis.options.get(str(chosen.get(axis.name)), {"": None}))
            if trial is not None and trial.samples:
                for name in stages:
                    before = max(getattr(sample.timings, name), 1e-6)
                    stages[name] *= min(getattr(trial.samples[0].timings, name) / before, 2.0)
        cache = values.get("cache") or {}
        if "tolerance" in cache or chosen.get("steps") == ADAPTIVE:
            return 0.0
        steps = self.base.generation.num_inference_steps
        computed = len(cache["mask"]) if "mask" in cache else int(chosen.get("steps", steps))
        return float(stages["text"] + stages["decode"] + stages["other"] + stages["denoise"] * computed / steps)

    def _try(
        self,
        stage: Literal["part", "joint"],
        chosen: Mapping[str, Any],
        values: Values,
        prompts: Sequence[str],
        expected: float | None = None,
    ) -> Trial:
        """An image of each prompt, unless the first shows that there is no hope; known trials are not run again."""
        known = self.log.find(stage, values)
        if known is not None:
            return known
        self.progress(f"{len(self.log.trials)} tried; {', '.join(f'{key} {value}' for key, value in chosen.items())}")
        trial = Trial(stage=stage, chosen=dict(chosen), values=dict(values), expected=expected)
        try:
            session = replace(self._session, plan=plan_of(self.base, values))
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="hasten skipped nothing")
                self._warm_up(session, values)
                for number, prompt in enumerate(prompts):
                    sample = self._sample(number, session.run(prompt, self.seed))
                    trial = trial.model_copy(update={"samples": (*trial.samples, sample)})
                    if self.margin(trial) < _HOPELESS:
                        break
        except FAILURES as error:
            trial = trial.model_copy(update={"error": reason(error)})
        return self.log.add(trial)

    def _warm_up(self, session: Session, values: Values) -> None:
        """Two steps, where something else than the cache is new: kernels are chosen, code is compiled."""
        passes = str({key: value for key, value in values.items() if key not in ("cache", "generation")})
        if passes != self._warm:
            plan = session.plan.model_copy(update={"cache": None})
            replace(session, plan=plan).run(self.prompts[0], self.seed, steps=2)
            self._warm = passes

    def _sample(self, number: int, result: Result) -> Sample:
        return sample_row(
            "trial" if self._references else "reference",
            result,
            self._references[number] if self._references else None,
            round_=0,
            prompt=number,
            seed=self.seed,
            counted=True,
            gpu=None,
            image=None,
            clip=self._clip,
        )

    def finalists(self) -> list[Trial]:
        """The best plan by what was seen, and the best of those that are safer, since other prompts are harder."""
        fit = [
            trial for trial in self.log.trials if trial.stage == "joint" and trial.error is None and self.fits(trial)
        ]
        chosen: dict[str, Trial] = {}
        for safety in _SAFETY:
            safe = [trial for trial in fit if self.margin(trial) >= safety]
            if safe:
                best = min(safe, key=self.cost)
                chosen[best.key] = best
        return list(chosen.values())

    def _check(self) -> None:
        """The finalists and the reference by turns, on the held-out prompts."""
        self.checked = self.finalists()
        if not self.checked:
            return
        folder = self.out / HELD_OUT
        whole = self.reference.seconds or 1.0
        each = whole + sum(trial.seconds or 0.0 for trial in self.checked)
        left = self.seconds * max(1 - self.spent, 0.1)
        count = min(max(int(left / each) - 2, 6), len(self.held_out))
        sources = [merged({"model": self.base.model}, trial.values) for trial in self.checked]
        previous = read_report(folder) if (folder / FILE).exists() else None
        if previous is not None:
            count = len(previous.settings.prompts)
        bench = Bench(
            self.base,
            sources,
            self.held_out[:count],
            seeds=(self.seed + 1,),
            rounds=1,
            known=[f"fewer-steps {steps}" for steps in range(self.base.generation.num_inference_steps)],
            clip=self.clip,
            out=folder,
            previous=previous,
            command=self.command,
            progress=lambda now: self.progress(f"held-out prompts: {now.label}, {now.done} of {now.total}"),
        )
        try:
            bench.run()
        finally:
            self.report = bench.report


__all__ = ["AS_IT_IS", "HastenError", "Objective", "Tuner"]
