"""Spellings that are understood because they cannot mean anything else, and one that is refused because it can."""

from __future__ import annotations

import re
from difflib import get_close_matches
from string import Formatter
from typing import Any

from pydantic_core import PydanticCustomError

DEVICES = ("auto", "cpu", "cuda", "npu", "hpu", "xpu", "mps")

_DTYPES = {
    "float32": "fp32",
    "float": "fp32",
    "float16": "fp16",
    "half": "fp16",
    "bfloat16": "bf16",
    "float8": "fp8",
    "float8_e4m3fn": "fp8",
    "fp8_e4m3": "fp8",
    "fp8_e4m3fn": "fp8",
    "float8_e5m2": "fp8_e5m2",
}
_DEVICE_KINDS = {"gpu": "cuda", "nvidia": "cuda", "rocm": "cuda", "ascend": "npu", "gaudi": "hpu", "metal": "mps"}

SAID = "hasten_said"
"""The type of an error whose message is already meant for the user."""


def no_boolean(value: Any) -> Any:
    """Refuse true and false where a number or a text belongs: pydantic would take them for 1 and 0."""
    if isinstance(value, bool):
        raise PydanticCustomError("boolean", "a boolean")
    return value


def as_name(value: Any) -> Any:
    """Names are lower-case; `TaylorSeer` is `taylorseer`."""
    return value.strip().lower() if isinstance(value, str) else value


def as_dtype(value: Any) -> Any:
    """`bfloat16`, `torch.bfloat16` and the torch dtype itself are `bf16`."""
    text = value if isinstance(value, str) else str(value)
    name = text.strip().lower().removeprefix("torch.")
    if name in _DTYPES or isinstance(value, str):
        return _DTYPES.get(name, name)
    return value


def as_device(value: Any) -> str:
    """A device's kind and, after a colon, its index; a `torch.device` is taken too."""
    name = str(value).strip().lower()
    match = re.fullmatch(r"([a-z]+)(?::(\d+))?", name)
    if match and match[1] in DEVICES and not (match[2] and match[1] == "auto"):
        return name
    kind = match[1] if match else name
    near = [_DEVICE_KINDS[kind]] if kind in _DEVICE_KINDS else get_close_matches(kind, DEVICES, n=1)
    hint = f"; did you mean '{near[0]}'?" if near and near[0] != kind else ""
    # The braces are filled in by pydantic, which would stumble over braces in the value itself.
    raise PydanticCustomError(
        SAID,
        "must be one of {allowed}, with an index if you like ('cuda:1'), not '{value}'{hint}",
        {"allowed": ", ".join(DEVICES), "value": name, "hint": hint},
    )


def ascending(value: Any) -> Any:
    """A mask is a set: the order and repetitions of its steps mean nothing."""
    if isinstance(value, list | tuple | set | frozenset | range):
        steps = list(value)
        if all(isinstance(step, int) and not isinstance(step, bool) for step in steps):
            return sorted(set(steps))
        return steps
    return value


_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def as_bytes(value: Any) -> Any:
    """`8GiB`, `512 MB` or a number of bytes."""
    if isinstance(value, str):
        match = re.fullmatch(r"([\d.]+)\s*([a-z]*)", value.strip().lower())
        if match and match[2] in _UNITS and match[1].count(".") <= 1 and match[1] != ".":
            return float(match[1]) * _UNITS[match[2]]
        raise PydanticCustomError(
            SAID, "must be bytes with a unit, such as 8GiB or 512MB, not '{value}'", {"value": value}
        )
    return no_boolean(value)


def as_scheme(value: Any) -> Any:
    """`int8_dynamic`, `INT8` and `int8` are one name, as are `int8wo`, `int8_weight_only` and `int8-weight-only`."""
    if not isinstance(value, str):
        return value
    name = value.strip().lower().replace("_", "-")
    return re.sub(r"-?wo$", "-weight-only", name.removesuffix("-dynamic"))


FILENAME_FIELDS = ("method", "prompt", "seed", "index", "steps")


def a_filename(value: str) -> str:
    """The name of an image, with `{seed}`, `{index:03d}` and others of its fields in braces."""
    problem = _filename_problem(value)
    if problem:
        text = {"value": value, "problem": problem, "allowed": ", ".join(f"{{{name}}}" for name in FILENAME_FIELDS)}
        raise PydanticCustomError(SAID, "'{value}' is no name for images: {problem} (allowed: {allowed})", text)
    return value


def _filename_problem(value: str) -> str:
    try:
        fields = [name for _, name, _, _ in Formatter().parse(value) if name is not None]
        unknown = [name for name in fields if name not in FILENAME_FIELDS]
        if unknown:
            near = get_close_matches(unknown[0], FILENAME_FIELDS, n=1)
            hint = f"; did you mean {{{near[0]}}}?" if near else ""
            return f"there is no {{{unknown[0]}}}{hint}"
        value.format(method="a", prompt="b", seed=0, index=0, steps=1)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError) as error:
        return str(error)
    if "/" in value or "\\" in value:
        return "a folder goes into io.out"
    return "" if value.endswith(".png") and len(value) > len(".png") else "it has to end in .png"


_PARTS = {
    "attn": "self_attention",
    "attention": "self_attention",
    "crossattn": "cross_attention",
    "cross_attn": "cross_attention",
    "mlp": "feed_forward",
    "ff": "feed_forward",
}


def as_part(value: Any) -> Any:
    """`attn`, `crossattn` and `mlp`, as the package tomesd names them, and `Self-Attention`."""
    name = as_name(value)
    name = name.replace("-", "_") if isinstance(name, str) else name
    return _PARTS.get(name, name)


def a_pattern(value: str) -> str:
    """A regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        text = {"value": value, "error": str(error)}
        raise PydanticCustomError(SAID, "'{value}' is no regular expression: {error}", text) from None
    return value
