"""Benchmarks: speed and quality of plans, beside the reference. Imported on first use: it needs torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.bench.api import benchmark
    from hasten.bench.run import Bench
    from hasten.bench.schema import BenchReport

_HOME = {"Bench": "run", "BenchReport": "schema", "benchmark": "api"}

__all__ = ["Bench", "BenchReport", "benchmark"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
