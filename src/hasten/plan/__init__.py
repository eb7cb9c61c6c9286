"""The plan: everything that makes a generation faster, as one validated object.

A YAML file, a preset's name, a mapping, `--set` strings and keyword arguments all end in the same frozen `Plan`,
and every mistake in any of them is told at once, each with the place where it was made.

Files: `schema` (what a plan is), `reading` (YAML with line numbers), `overlay` (sources laid over each other),
`checks` (combinations that cannot be), `messages` (what a person is told), `values` (forgiving spellings).
"""

from hasten.plan.adaptive import AdaptiveSteps, Uncertainty
from hasten.plan.build import build_plan, load_plan
from hasten.plan.overlay import preset_names, read_preset
from hasten.plan.sampling import Sampler
from hasten.plan.schema import Cache, Generation, Output, Plan
from hasten.plan.speed import Attention, Compile, Memory, Precision, Quantization, Tokens

__all__ = [
    "AdaptiveSteps",
    "Attention",
    "Cache",
    "Compile",
    "Generation",
    "Memory",
    "Output",
    "Plan",
    "Precision",
    "Quantization",
    "Sampler",
    "Tokens",
    "Uncertainty",
    "build_plan",
    "load_plan",
    "preset_names",
    "read_preset",
]
