"""Methods: published names for one site, one policy and one predictor, with their defaults.

No torch in here: the command line lists the methods and checks plans with it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

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
from hasten.caching.prediction import KINDS, TUNABLE, Coordinate, Prediction, PredictorName
from hasten.errors import CacheError

if TYPE_CHECKING:
    from hasten.plan import Cache

SiteName = Literal[
    "guidance",
    "output",
    "latent",
    "residual",
    "unet_branch",
    "span",
    "last_block",
    "block",
    "attention",
    "spatial_attention",
    "temporal_attention",
    "cross_attention",
    "feed_forward",
]
# Outermost first: what a site leaves out, those further down are not asked for.
_FROM_OUTSIDE: tuple[SiteName, ...] = get_args(SiteName)
# Sites that would leave out the same modules, each in its own way.
_RIVALS: tuple[frozenset[SiteName], ...] = (
    frozenset({"output", "latent"}),
    frozenset({"residual", "unet_branch", "span", "last_block", "block"}),
    frozenset({"attention", "spatial_attention"}),
    frozenset({"attention", "temporal_attention"}),
)
WITHIN = frozenset(_FROM_OUTSIDE) - {"output", "latent", "residual", "unet_branch", "span", "last_block"}
"""Sites that some denoisers do not have, and that no other can stand in for."""
PolicyName = Literal[
    "interval", "mask", "geometric", "bins", "window", "gate", "accumulate", "compare", "table", "codebook", "verify"
]
SignalName = Literal["input", "estimate", "modulated", "state", "probe"]
MIDWAY: tuple[SignalName, ...] = ("modulated", "state", "probe")
"""Signals that show themselves in the middle of a call: only a site that can begin undecided goes with them."""
_UNDECIDED: tuple[SiteName, ...] = ("output", "latent", "residual", "span", "last_block", "unet_branch")
StoreDtype = Literal["model", "fp32", "bf16", "fp16"]

FIXED: tuple[PolicyName, ...] = ("interval", "mask", "geometric", "bins", "window", "gate")
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
        window, growth: see `masks.widening`.
        signal: what is measured, for a policy that needs it; see `signals`.
        threshold, max_skips: see `adaptive`.
        rescaled: a measured polynomial of the signal is summed in its place.
        codebook, decay: see `adaptive.Codebook` and `adaptive.Verify`.
        site, span: what a skipped step leaves out.
        branch: with site unet_branch, the skip connection that the deep part is cut off at.
        predictor to snapshots: see `prediction.Prediction`; a None is the predictor's own default.
        timesteps: steps are skipped only where the timestep lies between these two, on the scale from 0 to 1000.
        gate_step, fi_interval: see `policies.gate`.
        gains, low_timesteps, high_timesteps: see `Settings.guidance_gains`.
        conditional_only: nothing is skipped in a step whose unconditional branch is computed.
        halves: what of a batch's two halves stands in for the conditional one, where that is called alone.
        layers: of a method of several sites, each of them with its defaults; those of the method itself say what its
            section may hold.
        deaf: keys of the section that are not for this layer.
    """

    name: str
    paper: str
    summary: str
    policy: PolicyName = "interval"
    interval: int | None = 4
    first_enhance: int = 3
    cooldown: int = 1
    retention: float = 0.0
    window: float = 2.0
    growth: float = 0.75
    signal: SignalName | None = None
    threshold: float | None = None
    max_skips: int | None = None
    decay: float = 1.0
    rescaled: bool = False
    codebook: tuple[tuple[float, int], ...] | None = None
    site: SiteName = "residual"
    span: tuple[int, int] = (1, 0)
    branch: int = 0
    predictor: PredictorName = "poly"
    coordinate: Coordinate = "sigma"
    order: int | None = None
    damping: float = 1.0
    max_amplification: float = 4.0
    sigma_scale: float = 0.5
    ridge: float = 0.1
    blend: float = 0.5
    trust: float | None = None
    low_order: int | None = None
    cut: float = 0.1
    snapshots: int | None = None
    timesteps: tuple[float, float] | None = None
    gate_step: int | None = None
    fi_interval: int | None = None
    gains: tuple[float, float] = (1.0, 1.0)
    low_timesteps: tuple[float, float] = (99, 901)
    high_timesteps: tuple[float, float] = (-1, 301)
    conditional_only: bool = False
    halves: Literal["conditional", "mean"] = "conditional"
    layers: tuple[Method, ...] = ()
    deaf: frozenset[str] = frozenset()

    def at(self, layers: Mapping[SiteName, Mapping[str, Any]]) -> Method:
        """The method with a layer at each of these sites, given where their defaults differ from the method's."""
        return replace(self, layers=tuple(replace(self, site=site, **own) for site, own in layers.items()))


