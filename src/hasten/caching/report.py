"""What happened in a run: counts, reasons, bytes and seconds. No torch in here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from math import isfinite
from statistics import median, quantiles
from typing import Any


@dataclass(frozen=True)
class StepRow:
    """One step of a run.

    Attributes:
        sigma: its noise level as the scheduler tells it.
        computed: whether any of its denoiser calls was computed.
        reason: why it was computed, or what it was predicted from.
        seconds: time in its denoiser calls. On an accelerator this is the time to launch the work, which the device
            may finish later.
        signal: what an adaptive policy measured; None where it did not ask. Where branches decide for themselves, the
            first one's.
    """

    index: int
    sigma: float
    computed: bool
    reason: str
    seconds: float
    signal: float | None = None


@dataclass(frozen=True)
class BranchRow:
    """The calls of one denoiser for one purpose: conditional, unconditional, …

    Attributes:
        denoiser: its name in the pipeline.
        branch: the pipeline's own name for it, or its number among the calls of a step.
        site: where its skipped calls were left out.
        reasons: how many of its calls were computed for which reason.
        snapshot_bytes: the most memory that its snapshots took at a time.
    """

    denoiser: str
    branch: str
    site: str
    computed: int
    skipped: int
    reasons: Mapping[str, int]
    snapshot_bytes: int


@dataclass(frozen=True)
class PassRow:
    """What was done to a pipeline besides its cache.

    Attributes:
        name: the pass: "precision", "compile", …
        component: the part of the pipeline, "pipeline" for the whole.
        what: what was really done, in words.
        figures: what was measured on the way, such as bytes before and after.
    """

    name: str
    component: str
    what: str
    figures: Mapping[str, str | int | float]

    def __str__(self) -> str:
        figures = dict(self.figures)
        text = f"{self.name}: {self.component}: {self.what}"
        if "bytes_before" in figures and "bytes_after" in figures:
            sizes = [float(figures.pop(key)) / 2**20 for key in ("bytes_before", "bytes_after")]
            text += f", {sizes[0]:.1f} → {sizes[1]:.1f} MiB"
        return "".join([text, *(f", {name.replace('_', ' ')} {value}" for name, value in figures.items())])


@dataclass(frozen=True)
class Report:
    """The last run of an accelerated denoiser.

    Attributes:
        runs: how many runs the handle has seen; 0 if none, and then everything else is empty.
        method, site, predictor: what was used; where denoisers differ, all their sites.
        steps: every step so far.
        branches: every branch, in the order of their first calls.
        notes: what was changed, and why, compared with what the plan asked for.
        snapshot_bytes: the most memory that all snapshots together took at a time.
        computed_call_seconds, skipped_call_seconds: median of one call of a denoiser; None where there was none.
            See `StepRow.seconds` for what this is on an accelerator.
        layers: of a stack of caches, what each of them did, outermost first. A step of the whole then counts as
            computed where none of them left anything out. Empty where there is only one.
        passes: what was done to the pipeline besides the cache.
        signal: what was measured to decide the steps by, and the threshold; empty where nothing was.
    """

    runs: int
    method: str
    site: str
    predictor: str
    steps: tuple[StepRow, ...]
    branches: tuple[BranchRow, ...]
    notes: tuple[str, ...]
    snapshot_bytes: int
    computed_call_seconds: float | None
    skipped_call_seconds: float | None
    layers: tuple[Report, ...] = ()
    passes: tuple[PassRow, ...] = ()
    signal: str = ""

    @property
    def computed(self) -> int:
        """Denoiser calls that were computed."""
        return sum(branch.computed for branch in self.branches)

    @property
    def skipped(self) -> int:
        """Denoiser calls that were skipped."""
        return sum(branch.skipped for branch in self.branches)

    @property
    def computed_steps(self) -> int:
        return sum(step.computed for step in self.steps)

    @property
    def skipped_steps(self) -> int:
        return len(self.steps) - self.computed_steps

    @property
    def signals(self) -> tuple[float, ...]:
        """What was measured, in ascending order: a threshold between two of them would part these steps."""
        return tuple(sorted(step.signal for step in self.steps if step.signal is not None and isfinite(step.signal)))

    @property
    def signal_quantiles(self) -> Mapping[str, float]:
        """The distribution of the signal, for choosing a threshold; empty where nothing was measured."""
        values = self.signals
        if len(values) < 2:
            return dict.fromkeys(("lowest", "highest"), values[0]) if values else {}
        quarters = quantiles(values, n=4, method="inclusive")
        names = ("lowest", "25 %", "median", "75 %", "highest")
        return dict(zip(names, (values[0], *quarters, values[-1]), strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        data = asdict(self)
        data.pop("layers")
        layers = {"layers": [layer.to_dict() for layer in self.layers]} if self.layers else {}
        return {
            **data,
            **layers,
            "signal_quantiles": dict(self.signal_quantiles),
            "computed": self.computed,
            "skipped": self.skipped,
            "computed_steps": self.computed_steps,
            "skipped_steps": self.skipped_steps,
        }

    def account(self, title: str = "") -> Iterator[str]:
        """The branches, a line each.

        Args:
            title: what stands before each of them.
        """
        for branch in self.branches:
            why = ", ".join(f"{reason} {count}" for reason, count in branch.reasons.items())
            yield (
                f"  {title}{branch.denoiser}, {branch.branch}: {branch.computed} computed ({why}), "
                f"{branch.skipped} skipped, {branch.snapshot_bytes / 2**20:.2f} MiB of snapshots"
            )

    def __str__(self) -> str:
        passes = [f"  {row}" for row in self.passes]
        if not self.steps:
            return "\n".join(["no run yet", *passes])
        lines = [
            f"{self.method}: {self.computed_steps} of {len(self.steps)} steps computed, {self.skipped_steps} skipped "
            f"(site {self.site}, {self.predictor})",
            *(
                f"  {line}"
                for layer in self.layers
                if layer.skipped or not layer.notes  # the note says what is to be said
                for line in layer.account(f"{layer.site}: ")
            ),
            *(() if self.layers else self.account()),
        ]
        times = [
            f"{kind} {1000 * seconds:.1f} ms"
            for kind, seconds in (("computed", self.computed_call_seconds), ("skipped", self.skipped_call_seconds))
            if seconds is not None
        ]
        lines.append(f"  median of a call: {', '.join(times)}")
        for layer in (self, *self.layers):
            if layer.signals:
                spread = ", ".join(f"{name} {value:.3g}" for name, value in layer.signal_quantiles.items())
                lines.append(f"  signal {layer.signal}, at {len(layer.signals)} steps: {spread}")
        lines += passes
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


class Book:
    """The running account of one run, from which the report is made."""

    def __init__(self) -> None:
        self._steps: dict[int, StepRow] = {}
        self._minor: set[int] = set()
        self._branches: dict[tuple[str, str], _Account] = {}
        self._seconds: dict[bool, list[float]] = {True: [], False: []}
        self.peak_bytes = 0

    @property
    def calls(self) -> int:
        return sum(map(len, self._seconds.values()))

    @property
    def skipped(self) -> int:
        return len(self._seconds[False])

    def enter(
        self,
        where: tuple[str, str],
        index: int,
        sigma: float,
        *,
        computed: bool,
        reason: str,
        seconds: float,
        site: str | None,
        signal: float | None = None,
        minor: bool = False,
    ) -> None:
        """One call of a denoiser.

        Args:
            where: denoiser and branch.
            signal: what was measured, where a policy asked for it.
            site: where its snapshots are taken, once that is known.
            minor: there was nothing to leave out; another call of the step says whether it counts as computed.
        """
        self._seconds[computed].append(seconds)
        account = self._branches.setdefault(where, _Account())
        account.site = site or account.site
        if computed:
            account.reasons[reason] += 1
        else:
            account.skipped += 1
        before = self._steps.get(index)
        if minor and before is None:
            self._minor.add(index)
        elif not minor and before is not None and index in self._minor:
            self._minor.discard(index)
            before = replace(before, computed=computed, reason=reason, signal=signal)
        if before is None:
            self._steps[index] = StepRow(index, sigma, computed, reason, seconds, signal)
        else:
            if computed and not before.computed and not minor:
                before = replace(before, computed=True, reason=reason)
            self._steps[index] = replace(before, seconds=before.seconds + seconds)

    def weigh(self, where: tuple[str, str], branch_bytes: int, all_bytes: int) -> None:
        """What the snapshots take now."""
        account = self._branches.setdefault(where, _Account())
        account.peak_bytes = max(account.peak_bytes, branch_bytes)
        self.peak_bytes = max(self.peak_bytes, all_bytes)

    @property
    def lowest_signal(self) -> float | None:
        """The least that was measured; None if nothing was."""
        signals = [step.signal for step in self._steps.values() if step.signal is not None and isfinite(step.signal)]
        return min(signals, default=None)

    def reasons(self) -> Counter[str]:
        """Why calls were computed, over all branches."""
        return sum((account.reasons for account in self._branches.values()), Counter())

    def report(
        self,
        *,
        runs: int,
        method: str,
        predictor: str,
        notes: tuple[str, ...],
        layers: tuple[Report, ...] = (),
        signal: str = "",
    ) -> Report:
        """What there is to say so far."""
        sites = dict.fromkeys(account.site for account in self._branches.values() if account.site)
        return Report(
            runs=runs,
            method=method,
            site=", ".join(sites) or "none",
            predictor=predictor,
            steps=tuple(self._steps[index] for index in sorted(self._steps)),
            branches=tuple(
                BranchRow(
                    denoiser,
                    branch,
                    account.site,
                    account.reasons.total(),
                    account.skipped,
                    dict(account.reasons),
                    account.peak_bytes,
                )
                for (denoiser, branch), account in self._branches.items()
            ),
            notes=notes,
            snapshot_bytes=self.peak_bytes,
            computed_call_seconds=_median(self._seconds[True]),
            skipped_call_seconds=_median(self._seconds[False]),
            layers=layers,
            signal=signal,
        )


class _Account:
    def __init__(self) -> None:
        self.site = ""
        self.reasons: Counter[str] = Counter()
        self.skipped = 0
        self.peak_bytes = 0


def _median(seconds: list[float]) -> float | None:
    return median(seconds) if seconds else None
