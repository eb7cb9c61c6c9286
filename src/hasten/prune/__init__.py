"""Make a model smaller: whole blocks by what they do to the output, or widths by importance; recovered by training."""

from __future__ import annotations

from typing import Any

__all__ = ["Goal", "Pruned", "prune"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from hasten.prune import pruning

        return getattr(pruning, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
