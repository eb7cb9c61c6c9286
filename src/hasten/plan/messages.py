"""What a person is told: the problems of a plan in plain words, worked out from its schema."""

from __future__ import annotations

import types
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hasten.plan.values import SAID

# Names by which the field's other tools know a setting of ours.
ALSO_KNOWN_AS = {
    "steps": "generation.num_inference_steps",
    "num_steps": "generation.num_inference_steps",
    "inference_steps": "generation.num_inference_steps",
    "cfg": "generation.true_cfg_scale",
    "cfg_scale": "generation.true_cfg_scale",
    "guidance": "generation.guidance_scale",
    "negative": "generation.negative_prompt",
    "num_images_per_prompt": "generation.num_images",
    "torch_dtype": "precision.dtype",
    "taylor_order": "cache.order",
    "max_order": "cache.order",
    "first_enhance_steps": "cache.first_enhance",
    "warmup": "cache.first_enhance",
    "warmup_steps": "cache.first_enhance",
    "fresh_threshold": "cache.interval",
    "cache_size": "cache.size",
    "rel_l1_thresh": "cache.threshold",
    "residual_diff_threshold": "cache.threshold",
    "magcache_thresh": "cache.threshold",
    "thresh": "cache.threshold",
    "max_skip_steps": "cache.max_skips",
    "max_continuous_cached_steps": "cache.max_skips",
    "max_cached_steps": "cache.max_total_skips",
    "max_accumulated_residual_diff_threshold": "cache.max_drift",
    "max_warmup_steps": "cache.first_enhance",
    "ret_steps": "cache.first_enhance",
    "retention_ratio": "cache.retention",
    "mag_ratios": "cache.ratios",
    "coefficients": "cache.polynomial",
    "scheduler": "sampler.name",
    "output": "io.out",
}


# Keys of `cache` that published code calls otherwise, and that mean the very same.
PUBLISHED = {"cache_interval": "interval", "cache_branch_id": "branch", "pow": "power"}


