"""Combinations that cannot be: each setting fine by itself, the two together not."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING, NamedTuple

from hasten.errors import CacheError

if TYPE_CHECKING:
    from hasten.caching.methods import Method
    from hasten.plan.schema import Cache, Plan


class Conflict(NamedTuple):
    """Two or more settings that exclude each other.

    Attributes:
        key: the dotted key that the message is about.
        text: what is wrong, in words.
        others: the other keys that take part.
    """

    key: str
    text: str
    others: tuple[str, ...] = ()


def cross_check(plan: Plan, *, steps: int | None, unknown: Collection[str] = ()) -> list[Conflict]:
    """All impossible combinations of a plan.

    Args:
        steps: the number of inference steps, None where it is not known.
        unknown: dotted keys whose value was refused already, so that nothing can be concluded from it.
    """
    several = len(plan.caches) > 1 or not (plan.cache is None or plan.caches[0] is plan.cache)
    found = []
    for number, section in enumerate(plan.caches):
        place = f"cache.{number}." if several else "cache."
        for conflict in (conflict for check in _CHECKS for conflict in check(section, steps)):
            # Checks know one section: in a list of them its keys have a number.
            keys = [key.replace("cache.", place, 1) for key in (conflict.key, *conflict.others)]
            if not any(key in unknown for key in keys):
                found.append(Conflict(keys[0], conflict.text.replace("cache.", place), tuple(keys[1:])))
    if plan.quality is not None and plan.cache is not None:
        text = "chooses the cache, which is given, too: one or the other"
        found.append(Conflict("quality", text, ("cache",)))
    if not found and not any(key.partition(".")[0] == "cache" for key in unknown):
        found += _method(plan)
    if plan.adaptive.on and not any(key.partition(".")[0] == "adaptive" for key in unknown):
        found += _adaptive(plan, steps)
    return found


def _adaptive(plan: Plan, steps: int | None) -> Iterator[Conflict]:
    section = plan.adaptive
    fewest, most, warmup = section.min_steps, section.max_steps, section.warmup
    asked = "generation.num_inference_steps"
    low, high = section.uncertainty.thresholds
    if low >= high:
        keys = ("adaptive.uncertainty.threshold_high", "adaptive.uncertainty.threshold_low")
        yield Conflict(keys[0], f"{high:g} is not above threshold_low, which is {low:g}", keys[1:])
    if fewest is not None and most is not None and fewest > most:
        yield Conflict("adaptive.min_steps", f"{fewest} is more than max_steps, {most}", ("adaptive.max_steps",))
    for key, count in (("min_steps", fewest), ("max_steps", most)):
        if count is not None and steps is not None and count > steps:
            text = f"{count} is more than the run's {steps} steps: ask for more, a run chooses fewer"
            yield Conflict(f"adaptive.{key}", text, (asked,))
    for count, key in ((most, "adaptive.max_steps"), (steps, asked)):
        if count is not None and warmup >= count:
            text = f"after a warm-up of {warmup} steps nothing is left to choose of {count}"
            yield Conflict("adaptive.warmup_steps", text, (key,))
            break
    yield from _cached(plan)


def _cached(plan: Plan) -> Iterator[Conflict]:
    """Caches that plan all steps of a run in advance, or would predict some of its warm-up."""
    from hasten.caching.resolving import resolve_all

    try:
        layers = resolve_all(plan.cache)
    except CacheError:
        return  # told elsewhere
    for layer in layers:
        fixed = "mask" if layer.mask is not None else layer.policy
        if layer.mask is not None or layer.steps is not None or layer.policy in ("gate", "table"):
            what = f"method {layer.method!r} with {fixed!r}"
            yield Conflict(
                "cache", f"{what} is made for one number of steps; with adaptive a run chooses", ("adaptive",)
            )
            return


def _method(plan: Plan) -> Iterator[Conflict]:
    """What the methods themselves cannot take, their own defaults considered."""
    from hasten.caching.resolving import resolve_all

    try:
        resolve_all(plan.cache)
    except CacheError as error:
        yield Conflict("cache", str(error))


def _history(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    if cache.predictor == "chebyshev" or cache.method == "spectrum":
        return  # a ridge makes do with fewer
    if cache.order is not None and cache.snapshots is not None and cache.snapshots < cache.order + 1:
        needed = f"order {cache.order} needs {cache.order + 1} snapshots"
        yield Conflict("cache.snapshots", f"{needed}, not {cache.snapshots}", ("cache.order",))


def _length(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    if steps is None:
        return
    run = f"the run's {steps} steps"
    first, last = cache.first_enhance or 0, cache.cooldown or 0
    if first > steps:
        yield Conflict(
            "cache.first_enhance",
            f"a warm-up of {first} steps is longer than {run}",
            ("generation.num_inference_steps",),
        )
    elif last > steps:
        yield Conflict(
            "cache.cooldown", f"a cool-down of {last} steps is longer than {run}", ("generation.num_inference_steps",)
        )
    elif first + last > steps:
        yield Conflict(
            "cache.cooldown",
            f"a warm-up of {first} and a cool-down of {last} steps are together longer than {run}",
            ("cache.first_enhance", "generation.num_inference_steps"),
        )
    if cache.mask and cache.mask[-1] >= steps:
        beyond = [step for step in cache.mask if step >= steps]
        yield Conflict(
            "cache.mask",
            f"{_steps(beyond)} not in a run of {steps} steps, which are numbered 0 to {steps - 1}",
            ("generation.num_inference_steps",),
        )


def _masked(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    if cache.mask is not None and 0 not in cache.mask:
        yield Conflict("cache.mask", "step 0 has to be computed: there is nothing yet to predict it from")
    for key in ("mask", "bins", "budget"):
        if getattr(cache, key) is None:
            continue
        for name in _SAID_BY[key]:
            if getattr(cache, name) is not None:
                yield Conflict(
                    f"cache.{name}",
                    f"cache.{key} already says which steps are computed; give one or the other",
                    (f"cache.{key}",),
                )
        return


_SAID_BY = {
    "mask": ("interval", "first_enhance", "retention", "center", "bins", "budget", "window"),
    "bins": ("interval", "first_enhance", "retention", "center", "budget", "window"),
    "budget": ("interval", "first_enhance", "retention", "center", "window"),
}
# What each policy takes beside what all of them take.
_TAKES: dict[str, frozenset[str]] = {
    "interval": frozenset({"interval", "center", "power"}),
    "mask": frozenset({"mask"}),
    "gate": frozenset({"interval", "gate_step", "fi_interval"}),
    "geometric": frozenset({"budget", "power"}),
    "bins": frozenset({"bins"}),
    "window": frozenset({"window", "growth"}),
    "accumulate": frozenset(
        {"mask", "bins", "signal", "probe", "threshold", "max_skips", "max_total_skips", "polynomial", "calibration"}
    ),
    "compare": frozenset({"mask", "bins", "signal", "probe", "threshold", "max_skips", "max_total_skips", "max_drift"}),
    "table": frozenset({"mask", "bins", "threshold", "max_skips", "max_total_skips", "ratios", "calibration"}),
    "codebook": frozenset({"mask", "bins", "codebook", "max_skips", "max_total_skips"}),
    "tolerance": frozenset({"mask", "bins", "tolerance", "max_skips", "max_total_skips"}),
    "verify": frozenset({"mask", "bins", "threshold", "max_skips", "max_total_skips", "decay"}),
}


def _defaults(cache: Cache) -> Method:
    """What fills a section: its method, or the layer of that method whose site it names."""
    from hasten.caching.methods import METHODS

    method = METHODS[cache.method]
    return next((layer for layer in method.layers if layer.site == cache.site), method)


def _policy(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    from hasten.caching.resolving import policy_of

    policy = policy_of(cache)
    own = cache.policy is None and policy == _defaults(cache).policy
    whose = f"policy {policy!r}" + (f" of method {cache.method!r}" if own else "")
    said = [conflict.key for conflict in _masked(cache, steps)]
    for name in sorted(frozenset.union(*_TAKES.values()) - _TAKES[policy]):
        if getattr(cache, name) is not None and f"cache.{name}" not in said:
            able = [other for other, takes in _TAKES.items() if name in takes]
            yield Conflict(
                f"cache.{name}",
                f"has no effect with {whose}; it needs policy: {' or '.join(able)}",
                ("cache.policy" if cache.policy else "cache.method",),
            )
    for name in ("polynomial", "ratios"):
        if cache.calibration is not None and getattr(cache, name) is not None:
            yield Conflict(
                f"cache.{name}",
                "cache.calibration already says where this is; give one or the other",
                ("cache.calibration",),
            )
    if cache.policy == "mask" and cache.mask is None:
        yield Conflict("cache.policy", "policy 'mask' needs cache.mask: the steps to compute")
    if policy == "gate" and cache.gate_step is None and _defaults(cache).gate_step is None:
        yield Conflict("cache.policy", "policy 'gate' needs cache.gate_step: the first step of the second phase")


_SPANS = frozenset({"span", "last_block"})


def _place(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    from hasten.caching.methods import METHODS

    method = METHODS[cache.method]
    sites = {cache.site} if cache.site else {layer.site for layer in method.layers} or {method.site}
    for name, needs in (
        ("span", _SPANS),
        ("branch", frozenset({"unet_branch"})),
        *((name, frozenset({"guidance"})) for name in ("gains", "low_timesteps", "high_timesteps")),
    ):
        if getattr(cache, name) is not None and not needs & sites:
            whose = f"site {' or '.join(map(repr, sorted(sites)))}" + (
                "" if cache.site else f" of method {cache.method!r}"
            )
            wanted = " or ".join(sorted(needs, reverse=True))
            yield Conflict(f"cache.{name}", f"has no effect with {whose}; it needs site: {wanted}", ("cache.site",))
    if cache.probe is not None and cache.signal in ("input", "filtered", "estimate", "modulated"):
        yield Conflict("cache.probe", f"has no effect with signal {cache.signal!r}", ("cache.signal",))
    if cache.drop_guidance is not None and not any(layer.site == "guidance" for layer in method.layers):
        yield Conflict("cache.drop_guidance", f"method {cache.method!r} drops no guidance", ("cache.method",))
    if cache.timesteps is not None and cache.timesteps[0] >= cache.timesteps[1]:
        low, high = cache.timesteps
        yield Conflict("cache.timesteps", f"no timestep lies between {low:g} and {high:g}")


def _gathered(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    if (cache.center is None) != (cache.power is None) and cache.budget is None and cache.policy != "geometric":
        alone, other = ("power", "center") if cache.center is None else ("center", "power")
        yield Conflict(f"cache.{alone}", f"needs cache.{other} beside it, such as center: 15 and power: 1.4")


def _prediction(cache: Cache, steps: int | None) -> Iterator[Conflict]:
    from hasten.caching.prediction import KINDS, TUNABLE

    method = _defaults(cache)
    key = "predictor" if cache.predictor is not None else "method"
    name = cache.predictor or method.predictor
    kind, chosen = KINDS[name], f"{key} {getattr(cache, key)!r}"
    nothing = ", which extrapolates nothing" if name == "reuse" else ""
    for tuned in TUNABLE:
        value = getattr(cache, tuned)
        if value is None or tuned in kind.takes or (tuned == "order" and value == kind.order):
            continue
        if tuned == "coordinate" and value in kind.coordinates and not nothing:
            continue
        why = f"has no effect with {chosen}{nothing}"
        if tuned == "coordinate" and not nothing:
            why = f"{chosen} counts steps; sigma is for {_users('coordinate')}"
        elif tuned == "max_amplification" and not nothing:
            why += ", which keeps its published order"
        elif tuned == "order" and not nothing:
            why += f", which has the order {kind.order} and no other"
        yield Conflict(f"cache.{tuned}", why, (f"cache.{key}",))
    low = cache.low_order if cache.low_order is not None or name != method.predictor else method.low_order
    if cache.cut is not None and low is None and "cut" in kind.takes:
        yield Conflict("cache.cut", "has no effect without low_order", ("cache.low_order",))
    if low and "order" not in kind.takes and "low_order" in kind.takes:
        why = f"{chosen} has one order; allowed beside it: 0, which reuses"
        yield Conflict("cache.low_order", why, (f"cache.{key}",))


def _users(key: str) -> str:
    from hasten.caching.prediction import KINDS

    return ", ".join(name for name, kind in KINDS.items() if key in kind.takes)


def _steps(steps: list[int]) -> str:
    return f"step {steps[0]} is" if len(steps) == 1 else f"steps {', '.join(map(str, steps))} are"


_CHECKS: tuple[Callable[[Cache, int | None], Iterator[Conflict]], ...] = (
    _history,
    _length,
    _masked,
    _policy,
    _place,
    _gathered,
    _prediction,
)
