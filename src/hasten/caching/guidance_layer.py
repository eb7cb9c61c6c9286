"""The engine of a layer that leaves out the unconditional branch."""

from __future__ import annotations

from typing import Any

from hasten.caching.cache import Cache
from hasten.caching.denoiser import Branch, Denoiser
from hasten.caching.guidance import GuidanceSite
from hasten.caching.serving import Served
from hasten.caching.sites import Call

_CONDITIONAL = "the conditional branch"


class GuidanceCache(Cache):
    """The layer of the guidance site: the conditional branch is always computed, and known before the other one."""

    def _serve(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any) -> Served:
        assert self.settings is not None
        site = denoiser.site("guidance", self.settings)
        assert isinstance(site, GuidanceSite)
        port = denoiser.port
        try:
            if site.role(args, kwargs) != "conditional":
                port.alone = False
                return super()._serve(denoiser, branch, inner, args, kwargs)
            port.alone = self._leaves_out(denoiser, branch)
            result = inner(*args, **kwargs)
        finally:
            port.alone = True
        site.keep(result)
        return Served(result, True, _CONDITIONAL, minor=True)

    @property
    def complaint(self) -> str:
        alone = self._book.reasons().keys() == {_CONDITIONAL}
        return "there is no unconditional branch to leave out" if super().complaint and alone else super().complaint

    def _leaves_out(self, denoiser: Denoiser, branch: Branch) -> bool:
        """Whether the branches beside the conditional one are going to be left out, or there are none."""
        decision, _ = self.timetable.at(self.clock.index)
        others = [other for other in denoiser.branches.values() if other is not branch]
        left_out = not decision.compute and all(self._obstacle(denoiser, other) is None for other in others)
        return not others or left_out

    def _skip(self, denoiser: Denoiser, branch: Branch, inner: Call, args: Any, kwargs: Any) -> Served:
        assert self.settings is not None
        assert isinstance(branch.site, GuidanceSite)
        since = range(branch.history.indices[0] + 1, self.clock.index + 1)
        branch.site.gains = self.settings.guidance_gains([self.clock.timestep(step) for step in since])
        return super()._skip(denoiser, branch, inner, args, kwargs)
