"""The plan with the defaults of its cache method filled in, as it will run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hasten.plan.checks import cross_check
from hasten.plan.schema import DEFERRED, Cache, Plan, dump

if TYPE_CHECKING:
    from hasten.caching.settings import Settings


def resolved_dict(plan: Plan, *, wishes: bool = False) -> dict[str, Any]:
    """`plan.to_dict()` with a value for every setting of the cache that its method has a default for.

    A method of several layers becomes a list of them.

    Args:
        wishes: leave a site open that was not asked for by name, because another one may stand in for it.

    Raises:
        HastenError: if the method cannot take these settings.
    """
    # Imported here: plan knows nothing of methods when it is only read, and `hasten --help` stays quick.
    from hasten.caching.resolving import expand

    values = plan.to_dict()
    sections: list[dict[str, Any]] = []
    for section in plan.caches:
        layers = expand(section)
        for settings in layers:
            filled = _filled(plan, section, settings)
            left_out = set[str]()
            if wishes and len(layers) == 1 and section.site is None:
                left_out = {"site", "span"} - section.model_fields_set
            sections.append({name: value for name, value in filled.items() if name not in left_out})
    if plan.cache is not None:
        one = isinstance(plan.cache, Cache) and len(sections) == 1
        values["cache"] = sections[0] if one else sections
    return values


def _filled(plan: Plan, section: Cache, settings: Settings) -> dict[str, Any]:
    given = plan.model_copy(update={"cache": section}).to_dict()["cache"]
    filled: dict[str, Any] = {}
    for name in Cache.model_fields:
        value = getattr(settings, name, given.get(name))
        value = given.get(name) if value is None else value
        if value is not None:
            filled[name] = list(value) if isinstance(value, tuple) else value
    # A default without effect beside what was chosen (a span at another site, an interval under a mask) is left out.
    whole = Plan.model_validate({**plan.to_dict(), "cache": filled}, context={DEFERRED: True})
    idle = {conflict.key for conflict in cross_check(whole, steps=None)}
    return {name: v for name, v in filled.items() if name in given or f"cache.{name}" not in idle}


def resolved_yaml(plan: Plan) -> str:
    """`resolved_dict` as YAML, which is a plan again."""
    return dump(resolved_dict(plan))
