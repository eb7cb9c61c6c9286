"""Which passes go together: one table, that the planner refuses by and that the documentation prints.

A pair that is not in the table of conflicts is tested: see `tests/passes/test_pairs.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from hasten.errors import PassError
from hasten.plan import Plan

# Other sites leave single blocks, or parts of them, out of a skipped step, so that these have to be called one by one.
_WHOLE_SITES = (None, "output", "latent")


def _formats(plan: Plan) -> list[str]:
    values = [plan.precision.dtype, *(getattr(plan.precision, name) for name in plan.precision.COMPONENTS)]
    return [value for value in values if value is not None]


def _traced(plan: Plan) -> bool:
    return plan.compile.on and plan.compile.backend == "trace"


def _compiled(plan: Plan) -> bool:
    return plan.compile.on and not _traced(plan)


FEATURES: dict[str, Callable[[Plan], bool]] = {
    "adaptive": lambda plan: plan.adaptive.on,
    "formats": lambda plan: any(value in ("fp32", "fp16", "bf16") for value in _formats(plan)),
    "fp8 storage": lambda plan: any(value.startswith("fp8") for value in _formats(plan)),
    "quantization": lambda plan: plan.quantization.on or "int8" in _formats(plan),
    "attention.kernel": lambda plan: plan.attention.kernel is not None,
    "attention.backend": lambda plan: plan.attention.backend is not None,
    "attention.slicing": lambda plan: plan.attention.slicing is not None,
    "attention.fused_qkv": lambda plan: bool(plan.attention.fused_qkv),
    "attention.channels_last": lambda plan: bool(plan.attention.channels_last),
    "tokens": lambda plan: plan.tokens.on,
    "cache of the output": lambda plan: any(cache.site in _WHOLE_SITES for cache in plan.caches),
    "cache of blocks": lambda plan: any(cache.site not in _WHOLE_SITES for cache in plan.caches),
    "compile.scope: blocks": lambda plan: _compiled(plan) and plan.compile.scope != "model",
    "compile.scope: model": lambda plan: _compiled(plan) and plan.compile.scope == "model",
    "compile.backend: trace": _traced,
    "memory.vae_slicing": lambda plan: bool(plan.memory.vae_slicing),
    "memory.vae_tiling": lambda plan: bool(plan.memory.vae_tiling),
    "offload: group, leaf": lambda plan: plan.memory.offload == "group" and plan.memory.group != "block",
    "offload: group, block": lambda plan: plan.memory.offload == "group" and plan.memory.group == "block",
}
"""What can be on in a plan, in the order in which it is applied."""


class Pair(NamedTuple):
    """Two features that do not go together, and why not.

    Attributes:
        only: the conflict is there in these plans alone; the reason says in which.
    """

    first: str
    second: str
    reason: str
    only: Callable[[Plan], bool] = lambda plan: True


_SLICES = "attention in slices is computed by plain products, and no kernel is asked"

_QUANTIZED = "quantized weights cannot be written to disk; without memory.disk they can be moved"
_TO_DISK = "channels-last weights cannot be written to disk; without memory.disk they can be moved"


def _on_disk(plan: Plan) -> bool:
    return plan.memory.disk is not None


_TRACED = "compile.backend: trace"
_FROZEN = "what it does before each call would be recorded as it was in the first"
_COMING = "weights come and go inside of what is compiled; take scope: blocks with group: block"

CONFLICTS = (
    Pair("fp8 storage", "quantization", "both change how weights are stored; give the components of one to the other"),
    Pair("quantization", "offload: group, leaf", _QUANTIZED, _on_disk),
    Pair("quantization", "offload: group, block", _QUANTIZED, _on_disk),
    Pair(
        "fp8 storage",
        "attention.fused_qkv",
        "the fused weights would be made of stored ones, and nothing would widen them when they are used",
    ),
    Pair(
        "fp8 storage",
        "compile.scope: model",
        "the hooks that widen weights would be compiled layer by layer until torch gives up; take scope: blocks",
    ),
    Pair("attention.kernel", "attention.backend", "both choose the kernel; give one of them"),
    Pair("attention.kernel", "attention.slicing", _SLICES),
    Pair("attention.backend", "attention.slicing", _SLICES),
    Pair(
        "attention.slicing",
        "attention.fused_qkv",
        "slices are computed from the separate projections, so that the fused ones would not be used",
    ),
    Pair(
        "cache of blocks",
        "compile.scope: model",
        "blocks of a model that is compiled as a whole cannot be left out; take scope: blocks, or site: output",
    ),
    Pair("attention.channels_last", "offload: group, leaf", _TO_DISK, _on_disk),
    Pair("attention.channels_last", "offload: group, block", _TO_DISK, _on_disk),
    Pair("compile.scope: blocks", "offload: group, leaf", _COMING),
    Pair("compile.scope: model", "offload: group, leaf", _COMING),
    Pair("compile.scope: model", "offload: group, block", _COMING),
    Pair("fp8 storage", _TRACED, _FROZEN),
    Pair("quantization", _TRACED, "torch.jit has no words for quantized weights; torch.compile has"),
    Pair("tokens", _TRACED, _FROZEN),
    Pair(
        "cache of blocks", _TRACED, "blocks of a model that is traced as a whole cannot be left out; take site: output"
    ),
    Pair(_TRACED, "offload: group, leaf", _FROZEN),
    Pair(_TRACED, "offload: group, block", _FROZEN),
)


def check_conflicts(plan: Plan) -> None:
    """Refuse a plan in which two passes exclude each other.

    Raises:
        PassError: with every such pair.
    """
    on = {name for name, is_on in FEATURES.items() if is_on(plan)}
    found = [pair for pair in CONFLICTS if {pair.first, pair.second} <= on and pair.only(plan)]
    if found:
        raise PassError(
            "\n".join(f"{pair.first} and {pair.second} do not go together: {pair.reason}" for pair in found)
        )


def alternatives(first: str, second: str) -> bool:
    """Whether two features are two values of one setting, so that they cannot meet."""
    return ":" in first and _setting(first) == _setting(second)


def _setting(feature: str) -> str:
    return "compile" if feature.startswith("compile.") else feature.partition(":")[0]


def matrix() -> str:
    """The table of all pairs, and the reasons, as Markdown."""
    names = list(FEATURES)
    reasons = list(dict.fromkeys(pair.reason for pair in CONFLICTS))
    refused = {frozenset((pair.first, pair.second)): reasons.index(pair.reason) + 1 for pair in CONFLICTS}

    def cell(first: str, second: str) -> str:
        number = refused.get(frozenset((first, second)))
        return f"no ({number})" if number else "–" if alternatives(first, second) else "tested"

    rows = [
        [first, *("" if column <= row else cell(first, second) for column, second in enumerate(names) if column)]
        for row, first in enumerate(names[:-1])
    ]
    table = ["| " + " | ".join(line) + " |" for line in [["", *names[1:]], ["---"] * len(names), *rows]]
    return "\n".join([*table, "", *(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1))])
