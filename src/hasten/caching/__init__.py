"""The caching core: which steps of a denoiser are computed, and what stands in on the others.

Three small parts make a method: a *policy* (compute or skip, once per step), a *predictor* (weights over the last
computed snapshots) and a *site* (what is left out, and where the stand-in is read and written).

Files: `vocabulary`, `methods`, `settings` and `resolving` (names, their defaults, and a plan's sections filled with
them); `clock` (run, step, sigma); `policies`, `masks` and `adaptive` (when), `signals`, `spectral`, `midway` and
`figures` (by what they decide); `predictors`, `fits`, `bands` and `prediction` (how); `sites`, `spans`, `passage`,
`branches`, `modules` and `guidance` (where), `wiring`, `joins`, `tracing`, `interleaved` and `parts` (how a model
hangs together, learned by watching); `snapshots` and `budget` (what is stored); `denoiser`, `timetable`, `serving`,
`fallback` and `cache` (the engine of a layer), `stack` and `report`; `patching` and `trees` are tools. `helpers`
(with `blockwise` and `published`) has AngelSlim's interface for lists of blocks.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.caching.helpers import CacheHelper, DeepCacheHelper, TaylorCacheHelper, TeaCacheHelper
    from hasten.caching.methods import METHODS, Method
    from hasten.caching.report import BranchRow, Report, StepRow
    from hasten.caching.resolving import resolve
    from hasten.caching.settings import Settings

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
    **dict.fromkeys(("METHODS", "Method"), "methods"),
    "Settings": "settings",
    "resolve": "resolving",
    **dict.fromkeys(("BranchRow", "Report", "StepRow"), "report"),
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'hasten.caching' has no attribute {name!r}")
    return getattr(import_module(f"hasten.caching.{_HOME[name]}"), name)