_ALL = (-1.0, 1001.0)
_UNTIL_THE_GATE: dict[str, Any] = {
    "first_enhance": 1,
    "interval": 1,
    "fi_interval": None,
    "deaf": frozenset({"first_enhance", "interval", "fi_interval"}),
}

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
        ),
        Method(
            name="hicache",
            paper="Feng et al. 2025, arXiv 2508.16984",
            summary="scaled Hermite polynomials in the place of TaylorSeer's powers",
            interval=7,
            predictor="hermite",
            order=2,
        ),
        Method(
            name="foca",
            paper="Zheng et al. 2025, arXiv 2508.16211",
            summary="a forecast by BDF2, calibrated by Heun's rule",
            interval=6,
            predictor="foca",
            coordinate="index",
        ),
        Method(
            name="ab-cache",
            paper="Yu et al. 2025, arXiv 2504.10540",
            summary="a skipped step goes on as an Adams–Bashforth solver of second order would",
            predictor="ab2",
            coordinate="index",
        ),
        Method(
            name="dmd",
            paper="Schmid 2010; for caching the project hicache-plus-plus",
            summary="the last computed steps are taken for a few modes that turn and decay",
            predictor="dmd",
        ),
        Method(
            name="spectrum",
            paper="Han et al. 2026, arXiv 2603.01623",
            summary="a ridge regression on Chebyshev polynomials over the run so far",
            policy="window",
            first_enhance=5,
            predictor="chebyshev",
        ),
        Method(
            name="freqca",
            paper="Liu et al. 2025, arXiv 2510.08669",
            summary="low frequencies are reused, high ones predicted by Hermite polynomials of order 2",
            interval=6,
            predictor="hermite",
            order=2,
            low_order=0,
        ),
        Method(
            name="taylorcache",
            paper="AngelSlim's TaylorCacheHelper",
            summary="TaylorSeer in two frequency bands, each of its own order",
            predictor="taylor",
            order=2,
            low_order=1,
        ),
        Method(
            name="teacache",
            paper="Liu et al. 2024, arXiv 2411.19108",
            summary="skips while the first block's modulated input changes, rescaled and in sum, less than a threshold",
            policy="accumulate",
            signal="modulated",
            rescaled=True,
            threshold=0.2,
            first_enhance=1,
            predictor="reuse",
        ),
        Method(
            name="fbcache",
            paper="Cheng 2024, github.com/chengzeyi/ParaAttention",
            summary="runs the first block, and skips the others while it does what it did at the last computed step",
            policy="compare",
            signal="probe",
            threshold=0.05,
            first_enhance=1,
            cooldown=0,
            site="span",
            predictor="reuse",
        ),
        Method(
            name="dbcache",
            paper="DefTruth et al. 2025, github.com/vipshop/cache-dit",
            summary="runs the first blocks, and skips those in the middle while these do what they did",
            policy="compare",
            signal="probe",
            threshold=0.08,
            first_enhance=8,
            cooldown=0,
            site="span",
            span=(8, 0),
            predictor="reuse",
        ),
        Method(
            name="dicache",
            paper="Bu et al. 2025, arXiv 2508.17356",
            summary="sums the changes of the first block to a threshold, and aligns two snapshots by how far it went",
            policy="accumulate",
            signal="state",
            threshold=0.2,
            first_enhance=2,
            retention=0.2,
            predictor="dcta",
            max_amplification=2.0,
        ),
        Method(
            name="adacache",
            paper="Kahatapitiya et al. 2024, arXiv 2411.02397",
            summary="skips as many steps as a list says for how fast the cached value changed up to a computed step",
            policy="codebook",
            codebook=((0.03, 12), (0.05, 10), (0.07, 8), (0.09, 6), (0.11, 4), (1.0, 3)),
            first_enhance=1,
            predictor="reuse",
        ),
        Method(
            name="bwcache",
            paper="Cui et al. 2025, arXiv 2509.13789",
            summary="once the blocks' results change little, all of them are reused for a number of steps, and so on",
            policy="codebook",
            codebook=((0.15, 5),),
            first_enhance=1,
            site="block",
            predictor="reuse",
        ),
        Method(
            name="speca",
            paper="Liu et al. 2025, arXiv 2509.11628",
            summary="a skipped step is a draft that the last block verifies; after one too wrong, a step is computed",
            policy="verify",
            threshold=0.1,
            max_skips=5,
            site="span",
            span=(0, 1),
            predictor="taylor",
            order=2,
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
        ),
        Method(
            name="deepcache",
            paper="Ma et al. 2023, arXiv 2312.00858",
            summary="a skipped step runs the shallow part of a UNet and repeats what last came up from the deep part",
            interval=3,
            first_enhance=1,
            cooldown=0,
            site="unet_branch",
            predictor="reuse",
        ),
        Method(
            name="taylorseer-sublayer",
            paper="Liu et al. 2025, arXiv 2503.06923",
            summary="every attention and feed-forward output is extrapolated by itself; gates and norms run",
            interval=6,
            predictor="taylor",
            order=1,
        ).at({"attention": {}, "cross_attention": {}, "feed_forward": {}}),
        Method(
            name="taylorseer-lite",
            paper="Liu et al. 2025, arXiv 2503.06923",
            summary="what leaves the last block is extrapolated, and no block runs",
            interval=5,
            site="last_block",
            span=(0, 0),
            predictor="taylor",
            order=2,
        ),
        Method(
            name="fora",
            paper="Selvaraju et al. 2024, arXiv 2407.01425",
            summary="every attention and feed-forward output is repeated",
            interval=3,
            first_enhance=1,
            predictor="reuse",
        ).at({"attention": {}, "cross_attention": {}, "feed_forward": {}}),
        Method(
            name="deepcache-blocks",
            paper="Ma et al. 2023, arXiv 2312.00858, as AngelSlim's DeepCacheHelper has it for transformers",
            summary="what enters the last block is repeated, and that block alone runs",
            first_enhance=11,
            cooldown=5,
            site="last_block",
            span=(0, 1),
            predictor="reuse",
        ),
        Method(
            name="pab",
            paper="Zhao et al. 2024, arXiv 2408.12588",
            summary="attention outputs are repeated: over time longer than over space, cross-attention longest",
            interval=2,
            first_enhance=1,
            cooldown=0,
            timesteps=(100, 800),
            predictor="reuse",
        ).at({"spatial_attention": {}, "temporal_attention": {"interval": 4}, "cross_attention": {"interval": 6}}),
        Method(
            name="fastercache",
            paper="Lv et al. 2024, arXiv 2410.19355",
            summary="self-attention is extrapolated, and the unconditional branch predicted from the conditional one",
            interval=2,
            first_enhance=1,
            cooldown=0,
            timesteps=(-1, 681),
            predictor="difference",
            damping=0.5,
            conditional_only=True,
        ).at(
            {
                "guidance": {
                    "interval": 5,
                    "timesteps": (-1, 641),
                    "predictor": "reuse",
                    "gains": (1.1, 1.1),
                    "conditional_only": False,
                    "deaf": frozenset({"interval", "timesteps", "predictor", *TUNABLE}),
                },
                "attention": {},
            }
        ),
        Method(
            name="tgate",
            paper="Zhang et al. 2024, arXiv 2404.02747",
            summary="cross-attention and guidance end at a gate; self-attention has one interval before and one after",
            policy="gate",
            interval=5,
            first_enhance=3,
            cooldown=0,
            gate_step=10,
            fi_interval=1,
            predictor="reuse",
            halves="mean",
        ).at(
            {
                "guidance": {**_UNTIL_THE_GATE, "gains": (0.0, 0.0), "low_timesteps": _ALL, "high_timesteps": _ALL},
                "attention": {},
                "cross_attention": _UNTIL_THE_GATE,
            }
        ),
    )
}


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
        rescaled: not the signal is summed but what a polynomial makes of it.
        calibration: the file with the figures that this `needs`; None to look where they are kept.
        probe: so many blocks run before a signal in the middle of the call is measured.
        budget, bins, window, growth: of the policies `geometric`, `bins` and `window`.
        center, power: where the computed steps of a run gather, and how closely; None where they are spread evenly.
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
    bins: masks.BinsName | None
    budget: int | None
    window: float
    growth: float
    signal: SignalName | None
    threshold: float | None
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


