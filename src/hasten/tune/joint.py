"""Optuna's part in the search: it proposes whole plans, and learns what came of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hasten.errors import HastenError
from hasten.tune.space import ADAPTIVE, AS_IT_IS, Axis


class Chooser:
    """Proposals one after the other: the obvious ones first, then those of a tree-structured Parzen estimator.

    Bergstra et al. 2011 ("Algorithms for hyper-parameter optimization"); floors are its constraints.

    Args:
        steps: lengths of the run, the reference's first; `adaptive` among them where runs may choose.
        samplers: solvers besides the model's own.

    Raises:
        HastenError: Optuna is not installed.
    """

    def __init__(self, axes: Sequence[Axis], steps: Sequence[int | str], samplers: Sequence[str], seed: int) -> None:
        try:
            import optuna
        except ImportError as error:
            raise HastenError("hasten tune needs Optuna: pip install 'hasten[tune]'") from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._axes, self._steps, self._samplers = axes, steps, samplers
        self._study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=6))
        self._asked: Any = None

    def begin(self, known: Sequence[Mapping[str, Any]]) -> None:
        """First what was tried before, then the obvious: every part at work, and ever fewer computed steps."""
        parts = {axis.name: next(iter(axis.options)) for axis in self._axes}
        first = [{"cache": "schedule", "share": share} for share in (0.4, 0.3, 0.24, 0.2, 0.16, 0.12, 0.08, 0.06)]
        first += [{"cache": "tolerance", "tolerance": tolerance} for tolerance in (0.01, 0.03, 0.1)]
        plain = {"steps": self._steps[0], "sampler": AS_IT_IS}
        proposals = [{**plain, **parts, **one} for one in first]
        if ADAPTIVE in self._steps:
            own = {**plain, **parts, "steps": ADAPTIVE}
            proposals += [{**own, "cache alone": "none"}, {**own, "cache alone": "tolerance", "tolerance": 0.03}]
        before = [{**one, "cache alone": one.get("cache", "none")} for one in known]
        for chosen in [*before, *proposals]:
            self._study.enqueue_trial(dict(chosen))

    def ask(self) -> dict[str, Any]:
        """The next proposal."""
        self._asked = trial = self._study.ask()
        chosen: dict[str, Any] = {"steps": trial.suggest_categorical("steps", list(self._steps))}
        if chosen["steps"] == ADAPTIVE:  # a schedule is for one number of steps
            chosen["cache"] = trial.suggest_categorical("cache alone", ["tolerance", "none"])
        else:
            chosen["cache"] = trial.suggest_categorical("cache", ["schedule", "tolerance", "none"])
        if chosen["cache"] == "schedule":
            chosen["share"] = trial.suggest_float("share", 0.05, 0.5)
        elif chosen["cache"] == "tolerance":
            chosen["tolerance"] = trial.suggest_float("tolerance", 0.005, 0.5, log=True)
        chosen["sampler"] = trial.suggest_categorical("sampler", [AS_IT_IS, *self._samplers])
        for axis in self._axes:
            chosen[axis.name] = trial.suggest_categorical(axis.name, [AS_IT_IS, *axis.options])
        return chosen

    def tell(self, cost: float, margin: float) -> None:
        """What came of the last proposal.

        Args:
            margin: see `Tuner.margin`.
        """
        self._asked.set_constraint("floors", -margin)  # holds at 0 and below
        self._study.tell(self._asked, cost)
