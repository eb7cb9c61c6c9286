"""From a plan's cache sections to settings: every field filled from its method, or the reason why that cannot be.

No torch in here: the command line checks plans with it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from hasten.caching.methods import METHODS, Method
from hasten.caching.prediction import KINDS, PredictorName
from hasten.caching.settings import Settings
from hasten.caching.vocabulary import (
    FIXED,
    FROM_OUTSIDE,
    MIDWAY,
    RIVALS,
    UNDECIDED,
    PolicyName,
    SiteName,
)
from hasten.errors import CacheError

if TYPE_CHECKING:
    from hasten.plan import Cache


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

    if cache.site is None:  # else it is a layer by itself, and all that its section says is for it
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
    fitted = cache.fitted_weights if predictor == "least_squares" else None
    if predictor == "least_squares" and (fitted is None or cache.mask is None):
        raise CacheError(
            "predictor 'least_squares' needs cache.mask and cache.fitted_weights; `hasten schedule` finds both"
        )
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
        tolerance=given("tolerance") if policy == "tolerance" else None,
        branches=cache.branches or "shared",
        center=cache.center,
        power=cache.power,
        site=site,
        site_given=method.site == "unet_branch"
        or policy == "verify"
        or (cache.site is not None and not METHODS[method.name].layers),
        span=span,
        branch=given("branch"),
        probe=max(1, span[0] if site == "span" else 1) if cache.probe is None else cache.probe,
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
        fitted_weights=None if fitted is None else tuple(map(tuple, fitted)),
        fitted_steps=_skipped(cache.mask or (), len(fitted or ())),
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
        correct=given("correct"),
    )


def _skipped(mask: Sequence[int], count: int) -> tuple[int, ...]:
    """The first so many steps that a mask does not compute."""
    return tuple(islice((step for step in itertools.count() if step not in mask), count))


# Keys that say all about when to compute, and the policies that they stand for.
_SAYS_WHEN: dict[str, PolicyName] = {
    "mask": "mask",
    "bins": "bins",
    "budget": "geometric",
    "window": "window",
    "tolerance": "tolerance",
}


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
            if any({layer.site, other.site} <= rivals for rivals in RIVALS):
                raise CacheError(
                    f"sections {before} and {number} leave out the same modules (sites {other.site} and {layer.site})"
                )
    return tuple(sorted((layer for _, layer in layers), key=lambda layer: FROM_OUTSIDE.index(layer.site)))


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
    if policy == "tolerance":
        return values
    if values["threshold"] is None:
        raise CacheError(f"policy {policy!r} needs cache.threshold: no value of it is right for every model")
    if policy == "verify":
        return values
    if policy == "table":
        values["ratios"] = None if values["ratios"] is None else tuple(values["ratios"])
    elif values["signal"] is None:
        raise CacheError(f"policy {policy!r} needs cache.signal: what it is to measure")
    elif values["signal"] in MIDWAY and site not in UNDECIDED:
        raise CacheError(
            f"signal {values['signal']!r} shows itself too late for site {site!r}: it goes with sites "
            f"{', '.join(UNDECIDED)}; site {site!r} goes with signals input, filtered and estimate"
        )
    if values["polynomial"] is not None:
        values["polynomial"] = tuple(values["polynomial"])
    values["rescaled"] = policy == method.policy and method.rescaled and values["signal"] == method.signal
    return values