class Wrong(NamedTuple):
    """One refused value or key, before its place is known.

    Attributes:
        path: the key's path, down to a field of the schema or to an unknown key.
    """

    path: tuple[str, ...]
    text: str


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The section that a field holds, if it holds one or a list of them."""
    return _section_in(field.annotation)


def _section_in(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    found = (_section_in(inner) for inner in get_args(annotation))
    return next((section for section in found if section is not None), None)


def dotted_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """All keys of a schema, sections included: `model`, `cache`, `cache.interval`, …"""
    keys = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        if (section := section_of(field)) is not None:
            keys += dotted_keys(section, f"{prefix}{name}.")
    return keys


def wrong(schema: type[BaseModel], error: Mapping[str, Any], value: Any) -> Wrong:
    """Put one of pydantic's errors into words.

    Args:
        schema: the root model.
        error: an entry of `ValidationError.errors()`.
        value: looks up the given value of a path: `value(("cache", "interval"))`.
    """
    path: list[str] = []
    owner, field = schema, None
    for part in error["loc"]:
        if path == ["cache"] and part in ("one", "several"):  # which of the two forms of a section it is
            continue
        if isinstance(part, int) and field is not None and owner is not None:
            path.append(str(part))
            field = None
            continue
        if not isinstance(part, str) or owner is None:
            break
        path.append(part)
        field = owner.model_fields.get(part)
        if field is None:
            return Wrong(tuple(path), unknown_key(schema, path))
        owner = section_of(field)  # type: ignore[assignment]
    if error["type"] == SAID:
        return Wrong(tuple(path), str(error["msg"]))
    given = value(tuple(path))
    if field is None:
        return Wrong(tuple(path), f"must be a mapping of settings, not {show(given)}")
    return Wrong(tuple(path), f"must be {expected(field)}, not {show(given)}{_near_choice(field, given)}")


def unknown_key(schema: type[BaseModel], path: Sequence[str]) -> str:
    """`unknown key; did you mean 'interval'? (allowed: …)`"""
    owner = schema
    for part in path[:-1]:
        if part in owner.model_fields:
            owner = section_of(owner.model_fields[part]) or owner
    allowed = list(owner.model_fields)
    hint = suggestion(schema, path[-1], allowed, here=".".join(path[:-1]))
    return f"unknown key{hint} (allowed: {', '.join(allowed)})"


def suggestion(schema: type[BaseModel], name: str, allowed: Sequence[str], here: str = "") -> str:
    """`; did you mean 'interval'?`, or nothing where nothing is near.

    Args:
        name: the unknown key.
        allowed: the keys of the place where it stands; they are preferred to those of other places.
        here: the dotted key of that place.
    """
    plain = name.strip().lower().replace("-", "_")
    known = ALSO_KNOWN_AS.get(plain)
    elsewhere = {key.rpartition(".")[2]: key for key in reversed(dotted_keys(schema))}
    if plain in allowed:
        near: str | None = plain
    elif known is not None:
        near = known.removeprefix(f"{here}.") if here else known
    elif plain in elsewhere:
        near = elsewhere[plain]
    else:
        near = nearest(plain, allowed)
        if near is None and (other := nearest(plain, list(elsewhere))) is not None:
            near = elsewhere[other]
    return f"; did you mean {near!r}?" if near is not None else ""


def nearest(name: str, choices: Sequence[str]) -> str | None:
    """The choice that a misspelt name most likely means."""
    matches = get_close_matches(name.lower(), choices, n=1, cutoff=0.65)
    return matches[0] if matches else None


def expected(field: FieldInfo) -> str:
    """What a field takes, as it ends a sentence: `a whole number of at least 1`."""
    return _expected(field.annotation, list(field.metadata))


def _expected(annotation: Any, metadata: list[Any]) -> str:
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _expected(args[0], [*args[1:], *metadata])
    if origin in (Union, types.UnionType):
        inner = [arg for arg in args if arg is not type(None)]
        return _expected(inner[0], metadata)
    if origin is Literal:
        names = [repr(arg) for arg in args]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    if origin is tuple:
        example = [1] * len(args)
        return f"a list of {_count(len(args))} {_plural(_expected(args[0], []))}, such as {example}"
    if origin is list:
        return f"a list of {_plural(_expected(args[0], []))}{_filled(metadata)}"
    if annotation is bool:
        return "true or false"
    if annotation is int:
        return f"a whole number{_range(metadata)}"
    if annotation is float:
        return f"a number{_range(metadata)}"
    if annotation is str:
        return f"text{_filled(metadata)}"
    if annotation is Path:
        return "a path"
    if origin is dict:
        return "a mapping"
    short = annotation.model_fields.get(getattr(annotation, "short_form", None))
    return f"a mapping of settings{f', or {expected(short)}' if short else ''}"


def _filled(metadata: list[Any]) -> str:
    least = next((item.min_length for item in _flat(metadata) if isinstance(item, annotated_types.MinLen)), 0)
    return " (not empty)" if least else ""


def _flat(metadata: list[Any]) -> list[Any]:
    flat: list[Any] = []
    for item in metadata:
        flat += item.metadata if isinstance(item, FieldInfo) else [item]
    return flat


def _range(metadata: list[Any]) -> str:
    low = high = above = None
    for item in _flat(metadata):
        low = item.ge if isinstance(item, annotated_types.Ge) else low
        high = item.le if isinstance(item, annotated_types.Le) else high
        above = item.gt if isinstance(item, annotated_types.Gt) else above
    if low is not None and high is not None:
        return f" from {low} to {high}"
    if low is not None:
        return f" of at least {low}"
    return f" above {above}" if above is not None else ""


def _near_choice(field: FieldInfo, given: Any) -> str:
    annotation, choices = field.annotation, []
    for candidate in (annotation, *get_args(annotation)):
        base = get_args(candidate)[0] if get_origin(candidate) is Annotated else candidate
        if get_origin(base) is Literal:
            choices = [choice for choice in get_args(base) if isinstance(choice, str)]
    near = nearest(given, choices) if isinstance(given, str) else None
    return f"; did you mean {near!r}?" if near is not None else ""


def _plural(phrase: str) -> str:
    return phrase.removeprefix("a ").replace("number", "numbers", 1)


def _count(number: int) -> str:
    return {2: "two", 3: "three"}.get(number, str(number))


def show(value: Any) -> str:
    """A value as it would stand in YAML, short."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "a mapping" if value else "an empty mapping"
    text = repr(str(value)) if isinstance(value, str | Path) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
