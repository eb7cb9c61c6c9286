"""Methods: published names for one site, one policy and one predictor, with their defaults.

No torch in here: the command line lists the methods and checks plans with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from hasten.caching import policies, predictors
from hasten.errors import CacheError

if TYPE_CHECKING:
    from hasten.plan import Cache

SiteName = Literal["output", "residual", "span"]
# Outermost first: what a site leaves out, those further down are not asked for.
_FROM_OUTSIDE: tuple[SiteName, ...] = ("output", "residual", "span")
# Sites that would leave out the same modules, each in its own way.
_RIVALS: tuple[frozenset[SiteName], ...] = (frozenset({"residual", "span"}),)
PredictorName = Literal["reuse", "poly", "taylor"]
Coordinate = Literal["sigma", "index"]
StoreDtype = Literal["model", "fp32", "bf16", "fp16"]


@dataclass(frozen=True)
class Method:
    """A method's parts and defaults.

    Attributes:
        paper: authors, year, arXiv number; empty where the idea has no single source.
        summary: what it does, in a sentence.
        interval, first_enhance, cooldown: see `policies.interval`.
        site: what a skipped step leaves out.
        predictor, coordinate, order, damping, max_amplification: see `predictors`.
    """

    name: str
    paper: str
    summary: str
    interval: int = 4
    first_enhance: int = 3
    cooldown: int = 1
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
    )
}


@dataclass(frozen=True)
class Settings:
    """A cache section with every field filled.

    Attributes:
        site_given: the site was asked for by name, so that another one in its place would be no favour.
        span: so many first and so many last blocks keep running (site `span`; `residual` is (0, 0)).
        mask: the computed steps one by one, in place of interval and first_enhance.
        snapshots: how many computed values are kept.
        size: the ceiling for all snapshots in MiB; None for no ceiling.
    """

    method: str
    interval: int
    first_enhance: int
    cooldown: int
    mask: tuple[int, ...] | None
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
    def policy(self) -> policies.Policy:
        """Compute or skip, as a function of the step's index and the run's length."""
        if self.mask is not None:
            return partial(policies.mask, computed=frozenset(self.mask), cooldown=self.cooldown)
        if self.interval == 1:
            return policies.every_step
        return partial(
            policies.interval, interval=self.interval, first_enhance=self.first_enhance, cooldown=self.cooldown
        )

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
        interval=given("interval"),
        first_enhance=given("first_enhance"),
        cooldown=given("cooldown"),
        mask=None if cache.mask is None else tuple(cache.mask),
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
