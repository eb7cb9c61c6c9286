"""What is known of a run's steps before they come: which are computed, and whose values a later one will look at."""

from __future__ import annotations

from hasten.caching.clock import Clock
from hasten.caching.policies import Decision, between, every_step, needed
from hasten.caching.settings import Settings
from hasten.caching.vocabulary import FIXED


class Timetable:
    """The steps of one layer, worked out once for each run and each number of steps.

    Args:
        settings: None where every step is computed.
        clock: tells the run and its number of steps.

    Attributes:
        leaves_out: there are steps to skip in a run that is long enough.
        idle: this run is so short that there is nothing to skip in it.
    """

    def __init__(self, settings: Settings | None, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._fixed = every_step if settings is None else settings.fixed
        self.leaves_out = self._fixed is not every_step
        self.idle = False
        self._worked_out: tuple[int, int | None] = (0, None)
        self._decisions: list[Decision] = []
        self._wanted: tuple[bool, ...] = ()

    def at(self, index: int) -> tuple[Decision, bool]:
        """What is known of a step, and whether a later one may look at its values.

        Of an adaptive policy only the steps that are computed in any case are known.
        """
        run = (self._clock.run, self._clock.total)
        if run != self._worked_out:
            self._worked_out = run
            self._work_out(self._clock.total)
        if index < len(self._decisions):
            return self._decisions[index], self._wanted[index]
        return self.planned(index, None), True

    def planned(self, index: int, total: int | None) -> Decision:
        """What is known of a step of a run of so many; of an adaptive policy, a skip is not yet decided."""
        decision = self._fixed(index, total)
        if self._settings is None or self._settings.timesteps is None:
            return decision
        return between(decision, self._clock.timestep(index), self._settings.timesteps)

    def _work_out(self, total: int | None) -> None:
        self._decisions = [self.planned(step, total) for step in range(total or 0)]
        computed = [decision.compute for decision in self._decisions]
        self._wanted = needed(computed, self._settings.snapshots if self._settings is not None else 0)
        if self._settings is not None and self._settings.policy not in FIXED:
            # Any step that may be skipped may turn out computed, and be looked at then.
            self._wanted = tuple(want or not known for want, known in zip(self._wanted, computed, strict=True))
        self.idle = bool(computed) and all(computed)
