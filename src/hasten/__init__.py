"""hasten: make any diffusers pipeline faster, and say what that cost.

>>> import hasten
>>> with hasten.accelerate(pipe, "taylorseer", interval=4) as handle:  # doctest: +SKIP
...     image = pipe("a red circle left of a blue square").images[0]
...     print(handle.report())
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from hasten._version import __version__

if TYPE_CHECKING:
    from hasten.comparison import compare
    from hasten.errors import HastenError
    from hasten.generation import generate
    from hasten.handle import Handle, accelerate
    from hasten.plan import Plan, load_plan

__all__ = ["Handle", "HastenError", "Plan", "__version__", "accelerate", "compare", "generate", "load_plan"]

# A name is imported when it is first used: `import hasten` alone must not import torch.
_HOME = {
    "Handle": "hasten.handle",
    "HastenError": "hasten.errors",
    "Plan": "hasten.plan",
    "accelerate": "hasten.handle",
    "compare": "hasten.comparison",
    "generate": "hasten.generation",
    "load_plan": "hasten.plan",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(_HOME))
