"""Settings: what a layer of the cache runs by, with nothing left open.

No torch in here: the command line checks plans with it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from hasten.caching import masks, policies
from hasten.caching.adaptive import (
    Accumulate,
    Adaptive,
    Codebook,
    Compare,
    Lacking,
    Table,
    Verify,
    polynomial,
    stretched,
)
from hasten.caching.figures import Figures
from hasten.caching.prediction import Prediction
from hasten.caching.tolerance import Tolerance
from hasten.caching.vocabulary import (
    PolicyName,
    SignalName,
    SiteName,
    StoreDtype,
)

if TYPE_CHECKING:
    pass


@dataclass(frozen=True, kw_only=True)
class Settings(Prediction):
    """A cache section with every field filled.

    Attributes:
        site_given: the site was asked for, by its name or by that of a method which it makes up, so that another one in
            its place would be no favour.
        span: so many first and so many last blocks keep running (sites `span` and `last_block`).
        branch: the skip connection that the deep part of a UNet is cut off at (site `unet_branch`).
        mask: the computed steps one by one, in place of interval and first_enhance.
        codebook: of policy codebook.
        decay: of policy verify.
        tolerance: of policy tolerance.
        rescaled: not the signal is summed but what a polynomial makes of it.
        calibration: the file with the figures that this `needs`; None to look where they are kept.
        probe: so many blocks run before a signal in the middle of the call is measured.
        budget, bins, window, growth: of the policies `geometric`, `bins` and `window`.
        center, power: where the computed steps of a run gather, and how closely; None where they are spread evenly.
        snapshots: how many computed values are kept.
        correct: what skipped steps did wrong is put right at the next computed one, see `ledger`.
        size: the ceiling for all snapshots in MiB; None for no ceiling.
    """

    method: str
    policy: PolicyName
    interval: int | None
    first_enhance: int
    cooldown: int
    retention: float
    mask: tuple[int, ...] | None
    bins: masks.BinsName | None
    budget: int | None
    window: float
    growth: float
    signal: SignalName | None
    threshold: float | None
    tolerance: float | None
    max_skips: int | None
    max_total_skips: int | None
    max_drift: float | None
    polynomial: tuple[float, ...] | None
    rescaled: bool
    codebook: tuple[tuple[float, int], ...] | None
    ratios: tuple[float, ...] | None
    calibration: Path | None
    decay: float
    branches: Literal["shared", "own"]
    center: int | None
    power: float | None
    site: SiteName
    site_given: bool
    span: tuple[int, int]
    branch: int
    probe: int
    snapshots: int
    size: float | None
    store_dtype: StoreDtype
    timesteps: tuple[float, float] | None
    gate_step: int | None
    fi_interval: int | None
    gains: tuple[float, float]
    low_timesteps: tuple[float, float]
    high_timesteps: tuple[float, float]
    conditional_only: bool
    halves: Literal["conditional", "mean"]
    correct: bool

    @property
    def steps(self) -> Callable[[int], tuple[int, ...]] | None:
        """The steps to compute, given the number of steps, where the policy is such a mask."""
        if self.bins is not None:
            return partial(masks.binned, name=self.bins)
        if self.policy == "geometric":
            assert self.budget is not None
            return partial(masks.geometric, budget=self.budget, power=self.power)
        if self.policy == "window":
            return partial(masks.widening, first=self.window, growth=self.growth, warm=self.first_enhance)
        return None

    @property
    def fixed(self) -> policies.Policy:
        """Compute or skip, as a function of the step's index and the run's length.

        Of an adaptive policy these are the steps that are computed in any case; at the others it decides.
        """
        if self.mask is not None:
            return partial(policies.mask, computed=frozenset(self.mask), cooldown=self.cooldown)
        if self.steps is not None:
            return partial(policies.planned, steps=cache(self.steps), cooldown=self.cooldown)
        if self.policy == "gate":
            assert self.gate_step is not None
            return partial(
                policies.gate,
                gate_step=self.gate_step,
                interval=self.interval,
                after=self.fi_interval,
                first_enhance=self.first_enhance,
            )
        if self.interval == 1:
            return policies.every_step
        if self.interval is not None and self.center is not None and self.power is not None:
            return partial(
                policies.quadratic,
                every=self.interval,
                center=self.center,
                power=self.power,
                first_enhance=self.first_enhance,
                cooldown=self.cooldown,
            )
        return partial(
            policies.interval,
            interval=self.interval,
            first_enhance=self.first_enhance,
            cooldown=self.cooldown,
            retention=self.retention,
        )

    @property
    def signal_text(self) -> str:
        """The signal in words, as the report shows it."""
        if self.policy == "verify":
            return f"error of the draft (each against {self.threshold:g})"
        if self.signal is None or self.threshold is None:
            return ""
        how = "its sum" if self.policy == "accumulate" else "each"
        rescaled = "rescaled, " if self.rescaled or self.polynomial is not None else ""
        return f"{self.signal} ({rescaled}{how} against {self.threshold:g})"

    @property
    def needs(self) -> Literal["ratios", "polynomial"] | None:
        """The figures that have to be measured, because the plan does not give them."""
        if self.policy == "table" and self.ratios is None:
            return "ratios"
        return "polynomial" if self.rescaled and self.polynomial is None else None

    def adaptive(self, sigmas: Sequence[float], figures: Figures | None = None, lacking: str = "") -> Adaptive | None:
        """A policy with state, for one run of one denoiser; None where `fixed` says it all.

        Args:
            sigmas: the noise levels of the run's steps; empty where they are not known beforehand.
            figures: what was measured, where this `needs` it.
            lacking: why there are none.
        """
        limits = (self.fixed, self.max_skips, self.max_total_skips)
        if self.needs is not None and (figures is None or not getattr(figures, self.needs)):
            return Lacking(*limits, lacking or f"the calibration has no {self.needs}")
        if self.policy == "table":
            assert self.threshold is not None
            if self.ratios is not None:
                ratios = stretched(self.ratios, len(sigmas) or len(self.ratios))
            else:
                assert figures is not None
                ratios = figures.ratios_at(sigmas)
            return Table(*limits, ratios, self.threshold)
        if self.policy == "verify":
            assert self.threshold is not None
            return Verify(*limits, self.threshold, self.decay)
        if self.policy == "tolerance":
            assert self.tolerance is not None
            return Tolerance(*limits, tolerance=self.tolerance, order=self.order, corrects=self.correct)
        if self.policy == "codebook":
            assert self.codebook is not None
            return Codebook(*limits, self.codebook)
        if self.policy == "compare":
            assert self.threshold is not None
            return Compare(*limits, self.threshold, self.max_drift)
        if self.policy == "accumulate":
            assert self.threshold is not None
            rescale: Callable[[float], float] | None = None
            if self.polynomial is not None:
                rescale = partial(polynomial, self.polynomial)
            elif self.rescaled and figures is not None:
                rescale = figures.rescale
            return Accumulate(*limits, self.threshold, rescale)
        return None

    def guidance_gains(self, timesteps: Sequence[float | None]) -> tuple[float, float]:
        """What the low and the high frequencies of the guidance's difference are multiplied with at a skipped step.

        As FasterCache was published, the factor applies once for each skipped step within its timesteps.

        Args:
            timesteps: of the skipped steps since the last computed one, on the scale from 0 to 1000.
        """
        low = high = 1.0
        for timestep in timesteps:
            low *= self.gains[0] if _within(timestep, self.low_timesteps) else 1
            high *= self.gains[1] if _within(timestep, self.high_timesteps) else 1
        return low, high


def _within(timestep: float | None, bounds: tuple[float, float]) -> bool:
    return timestep is None or bounds[0] < timestep < bounds[1]