def layers_of(cache: Cache) -> tuple[Method, ...]:
    """The layers that a section stands for, each with its method's defaults.

    Raises:
        CacheError: the section names a site that the method has no layer for.
    """
    method = METHODS[cache.method]
    if not method.layers:
        return (method,)
    layers = [layer for layer in method.layers if cache.drop_guidance is not False or layer.site != "guidance"]
    if cache.site is None:
        return tuple(layers)
    found = tuple(layer for layer in layers if layer.site == cache.site)
    if not found:
        sites = ", ".join(layer.site for layer in layers)
        raise CacheError(f"method {method.name!r} has no layer at site {cache.site!r}; its layers: {sites}")
    return found


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
    layers = layers_of(cache)
    if len(layers) > 1:
        raise CacheError(f"method {cache.method!r} has {len(layers)} layers; name the site of one of them")
    return _settings(cache, layers[0])


def _settings(cache: Cache, method: Method, share: int = 1) -> Settings:
    """Fill a section with the defaults of one of its layers, which is given one part in `share` of its ceiling."""

    cache = cache.model_copy(update=dict.fromkeys(method.deaf))

    def given(name: str) -> Any:
        value = getattr(cache, name)
        return getattr(method, name) if value is None else value

    policy = policy_of(cache)
    if policy == "geometric" and cache.budget is None:
        raise CacheError("policy 'geometric' needs cache.budget: how many steps to compute")
    if policy == "bins" and cache.bins is None:
        raise CacheError("policy 'bins' needs cache.bins: slow, medium, fast or ultra")
    predictor: PredictorName = given("predictor")
    kind = KINDS[predictor]
    own = predictor == method.predictor
    # A method's own numbers are those of its own predictor.
    wanted = (cache.order, method.order if own else None, kind.order) if "order" in kind.takes else (kind.order,)
    order = next(degree for degree in wanted if degree is not None)
    low_order = cache.low_order if cache.low_order is not None or not own else method.low_order
    degree = max(order, low_order or 0)
    least, usual = kind.least or degree + 1, kind.usual or degree + 1
    snapshots = cache.snapshots or (method.snapshots if own else None) or usual
    if snapshots < least:
        what = f"order {degree}" if kind.least is None else f"predictor {predictor!r}"
        raise CacheError(f"{what} needs {least} snapshots, not {snapshots}")
    site: SiteName = given("site")
    adaptive = _adaptive_part(cache, method, policy, site)
    if predictor == "dcta" and adaptive["signal"] not in ("state", "probe"):
        raise CacheError("predictor 'dcta' goes by what the first blocks do: it needs cache.signal state or probe")
    spans = site == "span" or (site == "last_block" and "last_block" in (method.site, cache.span and site))
    span: tuple[int, int] = given("span") if spans else (0, 0)
    if policy == "verify" and (site != "span" or span[1] < 1):
        raise CacheError(
            "policy 'verify' compares what the last block computes at a skipped step: it needs site span with a last "
            "block that keeps running, such as span: [0, 1]"
        )
    return Settings(
        method=method.name,
        policy=policy,
        interval=given("interval") if policy in ("interval", "gate") else None,
        first_enhance=given("first_enhance"),
        cooldown=given("cooldown"),
        retention=given("retention"),
        mask=None if cache.mask is None else tuple(cache.mask),
        bins=cache.bins,
        budget=cache.budget,
        window=given("window"),
        growth=given("growth"),
        **adaptive,
        calibration=cache.calibration,
        decay=given("decay"),
        branches=cache.branches or "shared",
        center=cache.center,
        power=cache.power,
        site=site,
        site_given=method.site == "unet_branch"
        or policy == "verify"
        or (cache.site is not None and not METHODS[method.name].layers),
        span=span,
        branch=given("branch"),
        probe=(span[0] if site == "span" else 1) if cache.probe is None else cache.probe,
        predictor=predictor,
        coordinate=given("coordinate") if "coordinate" in kind.takes else "index",
        order=order,
        damping=given("damping") if own or cache.damping is not None else 1.0,
        max_amplification=given("max_amplification"),
        sigma_scale=given("sigma_scale"),
        ridge=given("ridge"),
        blend=given("blend"),
        trust=given("trust"),
        low_order=low_order,
        cut=given("cut"),
        gate=given("first_enhance") if policy in ("interval", "window") else 0,
        snapshots=snapshots,
        size=None if cache.size is None else cache.size / share,
        store_dtype=cache.store_dtype or "model",
        timesteps=given("timesteps"),
        gate_step=given("gate_step"),
        fi_interval=given("fi_interval"),
        gains=given("gains"),
        low_timesteps=given("low_timesteps"),
        high_timesteps=given("high_timesteps"),
        conditional_only=method.conditional_only,
        halves=method.halves,
    )


