"""Adaptive policies: whether a step is computed depends on what was seen in the run so far.

One object serves one denoiser for one run, so that nothing is left over for the next. It gets numbers and gives
decisions: no torch in here, and no model. The engine asks once per step:

    decide(index, total)          None where only the signal can tell
    decide(index, total, signal)  then always a decision
    settle(index, computed)       what became of the step: a skip may have been impossible
    observe(seen)                 what a computed step showed, for policies that set `observes`
    check(index, total, error)    how wrong a skipped step was, where the site verifies

A new policy overrides `judge`, and `settle` where it remembers something.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, isfinite
from typing import ClassVar

from hasten.caching.policies import Decision, Policy


@dataclass(frozen=True)
class Observed:
    """What a computed step showed of the cached value y; each branch of the step shows its own.

    All are floats; size, change and error are means over all elements.

    Attributes:
        index: the step.
        sigmas: its noise level, and that of the step after it (its own again where there is none).
        size: mean |y|.
        change: mean |y − y′| against the last computed y′; None at a branch's first value.
        error: mean |y − ŷ| of the prediction ŷ that would have stood in; None where there was nothing to predict from.
        growth: mean over tokens of ‖y‖ / ‖y′‖; None at a branch's first value.
    """

    index: int
    sigmas: tuple[float, float]
    size: float
    change: float | None = None
    error: float | None = None
    growth: float | None = None


@dataclass
class Adaptive:
    """Skips until something speaks against it: the part that all adaptive policies share.

    Args:
        guard: a static policy for the steps that are computed in any case: warm-up, cool-down, a mask.
        max_skips: so many steps in a row are skipped at most; None for no limit.
        max_total_skips: so many steps of the run are skipped at most; None for no limit.
    """

    guard: Policy
    max_skips: int | None = None
    max_total_skips: int | None = None

    observes: ClassVar[bool] = False
    """Whether `observe` is to be told; each look costs a pass over the cached value."""

    def __post_init__(self) -> None:
        self.skipped_in_a_row = 0
        self.skipped = 0
        self.shares: tuple[float, ...] | None = None
        """Of each degree, from 0 up, in the next prediction, where the policy chooses it."""

    def decide(self, index: int, total: int | None, signal: float | None = None) -> Decision | None:
        """Compute or skip.

        Args:
            index: the step, from 0.
            total: the number of steps of the run, None when nobody knows it.
            signal: what was measured, where it was asked for; may be NaN.

        Returns:
            None where the signal is needed and was not given.
        """
        forced = self.guard(index, total)
        if forced.compute:
            return forced
        if self.max_skips is not None and self.skipped_in_a_row >= self.max_skips:
            return Decision(True, "max_skips reached")
        if self.max_total_skips is not None and self.skipped >= self.max_total_skips:
            return Decision(True, "max_total_skips reached")
        if signal is None:
            return self.foresee(index, total)
        if not isfinite(signal):
            return Decision(True, "nothing to compare with")
        return self.judge(signal)

    def foresee(self, index: int, total: int | None) -> Decision | None:
        """A decision that needs no signal."""
        return None

    def judge(self, signal: float) -> Decision:
        """A decision by a finite signal."""
        raise NotImplementedError

    def settle(self, index: int, computed: bool) -> None:
        """Learn what became of a step."""
        self.skipped_in_a_row = 0 if computed else self.skipped_in_a_row + 1
        self.skipped += not computed

    def observe(self, seen: Observed) -> None:
        """Learn what a computed step showed."""

    def check(self, index: int, total: int | None, error: float) -> None:
        """Learn how wrong the prediction of a skipped step was; may be NaN."""


@dataclass
class Accumulate(Adaptive):
    """Skip while the signals since the last computed step sum to less than a threshold.

    TeaCache (Liu et al. 2025, arXiv 2411.19108), EasyCache (Zhou et al. 2025, arXiv 2507.02860) and DiCache (Bu et al.
    2025, arXiv 2508.17356) decide like this, each by its own signal.

    Args:
        threshold: for the sum.
        rescale: a function of the signal that is summed in its place.
    """

    threshold: float = 0.0
    rescale: Callable[[float], float] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sum = 0.0

    def judge(self, signal: float) -> Decision:
        self.sum += signal if self.rescale is None else self.rescale(signal)
        return Decision(not self.sum < self.threshold, "threshold reached")

    def settle(self, index: int, computed: bool) -> None:
        super().settle(index, computed)
        if computed:
            self.sum = 0.0


@dataclass
class Compare(Adaptive):
    """Skip while the signal, against that of the last computed step, is at most a threshold.

    First-block cache (Cheng 2024, ParaAttention) and DBCache (cache-dit) decide like this.

    Args:
        threshold: for the signal.
        max_drift: for the sum of the signals since the last computed step; None for no limit.
    """

    threshold: float = 0.0
    max_drift: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        self.drift = 0.0

    def judge(self, signal: float) -> Decision:
        self.drift += signal
        if signal > self.threshold:
            return Decision(True, "signal over threshold")
        if self.max_drift is not None and self.drift > self.max_drift:
            return Decision(True, "over max_drift")
        return Decision(False, "threshold")

    def settle(self, index: int, computed: bool) -> None:
        super().settle(index, computed)
        if computed:
            self.drift = 0.0


@dataclass
class Table(Adaptive):
    """Skip while a table says that the cached residual has hardly grown or shrunk.

    MagCache (Ma et al. 2025, arXiv 2506.09045) decides like this.

    With γ_k the table's ratio of the residual's size at step k to that at step k − 1, a step is skipped while
    `Σ |1 − Π γ| ≤ threshold` over the steps since the last computed one. There is no signal: the steps follow from the
    table alone.

    Args:
        ratios: γ_k for each step of the run; a step beyond the table is computed.
        threshold: for the sum.
    """

    ratios: Sequence[float] = ()
    threshold: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.ratio, self.error = 1.0, 0.0

    def foresee(self, index: int, total: int | None) -> Decision:
        if index >= len(self.ratios):
            return Decision(True, "beyond the table")
        self.ratio *= self.ratios[index]
        self.error += abs(1 - self.ratio)
        return Decision(not self.error <= self.threshold, "table over threshold")

    def settle(self, index: int, computed: bool) -> None:
        super().settle(index, computed)
        if computed:
            self.ratio, self.error = 1.0, 0.0


@dataclass
class Verify(Adaptive):
    """Skip until a prediction proves wrong; the step after it is computed.

    SpeCa (Liu et al. 2025, arXiv 2509.11628) decides like this: a skipped step is a draft that its last block verifies.

    Args:
        threshold: for the relative error of a draft at the start of the run.
        decay: what is left of the threshold at the end of the run, as a factor; in between it falls geometrically.
    """

    threshold: float = 0.0
    decay: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.rejected = False

    def foresee(self, index: int, total: int | None) -> Decision:
        return Decision(self.rejected, "draft rejected")

    def check(self, index: int, total: int | None, error: float) -> None:
        limit = self.threshold * self.decay ** (index / total if total else 0)
        self.rejected = not error <= limit

    def settle(self, index: int, computed: bool) -> None:
        super().settle(index, computed)
        if computed:
            self.rejected = False


@dataclass
class Codebook(Adaptive):
    """Skip as many steps after a computed one as a list says for how fast the cached value changed up to it.

    AdaCache (Kahatapitiya et al. 2024, arXiv 2411.02397) and BWCache (Cui et al. 2025, arXiv 2509.13789) decide like
    this. There is no signal: what a computed step shows is enough.

    Args:
        codebook: (up to this relative change per step, so many steps are skipped), the changes ascending; a faster
            change skips none.
    """

    codebook: Sequence[tuple[float, int]] = ()

    observes = True

    def __post_init__(self) -> None:
        super().__post_init__()
        self._step, self._last, self._rate = -1, 0, inf

    def foresee(self, index: int, total: int | None) -> Decision:
        most = next((count for limit, count in self.codebook if self._rate <= limit), 0)
        return Decision(self.skipped_in_a_row >= most, "codebook")

    def observe(self, seen: Observed) -> None:
        """The branch that changes fastest speaks for all."""
        if seen.index != self._step:
            self._last, self._step, self._rate = self._step, seen.index, 0.0
        if seen.change is None or not seen.size:
            self._rate = inf
        else:
            self._rate = max(self._rate, seen.change / seen.size / max(seen.index - self._last, 1))


@dataclass
class Lacking(Adaptive):
    """Computes every step, because the figures that would decide are not there.

    Args:
        why: the reason, as the report shows it.
    """

    why: str = ""

    def foresee(self, index: int, total: int | None) -> Decision:
        return Decision(True, self.why)


def polynomial(coefficients: Sequence[float], signal: float) -> float:
    """A polynomial's value, highest power first, as TeaCache's tables are written; never below 0.

    A fitted polynomial may dip below 0 between its data, and what has changed cannot have changed back: a negative
    term in the sum would buy skips for which nothing speaks.

    >>> polynomial((2.0, -1.0, 0.5), 2.0)
    6.5
    """
    value = 0.0
    for coefficient in coefficients:
        value = value * signal + coefficient
    return max(value, 0.0)


def stretched(ratios: Sequence[float], total: int) -> tuple[float, ...]:
    """A table of ratios for another number of steps, by the nearest step, as MagCache publishes it.

    >>> stretched((1.0, 1.2, 1.1), 5)
    (1.0, 1.0, 1.2, 1.1, 1.1)
    """
    scale = (len(ratios) - 1) / max(total - 1, 1)
    return tuple(ratios[round(k * scale)] for k in range(total))
