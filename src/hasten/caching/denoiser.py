"""A denoiser as the engine sees it: a module with its taps, its sites and its branches."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

from torch import nn

from hasten.caching.branches import BranchSite
from hasten.caching.guidance import GuidanceSite
from hasten.caching.midway import Probe
from hasten.caching.modules import PARTS, ModulesSite
from hasten.caching.patching import CALL, Tap
from hasten.caching.policies import Decision
from hasten.caching.settings import Settings
from hasten.caching.signals import Gauge, latent_of
from hasten.caching.sites import LatentSite, OutputSite, Site
from hasten.caching.snapshots import History
from hasten.caching.spans import SpanSite
from hasten.caching.vocabulary import SiteName
from hasten.caching.wiring import ENOUGH


class Branch:
    """One purpose for which a denoiser is called at each step, with what is stored for it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.history = History()
        self.blanks: dict[int, Any] = {}
        self.signatures: dict[bool, object] = {}
        """What calls with all rows of a batch and with half of them (True) look like."""
        self.serial = 0
        self.site: Site | None = None
        self.last_index = 0
        self.lost = ""
        self.verdict: Decision | None = None
        self.gauge: Gauge | None = None

    def forget(self, why: str = "") -> None:
        """Nothing that was stored fits any more."""
        self.lost = why if len(self.history) else ""
        self.history.trim(0)
        self.blanks = {}
        self.signatures = {}
        self.site = None


class Port:
    """A module that is called at every step: its calls pass here, and here they get their branch.

    Args:
        name: its name in the pipeline.
        timestep: finds the timestep among its arguments.

    Attributes:
        branch: the branch that is being called.
        moment: counts the steps.
        serial: counts the calls.
        half: the call is about the second, conditional half of its batch alone.
        alone: no unconditional branch is computed beside this call.
    """

    def __init__(self, name: str, module: nn.Module, timestep: Callable[[Any, Any], object]) -> None:
        self.name = name
        self.module = module
        self.timestep = timestep
        self.branch = ""
        self.moment = 0
        self.serial = 0
        self.half = False
        self.alone = True
        self._taps: list[Tap] = []
        self._context: str | None = None
        self._moment = (0, 0)
        self._called: Counter[str | None] = Counter()
        self.latent = latent_of(module, timestep)

    def attach(self, call: Callable[[Port, Callable[..., Any], Any, Any], Any]) -> None:
        """Let calls go through `call`."""
        self._call = call
        self._taps = [Tap(self.module, CALL, partial(call, self))]
        if callable(getattr(self.module, "cache_context", None)):
            # diffusers' pipelines say here for which branch they call.
            self._taps.append(Tap(self.module, "cache_context", self._named))

    def detach(self) -> None:
        """Leave the module as it was."""
        for tap in reversed(self._taps):
            tap.remove()
        self._taps = []

    def arm(self) -> None:
        """Put taps back that something else was put in the place of."""
        if not all(tap.in_place for tap in self._taps):
            for tap in reversed(self._taps):
                tap.remove()
            self.attach(self._call)

    def enter(self, moment: tuple[int, int]) -> None:
        """A call at (run, step): which branch is it?"""
        self.serial += 1
        if moment != self._moment:
            self._moment = moment
            self.moment += 1
            self._called.clear()
        number = self._called[self._context]
        self._called[self._context] += 1
        if self._context is None:
            self.branch = str(number)
        else:
            self.branch = self._context if number == 0 else f"{self._context} {number + 1}"

    @contextmanager
    def _named(self, inner: Callable[..., AbstractContextManager[Any]], args: Any, kwargs: Any) -> Iterator[Any]:
        before, self._context = self._context, str(args[0] if args else kwargs.get("name"))
        try:
            with inner(*args, **kwargs) as value:
                yield value
        finally:
            self._context = before


class Denoiser:
    """A port as one cache layer sees it: with sites and branches of its own.

    Attributes:
        verdict: what the first branch of the current step decided for all.
        gauge: an adaptive policy at work.
    """

    def __init__(self, port: Port) -> None:
        self.port = port
        self.name = port.name
        self.module = port.module
        self.branches: dict[str, Branch] = {}
        self.notes: dict[str, str] = {}
        """What turned out otherwise than asked for, by what it is about."""
        self.verdict: Decision | None = None
        self.gauge: Gauge | None = None
        self._sites: dict[SiteName, Site] = {}
        self._probe: Probe | None = None
        self._moment = (0, 0)

    def detach(self) -> None:
        """Leave the blocks as they were."""
        for site in self._sites.values():
            site.detach()
        if self._probe is not None:
            self._probe.detach()
        self._sites, self._probe = {}, None
        self.branches = {}

    def arm(self) -> None:
        """A run begins: put taps back that something else was put in the place of."""
        self.branches = {}
        self.gauge = None
        for site in self._sites.values():
            site.arm()
        if self._probe is not None:
            self._probe.arm()

    def probe(self, settings: Settings) -> Probe:
        """What shows a signal in the middle of a call, made when it is first asked for."""
        if self._probe is None:
            assert settings.signal is not None
            self._probe = Probe(self.module, self.port.timestep, settings.signal, settings.probe)
        return self._probe

    def site(self, name: SiteName, settings: Settings) -> Site:
        """The site of that name, made when it is first asked for."""
        if name not in self._sites:
            self._sites[name] = self._made(name, settings)
        return self._sites[name]

    def _made(self, name: SiteName, settings: Settings) -> Site:
        if name == "output":
            return OutputSite()
        if name == "latent":
            return LatentSite(self.port.latent)
        if name == "unet_branch":
            # Where nobody asked for this very site it has to save about as much as the one in whose place it stands.
            return BranchSite(self.module, settings.branch, least=0.0 if settings.site == name else ENOUGH)
        if name == "guidance":
            return GuidanceSite(self.port)
        if name in PARTS:
            return ModulesSite(self.module, name)
        keep = settings.span if name != "residual" else (0, 0)
        return SpanSite(self.module, *keep, absolute=name == "last_block", verifies=settings.policy == "verify")

    @property
    def reached(self) -> bool:
        """Whether the last call came to what this layer leaves out."""
        return all(site.reached for site in self._sites.values())

    def enter(self, moment: tuple[int, int]) -> Branch:
        """A call at (run, step): the branch that it is."""
        if moment != self._moment:
            self._moment = moment
            self.verdict = None
            for known in self.branches.values():
                known.verdict = None
        name = self.port.branch
        branch = self.branches.get(name)
        if branch is None:
            branch = self.branches[name] = Branch(name)
        return branch