# Keys that say all about when to compute, and the policies that they stand for.
_SAYS_WHEN: dict[str, PolicyName] = {"mask": "mask", "bins": "bins", "budget": "geometric", "window": "window"}


def policy_of(cache: Cache) -> PolicyName:
    """A section's policy: the one that is named, the one that its keys stand for, or the method's."""
    policy = METHODS[cache.method].policy
    if cache.policy is None and policy in FIXED:
        given = [name for key, name in _SAYS_WHEN.items() if getattr(cache, key) is not None]
        return given[0] if given else policy
    return cache.policy or policy


def resolve_all(caches: Cache | Sequence[Cache] | None) -> tuple[Settings, ...]:
    """The layers of a plan's cache, outermost first; none where it skips nothing.

    Raises:
        CacheError: a section that no method can take, or two that leave out the same.
    """
    sections = () if caches is None else caches if isinstance(caches, Sequence) else (caches,)
    layers = [(number, settings) for number, section in enumerate(sections) for settings in expand(section)]
    for place, (number, layer) in enumerate(layers):
        for before, other in layers[:place]:
            if layer.site == other.site:
                raise CacheError(f"sections {before} and {number} both cache site {layer.site}; one of them is enough")
            if any({layer.site, other.site} <= rivals for rivals in _RIVALS):
                raise CacheError(
                    f"sections {before} and {number} leave out the same modules (sites {other.site} and {layer.site})"
                )
    return tuple(sorted((layer for _, layer in layers), key=lambda layer: _FROM_OUTSIDE.index(layer.site)))


