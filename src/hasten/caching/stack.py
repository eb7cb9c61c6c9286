"""A stack of cache layers on the same denoisers: each call goes through them all, the outermost first.

A layer is one site, policy and predictor. What one of them leaves out, those within it are not asked for. All of them
listen to one clock, and share the names of the branches.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Any

from torch import Tensor

from hasten.caching.cache import Cache, FiguresOf
from hasten.caching.clock import Clock
from hasten.caching.denoiser import Port
from hasten.caching.guidance_layer import GuidanceCache
from hasten.caching.ledger import Ledger
from hasten.caching.report import Book, Report
from hasten.caching.settings import Settings
from hasten.caching.sites import Call


class Stack:
    """Runs the layers of a plan on a pipeline's denoisers.

    Args:
        layers: outermost first; none at all to compute every step and only take the time.
        clock_of: makes the clock, given what to call when a run begins and ends.
        figures: for each layer that needs measured figures, what tells them.
    """

    def __init__(
        self,
        layers: Sequence[Settings],
        ports: Sequence[Port],
        clock_of: Callable[[Callable[[], None], Callable[[], None]], Clock],
        figures: Mapping[Settings, FiguresOf] | None = None,
    ) -> None:
        self.clock = clock_of(self._begin, self._end)
        self._ports = ports
        self.layers = [_layer(settings, ports, self.clock, (figures or {}).get(settings)) for settings in layers] or [
            Cache(None, ports, self.clock)
        ]
        self._book = Book()
        self._runs = 0
        self._warned = False
        self._corrects = any(settings.correct for settings in layers)
        self._shows = any(settings.policy == "tolerance" for settings in layers)
        self._ledger: Ledger | None = None
        self._left_out = 0
        if self._corrects or self._shows:
            self.clock.on_output = self._output

    def attach(self) -> None:
        for port in self._ports:
            port.attach(self.call)
        self.clock.attach()

    def detach(self) -> None:
        self.clock.detach()
        for port in self._ports:
            port.detach()
        for layer in self.layers:
            layer.detach()
        self._close()

    def report(self) -> Report:
        """What happened in the last run that called a denoiser."""
        reports = tuple(layer.report() for layer in self.layers)
        if self._ledger is not None and self._ledger.note:
            note = f"nothing is corrected or foretold: {self._ledger.note}"
            reports = tuple(replace(report, notes=(*report.notes, note)) for report in reports)
        if len(reports) == 1:
            return reports[0]
        reports = tuple(replace(report, site=layer.site) for report, layer in zip(reports, self.layers, strict=True))
        return self._book.report(
            runs=self._runs,
            method=" + ".join(dict.fromkeys(report.method for report in reports)),
            predictor=", ".join(dict.fromkeys(report.predictor for report in reports)),
            notes=tuple(dict.fromkeys(note for report in reports for note in report.notes)),
            layers=reports,
        )

    def call(self, port: Port, inner: Call, args: Any, kwargs: Any) -> Any:
        """A denoiser is called."""
        clock = self.clock
        clock.arrive(port.timestep(args, kwargs))
        port.enter((clock.run, clock.index))
        if len(self.layers) == 1:
            return self.layers[0].call(port, inner, args, kwargs)
        started = perf_counter()
        if not self._book.calls:
            self._runs += 1
        skipped = [layer.skipped for layer in self.layers]
        for layer in reversed(self.layers):
            inner = partial(_through, layer, port, inner)
        result = inner(*args, **kwargs)
        self._enter(port, skipped, perf_counter() - started)
        return result

    def _output(self, output: Tensor, latent: Tensor) -> Tensor:
        """What a step comes to, on its way to the scheduler."""
        if self._ledger is None:
            return output
        left_out = sum(layer.skipped for layer in self.layers)
        computed, self._left_out = left_out == self._left_out, left_out
        output, shown = self._ledger.see(output, latent, computed)
        if shown is not None:
            for layer in self.layers:
                layer.learn(shown)
        return output

    def _enter(self, port: Port, skipped: Sequence[int], seconds: float) -> None:
        """Keep the book of the whole: a call is computed where no layer left anything out."""
        index = self.clock.index
        now = [layer for layer, before in zip(self.layers, skipped, strict=True) if layer.skipped > before]
        where = (port.name, port.branch)
        self._book.enter(
            where,
            index,
            self.clock.sigma(index),
            computed=not now,
            reason=", ".join(f"{layer.site} left out" for layer in now) or "nothing left out",
            seconds=seconds,
            site=", ".join(layer.site for layer in self.layers),
            minor=not now,  # one call with a part left out is enough for the step to count as skipped
        )
        self._book.weigh(
            where, sum(layer.nbytes(port.branch) for layer in self.layers), sum(layer.nbytes() for layer in self.layers)
        )

    def _begin(self) -> None:
        self._close()
        if self._book.calls:
            self._book = Book()
        for port in self._ports:
            port.arm()
        for layer in self.layers:
            layer.begin()
        self._left_out = 0
        if self._corrects or self._shows:
            self._ledger = Ledger(self.clock, corrects=self._corrects, shows=self._shows)

    def _end(self) -> None:
        for layer in self.layers:
            layer.end()
        self._close()

    def _close(self) -> None:
        """Say so, once, if a run skipped nothing although it was asked to."""
        if self._warned or any(layer.skipped for layer in self.layers):
            return
        complaint = next((layer.complaint for layer in self.layers if layer.complaint), "")
        if complaint:
            self._warned = True
            warnings.warn(f"hasten skipped nothing in this run: {complaint}", stacklevel=2)


def _layer(settings: Settings, ports: Sequence[Port], clock: Clock, figures: FiguresOf | None) -> Cache:
    return (GuidanceCache if settings.site == "guidance" else Cache)(settings, ports, clock, figures)


def _through(layer: Cache, port: Port, inner: Call, *args: Any, **kwargs: Any) -> Any:
    return layer.call(port, inner, args, kwargs)
