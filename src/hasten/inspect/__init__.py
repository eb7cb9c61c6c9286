"""Look inside a model without its weights: layers, cost, stages, skip connections, and their places in the code."""

from __future__ import annotations

from typing import Any

__all__ = ["Inspection", "Size", "find_source", "inspect_model"]


def __getattr__(name: str) -> Any:
    # The sources are found without torch; what builds models brings it.
    if name == "find_source":
        from hasten.inspect.sources import find_source

        return find_source
    if name in __all__:
        from hasten.inspect import inspection

        return getattr(inspection, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
