"""From sources to a validated plan, or to everything that is wrong with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from hasten.errors import PlanError
from hasten.plan.checks import cross_check
from hasten.plan.messages import wrong
from hasten.plan.overlay import Origin, Overlay, read_source
from hasten.plan.schema import DEFERRED, Plan


def load_plan(
    source: Plan | Mapping[str, Any] | str | Path | None = None, sets: Sequence[str] = (), **overrides: Any
) -> Plan:
    """Make a plan from a source, then `--set` strings, then keyword arguments; the later wins.

    Args:
        source: a plan, a mapping shaped like the YAML, a preset's name, a YAML file's path, or None for the defaults.
        sets: `"cache.interval=4"`: a dotted key and a YAML value. `"cache=reuse"` begins the section anew.
        overrides: keys as keywords: `seed=3`, `cache__interval=4`, `cache={"interval": 4}`; a key that only one section
            has may stand alone (`interval=4`, `num_inference_steps=20`).

    Raises:
        PlanError: with every problem that was found, each with its file and line, `--set` string or keyword.

    >>> load_plan("taylorseer", interval=3).cache.interval
    3
    """
    return build_plan(source, sets, overrides, caller="load_plan")


def build_plan(
    source: Plan | Mapping[str, Any] | str | Path | None,
    sets: Sequence[str],
    overrides: Mapping[str, Any],
    *,
    caller: str,
    own_steps: bool = False,
    flags: Mapping[str, tuple[str, Any]] | None = None,
) -> Plan:
    """`load_plan` for another public function, whose name the messages then bear.

    Args:
        caller: the name in `accelerate(..., intervall=4): …`.
        own_steps: the number of steps is decided elsewhere (by a pipeline that the user calls), so that the plan's
            default for it makes nothing impossible.
        flags: a command's options, laid last: dotted key → (as it was typed, such as `--steps 20`; the value).

    Raises:
        PlanError: as `load_plan`.
    """
    overlay = Overlay()
    read_source(overlay, source)
    for text in sets:
        overlay.put_set(text)
    for keyword, value in overrides.items():
        overlay.put_keyword(keyword, value, caller)
    for key, (typed, value) in (flags or {}).items():
        origin = Origin(typed, names_key=True)
        overlay.put(tuple(key.split(".")), value, lambda _, origin=origin: origin)
    return _finish(overlay, own_steps=own_steps)


def _finish(overlay: Overlay, *, own_steps: bool) -> Plan:
    plan, refused = _validate(overlay)
    if plan is not None:
        named = not own_steps or ("generation", "num_inference_steps") in overlay.origins
        steps = plan.generation.num_inference_steps if named else None
        for conflict in cross_check(plan, steps=steps, unknown=refused):
            # The message belongs to a key that was given: a default has no place to point at.
            keys = [conflict.key, *conflict.others]
            given = [key for key in keys if tuple(key.split(".")) in overlay.origins]
            key = given[0] if given else conflict.key
            overlay.complain(overlay.origin(key.split(".")), conflict.key, conflict.text)
    if overlay.problems:
        # By line within a file; the places themselves stay in the order in which they were given.
        places = list(dict.fromkeys(origin.place for origin, _ in overlay.problems))
        ordered = sorted(overlay.problems, key=lambda problem: (places.index(problem[0].place), problem[0].line))
        raise PlanError(*(text for _, text in ordered))
    assert plan is not None  # a refused value is a problem
    return plan


def _validate(overlay: Overlay) -> tuple[Plan | None, set[str]]:
    """The plan without the values that were refused, and the dotted keys of those."""
    refused: set[str] = set()
    # A value that is taken out can bring no new error: two rounds are enough.
    for _ in range(2):
        try:
            return Plan.model_validate(overlay.data, context={DEFERRED: True}), refused
        except ValidationError as error:
            found = {
                mistake.path: mistake.text
                for mistake in (wrong(Plan, item, overlay.value) for item in error.errors(include_url=False))
            }
        for path, text in found.items():
            overlay.complain(overlay.origin(path), ".".join(path), text)
            overlay.drop(path)
            refused.add(".".join(path))
    return None, refused
