"""Methods: published names for one site, one policy and one predictor, with their defaults.

No torch in here: the command line lists the methods and checks plans with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from hasten.caching.prediction import TUNABLE, Coordinate, PredictorName
from hasten.caching.vocabulary import PolicyName, SignalName, SiteName

MethodName = Literal[
    "taylorseer",
    "reuse",
    "tolerance",
    "hicache",
    "foca",
    "ab-cache",
    "dmd",
    "spectrum",
    "freqca",
    "taylorcache",
    "teacache",
    "seacache",
    "fbcache",
    "dbcache",
    "dicache",
    "adacache",
    "bwcache",
    "speca",
    "easycache",
    "magcache",
    "deepcache",
    "taylorseer-sublayer",
    "taylorseer-lite",
    "fora",
    "deepcache-blocks",
    "pab",
    "fastercache",
    "tgate",
]


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
        tolerance, correct: see `tolerance` and `ledger`.
        layers: of a method of several sites, each of them with its defaults; those of the method itself say what its
            section may hold.
        deaf: keys of a section for the whole method that are not for this layer.
    """

    name: MethodName
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
    tolerance: float = 0.01
    correct: bool = False
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
            name="tolerance",
            paper="",
            summary="gaps are as wide as a tolerance for the final latent allows; skipped steps are corrected",
            policy="tolerance",
            first_enhance=1,
            site="output",
            order=2,
            correct=True,
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
            name="seacache",
            paper="Chung et al. 2026, arXiv 2602.18993",
            summary="sums the changes of the latent, filtered to what it shows of the picture, to a threshold",
            policy="accumulate",
            signal="filtered",
            threshold=0.25,
            max_skips=2,
            first_enhance=1,
            coordinate="index",
            order=1,
            max_amplification=5.0,
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
