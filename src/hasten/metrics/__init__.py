"""Measures of what an accelerated image is worth; imported on first use, since they need torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.metrics.fidelity import psnr, ssim

_HOME = {"psnr": "fidelity", "ssim": "fidelity"}

__all__ = ["psnr", "ssim"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
