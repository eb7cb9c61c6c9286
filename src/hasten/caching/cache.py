"""The engine of one cache layer: for each call of a denoiser, asks clock and policy, and has the site compute or skip.

Where anything does not fit (no snapshot yet, another shape, NaN, a new way through the model) the call is computed: a
cache may cost its gain, never the image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor

from hasten.caching.bands import grids_of
from hasten.caching.budget import Budget
from hasten.caching.clock import Clock
from hasten.caching.denoiser import Branch, Denoiser, Port
from hasten.caching.fallback import another_site
from hasten.caching.figures import ByBranch, figures_for
from hasten.caching.midway import NowhereError, Question
from hasten.caching.policies import Decision
from hasten.caching.report import Book, Report
from hasten.caching.serving import Forecast, Served, signature_of, stand_in
from hasten.caching.settings import Settings
from hasten.caching.signals import Gauge, observed
from hasten.caching.sites import Call, OutputSite, Site, UnfitError
from hasten.caching.spans import SpanSite
from hasten.caching.spectral import filtered
from hasten.caching.timetable import Timetable
from hasten.caching.tolerance import Shown, Tolerance
from hasten.caching.trees import fresh
from hasten.caching.vocabulary import FIXED, MIDWAY
from hasten.errors import CacheError

FiguresOf = Callable[[Port], tuple[ByBranch, str]]

# Tiled pipelines call the denoiser once per tile; a module that is called without end in one step is in no run at all.
_MOST_BRANCHES = 64


class Cache:
    """Runs one layer's settings on denoisers.

    Args:
        settings: None to compute every step and only take the time.
        clock: tells the step; shared with the other layers.
        figures: tells what was measured of a denoiser, by branch, or why there is nothing; for settings that need it.
    """

    def __init__(
        self, settings: Settings | None, ports: Sequence[Port], clock: Clock, figures: FiguresOf | None = None
    ) -> None:
        self._figures = figures
        self.settings = settings
        self.clock = clock
        self.timetable = Timetable(settings, clock)
        self._denoisers = {port: Denoiser(port) for port in ports}
        self._stores = self.timetable.leaves_out
        self._adapts = settings is not None and settings.policy not in FIXED
        adaptive = settings.adaptive(()) if settings is not None else None
        self._observes = adaptive is not None and adaptive.observes
        self._budget = Budget(settings) if settings is not None else None
        self._book = Book()
        self._runs = 0
        self._denied: Counter[str] = Counter()
        self._lacking = ""
        self._ended = False

    def detach(self) -> None:
        """Leave the blocks as they were."""
        for denoiser in self._denoisers.values():
            denoiser.detach()

    @property
    def denoisers(self) -> tuple[Denoiser, ...]:
        return tuple(self._denoisers.values())

    @property
    def calls(self) -> int:
        """Calls of denoisers in this run."""
        return self._book.calls

    @property
    def skipped(self) -> int:
        """Those of them in which something was left out."""
        return self._book.skipped

    @property
    def site(self) -> str:
        """Where values are taken, or would be."""
        return "no site" if self._budget is None else self._budget.site

    def nbytes(self, branch: str | None = None) -> int:
        """What the snapshots take now, of one branch or of all."""
        branches = [some for denoiser in self.denoisers for some in denoiser.branches.values()]
        return sum(some.history.nbytes for some in branches if branch in (None, some.name))

    def report(self) -> Report:
        """What happened in the last run that called a denoiser."""
        settings = self.settings
        notes = dict.fromkeys(note for denoiser in self.denoisers for note in denoiser.notes.values())
        if self._budget is not None:
            notes |= dict.fromkeys(self._budget.notes)
        if settings is not None and settings.tolerance is not None and self._tolerances():
            expected = max(policy.expected for policy in self._tolerances())
            notes[f"error of the final latent: about {expected:.2g} is expected (tolerance {settings.tolerance:g})"] = (
                None
            )
        return self._book.report(
            runs=self._runs,
            method="nothing skipped" if settings is None else settings.method,
            predictor="nothing predicted" if settings is None else settings.predictor_text,
            notes=tuple(notes),
            signal="" if settings is None else settings.signal_text,
        )

    def call(self, port: Port, inner: Call, args: Any, kwargs: Any) -> Any:
        """A denoiser is called: compute, or put in predictions."""
        started = perf_counter()
        clock, denoiser = self.clock, self._denoisers[port]
        branch = denoiser.enter((clock.run, clock.index))
        if branch.serial == port.serial:
            return self._repeat(denoiser, branch, inner, args, kwargs)
        branch.serial = port.serial
        served = self._serve(denoiser, branch, inner, args, kwargs)
        if not denoiser.reached:
            return served.result  # a layer outside of this one left it out
        if not self._book.calls:
            self._runs += 1
        self._book.enter(
            (denoiser.name, branch.name),
            clock.index,
            clock.sigma(clock.index),
            computed=served.computed,
            reason=served.reason,
            signal=served.signal,
            minor=served.minor,
            seconds=perf_counter() - started,
            site=branch.site.name if branch.site is not None else None,
        )
        return served.result

    def _repeat(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any) -> Any:
        """A layer outside of this one tries something out on a call that was served already: nothing is learned."""
        assert self.settings is not None
        owner = denoiser if self.settings.branches == "shared" else branch
        if owner.verdict is None or owner.verdict.compute:
            return inner(*args, **kwargs)
        return self._skip(denoiser, branch, inner, args, kwargs).result

    def _serve(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any) -> Served:
        index = self.clock.index
        plan, keep = self.timetable.at(index)
        if not self._stores or self.timetable.idle:
            return Served(inner(*args, **kwargs), True, plan.reason)
        assert self.settings is not None
        half, signature = denoiser.port.half, signature_of(args, kwargs)
        if branch.signatures.get(half, signature) != signature:
            branch.forget("its input has another shape")
        branch.signatures[half] = signature
        if self.settings.conditional_only and not plan.compute and not denoiser.port.alone:
            plan, keep = Decision(True, "beside the unconditional branch"), True
        owner = denoiser if self.settings.branches == "shared" else branch
        # The first branch of a step decides for all, and its tensors alone are measured.
        gauge = self._gauge(denoiser, branch, owner) if self._adapts and owner.verdict is None else None
        verdict: Decision | None = owner.verdict or plan
        if gauge is not None:
            verdict = gauge.begin(index)
            if plan.compute:
                verdict = gauge.force(plan)
        if verdict is None or not verdict.compute:
            obstacle = self._obstacle(denoiser, branch)
            if obstacle is None and not half and any(branch.history.halves):
                obstacle = "only the conditional half of the batch was computed before"
            if obstacle is not None:
                verdict = self._deny(obstacle, gauge)
        if gauge is not None and self.settings.signal in MIDWAY:
            midway = self._serve_midway(denoiser, branch, gauge, inner, args, kwargs, keep=keep)
            owner.verdict = Decision(midway.computed, midway.reason)
            return midway
        if gauge is not None and gauge.meter is not None:
            shown = self._shown(denoiser, args, kwargs)
            verdict = gauge.see(shown) if isinstance(shown, Tensor) else self._deny(shown, gauge)
        assert verdict is not None
        served: Served | None = None
        if not verdict.compute:
            spare = fresh((args, kwargs))
            try:
                served = self._skip(denoiser, branch, inner, args, kwargs)
            except UnfitError as unfit:
                args, kwargs = spare
                branch.forget()
                verdict = self._deny(str(unfit), gauge)
        # All branches of a step share its fate: a guided difference of a computed and a predicted one is neither.
        owner.verdict = verdict
        if served is None:
            result = self._compute(denoiser, branch, inner, args, kwargs, keep=keep or verdict != plan)
            served = Served(result, True, verdict.reason)
        if gauge is None:
            return served
        if not served.computed and isinstance(branch.site, SpanSite) and branch.site.error is not None:
            gauge.check(branch.site.error)
        gauge.end(served.computed, served.result)
        return served._replace(signal=gauge.signal)

    def _serve_midway(
        self, denoiser: Denoiser, branch: Branch, gauge: Gauge, inner: Call, args: Any, kwargs: Any, *, keep: bool
    ) -> Served:
        """A call whose signal shows itself on the way: the site begins to compute, and goes on or leaves the rest out.

        Raises:
            CacheError: there is no such signal in this denoiser.
        """
        assert self.settings is not None
        assert self._budget is not None
        settings, budget = self.settings, self._budget
        keep = self._keeps(denoiser, keep)

        def ask(value: Tensor, change: Tensor | None) -> bool:
            decision = gauge.see(value, change)
            if decision.compute and keep and not self._observes:
                branch.history.trim(budget.snapshots - 1)
            return decision.compute

        question = Question(ask)
        probe = denoiser.probe(settings)
        through = partial(probe.call, question, inner)
        # The site that there are snapshots of has shown that it fits.
        site = branch.site if len(branch.history) else denoiser.site(budget.site, settings)
        assert isinstance(site, (OutputSite, SpanSite))  # the plan was checked
        spare = fresh((args, kwargs))
        forecast = Forecast(partial(stand_in, settings, self.clock, denoiser, branch, args, kwargs))
        try:
            result, values, computed = site.decide(
                through, args, kwargs, branch.blanks, budget.dtype, forecast, question, keep=keep
            )
        except NowhereError as nowhere:
            raise CacheError(
                f"cache.signal: {denoiser.name} ({type(denoiser.module).__name__}) shows no signal "
                f"{settings.signal!r}: {nowhere}; any denoiser shows: input, estimate"
            ) from None
        except UnfitError as unfit:
            args, kwargs = spare
            if question.answer is False:
                branch.forget()
                self._deny(str(unfit), gauge)
            fallen = another_site(settings, budget, denoiser, branch, unfit, through, args, kwargs, keep=keep)
            (site, result, values), computed = fallen, True
        if computed and keep and values:
            self._show(denoiser, branch, values, args, kwargs)
            self._store(denoiser, branch, site, values)
        branch.last_index = self.clock.index
        decision = gauge.end(computed, result)
        return Served(result, computed, decision.reason if computed else forecast.used, gauge.signal)

    def _shown(self, denoiser: Denoiser, args: Any, kwargs: Any) -> Tensor | str:
        """What a signal that is known before the call is measured on, or why there is no such thing."""
        assert self.settings is not None
        latent = denoiser.port.latent(args, kwargs)
        if latent is None:
            return "it takes no latent"
        if self.settings.signal != "filtered":
            return latent
        found = filtered(latent, *self.clock.shares(self.clock.index), grids_of(args, kwargs))
        return "how its latent lies in space is not known" if found is None else found

    def _deny(self, obstacle: str, gauge: Gauge | None) -> Decision:
        """A step that might be skipped has to be computed."""
        self._denied[obstacle] += 1
        decision = Decision(True, obstacle)
        return decision if gauge is None else gauge.force(decision)

    def _obstacle(self, denoiser: Denoiser, branch: Branch) -> str | None:
        """Why a step that the policy would skip has to be computed."""
        if not len(branch.history):
            if self._budget is not None and self._budget.snapshots == 0:
                return "no room for snapshots"
            return branch.lost or f"no snapshot of {denoiser.name} yet"
        if not branch.history.finite():
            branch.forget()
            return "NaN or infinity in a snapshot"
        return None

    def _skip(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any) -> Served:
        assert self.settings is not None
        assert branch.site is not None
        predict, used = stand_in(self.settings, self.clock, denoiser, branch, args, kwargs)
        result = branch.site.skip(inner, args, kwargs, branch.blanks, predict)
        branch.last_index = self.clock.index
        return Served(result, False, used)

    def _keeps(self, denoiser: Denoiser, keep: bool) -> bool:
        """Whether there is room for what a later step may look at."""
        assert self._budget is not None
        return keep and self._budget.snapshots > 0 and len(denoiser.branches) <= _MOST_BRANCHES

    def _compute(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any, *, keep: bool) -> Any:
        assert self.settings is not None
        assert self._budget is not None
        budget = self._budget
        keep = self._keeps(denoiser, keep)
        if keep and not self._observes:
            branch.history.trim(budget.snapshots - 1)  # before the new one is made: the ceiling holds at any moment
        site = denoiser.site(budget.site, self.settings)
        try:
            result, values = site.compute(inner, args, kwargs, branch.blanks, budget.dtype, keep=keep)
        except UnfitError as unfit:
            fallen = another_site(self.settings, budget, denoiser, branch, unfit, inner, args, kwargs, keep=keep)
            site, result, values = fallen
        if keep and values:
            self._show(denoiser, branch, values, args, kwargs)
            self._store(denoiser, branch, site, values)
        return result

    def _show(self, denoiser: Denoiser, branch: Branch, values: tuple[Tensor, ...], args: Any, kwargs: Any) -> None:
        """Tell an adaptive policy what a computed step showed."""
        gauge = denoiser.gauge or branch.gauge
        if not self._observes or gauge is None:
            return
        assert self.settings is not None
        index, history, predict = self.clock.index, branch.history, None
        if len(history):
            predict, _ = stand_in(self.settings, self.clock, denoiser, branch, args, kwargs)
        sigmas = self.clock.sigma(index), self.clock.sigma(index + 1)
        gauge.policy.observe(observed(index, sigmas, values, history, predict))

    def _store(self, denoiser: Denoiser, branch: Branch, site: Site, values: tuple[Tensor, ...]) -> None:
        assert self._budget is not None
        index = self.clock.index
        if branch.site is not site:
            branch.history.trim(0)
        branch.history.trim(self._budget.snapshots - 1)
        branch.site, branch.last_index = site, index
        others = [other for some in self.denoisers for other in some.branches.values() if other is not branch]
        # A denoiser that has handed over to the next, and a branch that is not called any more, have no claim.
        idle = [other for other in others if other.last_index < index - (other in denoiser.branches.values())]
        values = self._budget.admit(
            values, branch.history, [other.history for other in others], [other.history for other in idle]
        )
        if values:
            branch.history.add(index, tuple(value.contiguous() for value in values), denoiser.port.half)
        gauge = denoiser.gauge or branch.gauge
        measured = 0 if gauge is None else gauge.nbytes
        everything = branch.history.nbytes + measured + sum(other.history.nbytes for other in others)
        self._book.weigh((denoiser.name, branch.name), branch.history.nbytes, everything)

    def learn(self, shown: Shown) -> None:
        """Tell the policy `tolerance` what a computed step showed at the scheduler."""
        for policy in self._tolerances():
            policy.learn(shown)

    def _tolerances(self) -> list[Tolerance]:
        gauges = [some.gauge for some in self.denoisers]
        gauges += [branch.gauge for some in self.denoisers for branch in some.branches.values()]
        policies = [gauge.policy for gauge in gauges if gauge is not None]
        return [policy for policy in policies if isinstance(policy, Tolerance)]

    def _gauge(self, denoiser: Denoiser, branch: Branch, owner: Denoiser | Branch) -> Gauge:
        """The adaptive policy at work, made anew for each run, and where the run's length turns out to be another."""
        assert self.settings is not None
        total = self.clock.total
        if owner.gauge is None or owner.gauge.total != total:
            sigmas = tuple(map(self.clock.sigma, range(total or 0)))
            if self.settings.needs is None or self._figures is None:
                owner.gauge = Gauge(self.settings, total, sigmas)
            else:
                known, lacking = self._figures(denoiser.port)
                if lacking:
                    denoiser.notes["figures"] = self._lacking = lacking
                owner.gauge = Gauge(self.settings, total, sigmas, figures_for(branch.name, known), lacking)
        return owner.gauge

    def begin(self) -> None:
        """A run begins: nothing of the last one counts any more, however it ended."""
        if self._book.calls:
            self._book = Book()
        self._denied = Counter()
        self._ended = False
        self._lacking = ""
        if self.settings is not None:
            self._budget = Budget(self.settings)
        for denoiser in self.denoisers:
            denoiser.notes.pop("figures", None)
            denoiser.arm()

    def end(self) -> None:
        """The last step is done: the snapshots have served their time."""
        self._ended = True
        for denoiser in self.denoisers:
            for branch in denoiser.branches.values():
                branch.forget()

    @property
    def complaint(self) -> str:
        """Why a run skipped nothing although it was asked to; empty where there is nothing to complain of."""
        if not self._stores or self._book.skipped or not self._book.calls:
            return ""
        if self._lacking:
            return self._lacking
        if self._denied:
            return self._denied.most_common(1)[0][0]
        if self._ended and self._adapts and (lowest := self._book.lowest_signal) is not None:
            assert self.settings is not None
            return f"the lowest signal was {lowest:.3g}, above the threshold of {self.settings.threshold:g}"
        if self._ended and self.settings is not None and self.settings.mask is None:
            reasons = ", ".join(f"{count} for {why}" for why, count in self._book.reasons().items())
            return f"every step was computed: {reasons}"
        return ""
