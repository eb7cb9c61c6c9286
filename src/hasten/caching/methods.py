"""Methods: published names for one site, one policy and one predictor, with their defaults.

No torch in here: the command line lists the methods and checks plans with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hasten.caching import policies, predictors
from hasten.caching.adaptive import Accumulate, Adaptive, Compare, Table, polynomial, stretched
from hasten.errors import CacheError

if TYPE_CHECKING:
    from hasten.plan import Cache

SiteName = Literal["output", "latent", "residual", "span"]
# Outermost first: what a site leaves out, those further down are not asked for.
_FROM_OUTSIDE: tuple[SiteName, ...] = ("output", "latent", "residual", "span")
# Sites that would leave out the same modules, each in its own way.
_RIVALS: tuple[frozenset[SiteName], ...] = (frozenset({"output", "latent"}), frozenset({"residual", "span"}))
PolicyName = Literal["interval", "mask", "accumulate", "compare", "table"]
SignalName = Literal["input", "estimate"]
PredictorName = Literal["reuse", "poly", "taylor"]
Coordinate = Literal["sigma", "index"]
StoreDtype = Literal["model", "fp32", "bf16", "fp16"]

FIXED: tuple[PolicyName, ...] = ("interval", "mask")
"""Policies whose steps are known before the run."""


@dataclass(frozen=True)
class Method:
    """A method's parts and defaults.

    Attributes:
        paper: authors, year, arXiv number; empty where the idea has no single source.
        summary: what it does, in a sentence.
        policy: what decides; see `policies` and `adaptive`.
        interval, first_enhance, cooldown: see `policies.interval`.
        retention: this share of a run's steps is computed at its start, if that is more than `first_enhance`.
        signal: what is measured, for a policy that needs it; see `signals`.
        threshold, max_skips: see `adaptive`.
        site: what a skipped step leaves out.
        predictor, coordinate, order, damping, max_amplification: see `predictors`.
    """

    name: str
    paper: str
    summary: str
    policy: PolicyName = "interval"
    interval: int = 4
    first_enhance: int = 3
    cooldown: int = 1
    retention: float = 0.0
    signal: SignalName | None = None
    threshold: float | None = None
    max_skips: int | None = None
    site: SiteName = "residual"
    predictor: PredictorName = "poly"
    coordinate: Coordinate = "sigma"
    order: int = 1
    damping: float = 1.0
    max_amplification: float = 4.0


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Method(
            name="taylorseer",
            paper="Liu et al. 2025, arXiv 2503.06923",
            summary="a skipped step is extrapolated from the last computed ones",
            order=2,  # this and the damping: what the measured table in docs/caching.md says
            damping=0.75,
        ),
        Method(
            name="reuse",
            paper="",
            summary="a skipped step repeats the last computed one",
            predictor="reuse",
            order=0,
        ),
        Method(
            name="easycache",
            paper="Zhou et al. 2025, arXiv 2507.02860",
            summary="skips while the output's change, estimated from the input's, sums to less than a threshold",
            policy="accumulate",
            signal="estimate",
            threshold=0.05,
            first_enhance=5,
            site="latent",
            predictor="reuse",
            order=0,
        ),
        Method(
            name="magcache",
            paper="Ma et al. 2025, arXiv 2506.09045",
            summary="skips where a measured table says that the residual hardly changes its size",
            policy="table",
            threshold=0.06,
            max_skips=3,
            first_enhance=0,
            retention=0.2,
            cooldown=0,
            predictor="reuse",
            order=0,
        ),
    )
}


@dataclass(frozen=True)
class Settings:
    """A cache section with every field filled.

    Attributes:
        site_given: the site was asked for by name, so that another one in its place would be no favour.
        span: so many first and so many last blocks keep running (site `span`; `residual` is (0, 0)).
        mask: the computed steps one by one, in place of interval and first_enhance.
        shared: the first branch of a step decides for all.
        snapshots: how many computed values are kept.
        size: the ceiling for all snapshots in MiB; None for no ceiling.
    """

    method: str
    policy: PolicyName
    interval: int | None
    first_enhance: int
    cooldown: int
    retention: float
    mask: tuple[int, ...] | None
    signal: SignalName | None
    threshold: float | None
    max_skips: int | None
    max_total_skips: int | None
    max_drift: float | None
    polynomial: tuple[float, ...] | None
    ratios: tuple[float, ...] | None
    branches: Literal["shared", "own"]
    site: SiteName
    site_given: bool
    span: tuple[int, int]
    predictor: PredictorName
    coordinate: Coordinate
    order: int
    damping: float
    max_amplification: float
    snapshots: int
    size: float | None
    store_dtype: StoreDtype

    @property
    def fixed(self) -> policies.Policy:
        """Compute or skip, as a function of the step's index and the run's length.

        Of an adaptive policy these are the steps that are computed in any case; at the others it decides.
        """
        if self.mask is not None:
            return partial(policies.mask, computed=frozenset(self.mask), cooldown=self.cooldown)
        if self.interval == 1:
            return policies.every_step
        return partial(
            policies.interval,
            interval=self.interval,
            first_enhance=self.first_enhance,
            cooldown=self.cooldown,
            retention=self.retention,
        )

    def adaptive(self, sigmas: Sequence[float]) -> Adaptive | None:
        """A policy with state, for one run of one denoiser; None where `fixed` says it all.

        Args:
            sigmas: the noise levels of the run's steps; empty where they are not known beforehand.
        """
        limits = (self.fixed, self.max_skips, self.max_total_skips)
        if self.policy == "table":
            assert self.ratios is not None
            assert self.threshold is not None
            return Table(*limits, stretched(self.ratios, len(sigmas) or len(self.ratios)), self.threshold)
        if self.policy == "compare":
            assert self.threshold is not None
            return Compare(*limits, self.threshold, self.max_drift)
        if self.policy == "accumulate":
            assert self.threshold is not None
            rescale = None if self.polynomial is None else partial(polynomial, self.polynomial)
            return Accumulate(*limits, self.threshold, rescale)
        return None

    def weights(
        self, indices: tuple[int, ...], index: int, sigmas: tuple[float, ...], sigma: float
    ) -> tuple[float, ...]:
        """The predictor's weights for one skipped step, newest snapshot first.

        Args:
            indices, sigmas: where the snapshots lie on the schedule, newest first.
            index, sigma: where the skipped step lies.
        """
        if self.predictor == "reuse":
            return predictors.reuse(indices, index)
        if self.predictor == "taylor":
            gate = self.first_enhance if self.mask is None else 0
            weights = predictors.taylor(indices, index, self.order, gate)
        elif self.coordinate == "index":
            weights = predictors.poly(indices, index, self.order, self.max_amplification)
        else:
            weights = predictors.poly(sigmas, sigma, self.order, self.max_amplification)
        return predictors.damped(weights, self.damping)

    @property
    def predictor_text(self) -> str:
        """The predictor in words, as the report shows it."""
        if self.predictor == "reuse":
            return "reuse"
        damping = "" if self.damping == 1 else f", damping {self.damping:g}"
        return f"{self.predictor} of order {self.order} in {self.coordinate}{damping}"


def resolve(cache: Cache | Mapping[str, Any]) -> Settings:
    """Fill a cache section with its method's defaults.

    Args:
        cache: the section of a plan, or its keys.

    Raises:
        PlanError: a mapping that is no valid section.
        CacheError: a combination that no method can take.
    """
    if isinstance(cache, Mapping):
        from hasten.plan import load_plan

        (cache,) = load_plan({"cache": dict(cache)}).caches
    method = METHODS[cache.method]

    def given(name: str) -> Any:
        value = getattr(cache, name)
        return getattr(method, name) if value is None else value

    policy: PolicyName = given("policy")
    if cache.policy is None and policy == "interval" and cache.mask is not None:
        policy = "mask"
    predictor: PredictorName = given("predictor")
    order: int = 0 if predictor == "reuse" else given("order")
    if cache.order is None and predictor not in ("reuse", method.predictor):
        order = 1  # the method's own order is that of its own predictor
    snapshots = order + 1 if cache.snapshots is None else cache.snapshots
    if snapshots < order + 1:
        raise CacheError(f"order {order} needs {order + 1} snapshots, not {snapshots}")
    site: SiteName = given("site")
    # The published recursion is not damped unless somebody asks for it.
    damping: float = 1.0 if predictor == "taylor" and cache.damping is None else given("damping")
    return Settings(
        method=method.name,
        policy=policy,
        interval=given("interval") if policy == "interval" else None,
        first_enhance=given("first_enhance"),
        cooldown=given("cooldown"),
        retention=given("retention"),
        mask=None if cache.mask is None else tuple(cache.mask),
        **_adaptive_part(cache, method, policy),
        branches=cache.branches or "shared",
        site=site,
        site_given=cache.site is not None,
        span=(1, 0) if site == "span" and cache.span is None else (cache.span or (0, 0)),
        predictor=predictor,
        # The published recursion counts steps.
        coordinate="index" if predictor == "taylor" else given("coordinate"),
        order=order,
        damping=damping,
        max_amplification=given("max_amplification"),
        snapshots=snapshots,
        size=cache.size,
        store_dtype=cache.store_dtype or "model",
    )


def resolve_all(caches: Cache | Sequence[Cache] | None) -> tuple[Settings, ...]:
    """The layers of a plan's cache, outermost first; none where it skips nothing.

    Raises:
        CacheError: a section that no method can take, or two that leave out the same.
    """
    sections = () if caches is None else caches if isinstance(caches, Sequence) else (caches,)
    layers = [resolve(section) for section in sections]
    for number, layer in enumerate(layers):
        for before, other in enumerate(layers[:number]):
            if layer.site == other.site:
                raise CacheError(f"sections {before} and {number} both cache site {layer.site}; one of them is enough")
            if any({layer.site, other.site} <= rivals for rivals in _RIVALS):
                raise CacheError(
                    f"sections {before} and {number} leave out the same modules (sites {other.site} and {layer.site})"
                )
    return tuple(sorted(layers, key=lambda layer: _FROM_OUTSIDE.index(layer.site)))


def _adaptive_part(cache: Cache, method: Method, policy: PolicyName) -> dict[str, Any]:
    """What an adaptive policy needs; of its own method where that has the same policy, else from the plan alone."""
    names = ("signal", "threshold", "max_skips", "max_total_skips", "max_drift", "polynomial", "ratios")
    values: dict[str, Any] = {name: getattr(cache, name) for name in names}
    if policy in FIXED:
        return values
    if policy == method.policy:
        for name in ("threshold", "max_skips"):
            values[name] = getattr(method, name) if values[name] is None else values[name]
        if values["signal"] is None:
            values["signal"] = method.signal
    if values["threshold"] is None:
        raise CacheError(f"policy {policy!r} needs cache.threshold: no value of it is right for every model")
    if policy == "table":
        if values["ratios"] is None:
            raise CacheError("policy 'table' needs cache.ratios, a measured number for each step")
        values["ratios"] = tuple(values["ratios"])
    elif values["signal"] is None:
        raise CacheError(f"policy {policy!r} needs cache.signal: what it is to measure")
    if values["polynomial"] is not None:
        values["polynomial"] = tuple(values["polynomial"])
    return values