def expand(cache: Cache) -> tuple[Settings, ...]:
    """The layers that a section stands for; they share its ceiling for snapshots.

    Raises:
        CacheError: a combination that no method can take.
    """
    layers = layers_of(cache)
    return tuple(_settings(cache, layer, len(layers)) for layer in layers)


def _adaptive_part(cache: Cache, method: Method, policy: PolicyName, site: SiteName) -> dict[str, Any]:
    """What an adaptive policy needs; of its own method where that has the same policy, else from the plan alone."""
    names = ("signal", "threshold", "max_skips", "max_total_skips", "max_drift", "polynomial", "ratios")
    values: dict[str, Any] = {name: getattr(cache, name) for name in names}
    values |= {"rescaled": False, "codebook": None}
    if policy in FIXED:
        return values
    if policy == method.policy:
        for name in ("threshold", "max_skips"):
            values[name] = getattr(method, name) if values[name] is None else values[name]
        if values["signal"] is None:
            values["signal"] = method.signal
    if policy == "codebook":
        book = cache.codebook or (method.codebook if policy == method.policy else None)
        if book is None:
            raise CacheError("policy 'codebook' needs cache.codebook, such as [[0.05, 4], [0.1, 2]]")
        return values | {"codebook": tuple(map(tuple, book))}
    if values["threshold"] is None:
        raise CacheError(f"policy {policy!r} needs cache.threshold: no value of it is right for every model")
    if policy == "verify":
        return values
    if policy == "table":
        values["ratios"] = None if values["ratios"] is None else tuple(values["ratios"])
    elif values["signal"] is None:
        raise CacheError(f"policy {policy!r} needs cache.signal: what it is to measure")
    elif values["signal"] in MIDWAY and site not in _UNDECIDED:
        raise CacheError(
            f"signal {values['signal']!r} shows itself too late for site {site!r}: it goes with sites "
            f"{', '.join(_UNDECIDED)}; site {site!r} goes with signals input and estimate"
        )
    if values["polynomial"] is not None:
        values["polynomial"] = tuple(values["polynomial"])
    values["rescaled"] = policy == method.policy and method.rescaled and values["signal"] == method.signal
    return values
