"""The plan with the defaults of its cache method filled in, as it will run."""

from __future__ import annotations

from typing import Any

from hasten.plan.checks import cross_check
from hasten.plan.schema import DEFERRED, Cache, Plan, dump


def resolved_dict(plan: Plan) -> dict[str, Any]:
    """`plan.to_dict()` with a value for every setting of the cache that its method has a default for.

    Raises:
        HastenError: if the method cannot take these settings.
    """
    values = plan.to_dict()
    sections = [_filled(plan, section) for section in plan.caches]
    if plan.cache is not None:
        values["cache"] = sections[0] if isinstance(plan.cache, Cache) else sections
    return values


def _filled(plan: Plan, section: Cache) -> dict[str, Any]:
    # Imported here: plan knows nothing of methods when it is only read, and `hasten --help` stays quick.
    from hasten.caching.methods import resolve

    settings = resolve(section)
    given = plan.model_copy(update={"cache": section}).to_dict()["cache"]
    filled: dict[str, Any] = {}
    for name in Cache.model_fields:
        value = given.get(name, getattr(settings, name, None))
        if value is not None:
            filled[name] = list(value) if isinstance(value, tuple) else value
    # A default without effect beside what was chosen (a span at another site, an interval under a mask) is left out.
    whole = Plan.model_validate({**plan.to_dict(), "cache": filled}, context={DEFERRED: True})
    idle = {conflict.key for conflict in cross_check(whole, steps=None)}
    return {name: v for name, v in filled.items() if name in given or f"cache.{name}" not in idle}


def resolved_yaml(plan: Plan) -> str:
    """`resolved_dict` as YAML, which is a plan again."""
    return dump(resolved_dict(plan))
