"""The caching core: which steps of a denoiser are computed, and what stands in on the others.

Three small parts make a method: a *policy* (compute or skip, once per step), a *predictor* (weights over the last
computed snapshots) and a *site* (what is left out, and where the stand-in is read and written).

Files: `clock` (run, step, sigma), `wiring` (how a model's blocks hang together, learned by watching), `sites`,
`policies`, `predictors`, `snapshots`, `budget` (their ceiling), `methods` (names and defaults), `denoiser`, `cache`
(the engine), `report`; `patching` and `trees` are tools. `helpers` (with `blockwise` and `published`) has AngelSlim's
interface for lists of blocks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.caching.helpers import CacheHelper, DeepCacheHelper, TaylorCacheHelper, TeaCacheHelper
    from hasten.caching.methods import METHODS, Method, Settings, resolve
    from hasten.caching.report import BranchRow, Report, StepRow

__all__ = [
    "METHODS",
    "BranchRow",
    "CacheHelper",
    "DeepCacheHelper",
    "Method",
    "Report",
    "Settings",
    "StepRow",
    "TaylorCacheHelper",
    "TeaCacheHelper",
    "resolve",
]

# A name is imported when it is first used: the command line reads the methods without torch.
_HOME = {
    **dict.fromkeys(("CacheHelper", "DeepCacheHelper", "TaylorCacheHelper", "TeaCacheHelper"), "helpers"),
    **dict.fromkeys(("METHODS", "Method", "Settings", "resolve"), "methods"),
    **dict.fromkeys(("BranchRow", "Report", "StepRow"), "report"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hasten.caching' has no attribute {name!r}")
    return getattr(import_module(f"hasten.caching.{_HOME[name]}"), name)
