"""The benchmark itself: reference and variants take turns in one process, and what is measured is kept at once."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hasten.bench.batches import measure_batches
from hasten.bench.machine import GpuWatch, describe
from hasten.bench.peers import PEERS, processes
from hasten.bench.peers.session import PeerSession
from hasten.bench.resume import check_same, kept_samples
from hasten.bench.rows import reason, sample_row, variant_row, warmed, warmed_peer
from hasten.bench.schema import BenchReport, PeerChoice, Sample, Settings, Variant
from hasten.bench.summary import summarize, unsteady
from hasten.bench.variants import REFERENCE, Candidate, Source, candidates, fewer_steps
from hasten.describing import versions
from hasten.devices import clean_up, synchronize
from hasten.errors import HastenError
from hasten.files import check_writable, sanitize
from hasten.generation import Progress, Result, Session
from hasten.images import save_png
from hasten.metrics.clip import Clip
from hasten.models import complete_plan
from hasten.passes import Keeper
from hasten.plan import Plan, load_plan

MIN_TIMINGS = 3
"""Fewer timings of a variant say nothing about how sure its speed-up is."""

FAILURES = (HastenError, RuntimeError, ValueError, TypeError)
"""What a plan that does not fit a model ends in, in hasten, torch and diffusers: a row of the table that says so. Any
other error is a mistake of hasten's, and ends the benchmark."""


@dataclass(frozen=True)
class Update:
    """How far a benchmark is: what comes next, and images made of all images."""

    label: str
    done: int
    total: int


class Bench:
    """One benchmark, checked when it is made and measured by `run`.

    Attributes:
        report: what is measured so far, at any moment.
    """

    def __init__(
        self,
        base: Plan | Mapping[str, Any] | str | Path | None,
        sources: Sequence[Source],
        prompts: Sequence[str],
        *,
        seeds: Sequence[int] = (0,),
        rounds: int | None = None,
        warmup: int = 1,
        sweeps: Sequence[str] = (),
        batch_sizes: Sequence[int] = (),
        peers: Sequence[PeerChoice] = (),
        inside: PeerChoice | None = None,
        known: Sequence[str] = (),
        clip: str | Path | None = None,
        pipe: Any = None,
        out: str | Path | None = None,
        previous: BenchReport | None = None,
        command: str = "",
        progress: Callable[[Update], None] | None = None,
    ) -> None:
        """Check everything that can be checked, then load the model.

        Args:
            rounds: how often every image is made; by default so that each variant is timed three times at least.
            batch_sizes: also measure so many images in one call.
            peers: other implementations, each measured in a process of its own after everything else.
            inside: a peer to measure in this very process, which is then its own.
            known: rows of fewer steps that need not be measured, since another process did.
            clip: folder of a CLIP model, which then scores every image against its prompt.
            previous: a report of the same benchmark that was interrupted: only what it lacks is measured.
            Everything else as for `benchmark`.
        """
        if not prompts or not seeds:
            raise HastenError("a benchmark needs at least one prompt and one seed")
        if warmup < 0 or (rounds is not None and rounds < 1):
            raise HastenError("a benchmark needs at least one round, and no negative number of warm-up runs")
        if any(size < 1 for size in batch_sizes):
            raise HastenError("a batch has at least one image")
        if peers and pipe is not None:
            raise HastenError(
                "peers load the model in processes of their own: name a model instead of giving a pipeline"
            )
        base = load_plan(base)
        if pipe is None:
            base = complete_plan(base)
        self._inside, self._known, self._peers = inside, tuple(known), tuple(peers)
        self._candidates = candidates(base, sources, sweeps)  # a mistake in a plan must not cost a model's loading time
        self._folder = None if out is None else Path(out)
        if self._folder is not None:
            check_writable(self._folder / "images")
        self._clip = None if clip is None else Clip(clip, base.device)
        self._given = pipe is not None
        self._progress = progress
        began = time.perf_counter()
        session = Session.open(base, prompts, pipe=pipe)
        load_seconds = None if self._given else time.perf_counter() - began
        if self._given:  # its name is known only now
            base = session.plan
            self._candidates = candidates(base, sources, sweeps)
        self._pipes: dict[tuple[object, object], tuple[Any, Keeper]] = {
            (base.precision, base.sampler): (session.pipe, session.keeper)
        }
        self._sessions: dict[str, Session | PeerSession] = {}
        self.device = session.device
        self._gpu = GpuWatch(self.device)
        jobs = len(prompts) * len(seeds)
        self.settings = Settings(
            model=base.model,
            prompts=tuple(prompts),
            seeds=tuple(seeds),
            rounds=rounds if rounds is not None else max(1, math.ceil(MIN_TIMINGS / jobs)),
            warmup=warmup,
            batch_sizes=tuple(sorted(set(batch_sizes))),
            peers=(inside,) if inside is not None else self._peers,
            clip=None if self._clip is None else str(self._clip.folder.resolve()),
        )
        if inside is not None:
            self._candidates.append(Candidate(inside.label, "peer", self._candidates[0].plan, peer=inside))
        dtype = str(getattr(session.pipe, "dtype", "auto")).removeprefix("torch.")
        self.report = BenchReport(
            command=command,
            settings=self.settings,
            machine=describe(self.device, dtype, self._gpu),
            versions=versions(),
            load_seconds=load_seconds,
            notes=(self._gpu.note,) if self._gpu.note else (),
        )
        self._previous = previous
        if previous is not None:
            check_same(previous, self.report, self._candidates)
            # From the start, so that an interrupt of the warm-up loses nothing.
            self._update(
                variants=previous.variants,
                samples=previous.samples,
                batches=previous.batches,
                sessions=previous.sessions + 1,
                created=previous.created,
            )

    def run(self) -> BenchReport:
        """Measure. An interrupt leaves what is measured in `report` and, with a folder, on disk."""
        try:
            clean_up(self.device)
            self._prepare()
            for number, (round_, prompt, seed) in enumerate(self._cells()):
                if not self._is_measured(round_, prompt, seed):
                    self._measure(number, round_, prompt, seed)
                    self._save()
            if self.settings.batch_sizes:
                self._measure_batches()
            if self._inside is None:
                self._measure_peers()
            self._update(complete=True)
        finally:
            notes = [
                f"{name}: the same seed gave different images in different rounds: something here is not deterministic"
                for name in unsteady(self.report)
            ]
            timings = {len(self.report.of(variant.name)) for variant in self.report.variants if variant.error is None}
            if self.report.complete and timings and min(timings) < MIN_TIMINGS:
                notes.append(f"fewer than {MIN_TIMINGS} timings for each variant: the intervals say little")
            self._update(summary=summarize(self.report), notes=tuple(dict.fromkeys([*self.report.notes, *notes])))
            self._save()
            self._release()
            clean_up(self.device)
        return self.report

    def _release(self) -> None:
        """Leave every pipeline as it was."""
        for _, keeper in self._pipes.values():
            keeper.release()

    def _prepare(self) -> None:
        """Warm up, and learn from it how many steps every plan computes."""
        variants: list[Variant] = []
        for candidate in self._candidates:
            self._tell(f"warm-up {candidate.name}")
            variants.append(self._warm_up(candidate))
        counts = [
            # A two-call solver makes two calls a step: what counts is how many steps the same work is good for.
            v.computed
            if v.plan.adaptive.on
            else round(v.computed / (v.computed + (v.skipped or 0)) * v.plan.generation.num_inference_steps)
            for v in variants
            if v.kind == "plan" and v.computed is not None and (v.skipped or v.plan.adaptive.on)
        ] + [round(v.work) for v in variants if v.work is not None]
        plain = [one for one in fewer_steps(self._candidates[0].plan, counts) if one.name not in self._known]
        self._candidates = [*self._candidates, *plain]
        variants += [variant_row(one) for one in plain]
        self._update(variants=tuple(variants))
        if self._previous is not None:
            self._update(samples=kept_samples(self._previous, {variant.name for variant in self._able()}))

    def _warm_up(self, candidate: Candidate) -> Variant:
        """Whole runs, the device synchronised after every step: their times are the timeline, and nothing else."""
        stamps: list[float] = []

        def stamp(_: Progress) -> None:
            synchronize(self.device)
            stamps.append(time.perf_counter())

        row = variant_row(candidate)
        prompt, seed = self.settings.prompts[0], self.settings.seeds[0]
        results: list[Result] = []
        try:
            session = self._session(candidate)
            if isinstance(session, PeerSession):
                row = row.model_copy(update={"peer": session.facts})
                session.prepare(prompt, seed)
                row = row.model_copy(update={"work": session.work})
            # What a plan computes is not known before it ran.
            for _ in range(max(self.settings.warmup, 1 if candidate.plan.cache is not None else 0)):
                stamps.clear()
                with warnings.catch_warnings():
                    warnings.filterwarnings("ignore", message="hasten skipped nothing")  # it is in the notes
                    results.append(session.run(prompt, seed, progress=stamp))
        except _failures(candidate) as error:
            return row.model_copy(update={"error": reason(error)})
        if not results:
            return row
        if isinstance(session, PeerSession):
            return warmed_peer(row, results, stamps, session.shares)
        return warmed(row, results, stamps)

    def _session(self, candidate: Candidate) -> Session | PeerSession:
        if candidate.name not in self._sessions:
            plan = candidate.plan
            key = (plan.precision, plan.sampler)
            if key not in self._pipes:
                if self._given:
                    raise HastenError(
                        "a pipeline that was given keeps its dtype and its sampler; name the model instead"
                    )
                from hasten.loading import load

                loaded = load(plan)
                self._pipes[key] = loaded, Keeper(loaded)
            pipe, keeper = self._pipes[key]
            session = Session.open(plan, self.settings.prompts, pipe=pipe, keeper=keeper)
            self._sessions[candidate.name] = session if candidate.peer is None else PeerSession(session, candidate.peer)
        return self._sessions[candidate.name]

    def _able(self) -> list[Variant]:
        return [variant for variant in self.report.variants if variant.error is None]

    def _cells(self) -> list[tuple[int, int, int]]:
        settings = self.settings
        prompts = range(len(settings.prompts))
        return [(r, prompt, seed) for r in range(settings.rounds) for prompt in prompts for seed in settings.seeds]

    def _is_measured(self, round_: int, prompt: int, seed: int) -> bool:
        found = {s.variant for s in self.report.samples if (s.round, s.prompt, s.seed) == (round_, prompt, seed)}
        return found >= {variant.name for variant in self._able()}

    def _measure(self, number: int, round_: int, prompt: int, seed: int) -> None:
        """One image by every variant, in an order that changes from cell to cell: a machine grows warm, or busy."""
        names = {variant.name for variant in self._able()}
        order = [candidate for candidate in self._candidates if candidate.name in names]
        turn = number % len(order)
        order = order[turn:] + order[:turn]
        if number % 2:
            order.reverse()
        made: dict[str, tuple[Result, Any]] = {}
        try:
            for candidate in order:
                self._tell(candidate.name, len(made))
                try:
                    with self._gpu, warnings.catch_warnings():
                        warnings.filterwarnings("ignore", message="hasten skipped nothing")
                        result = self._session(candidate).run(self.settings.prompts[prompt], seed)
                except _failures(candidate) as error:
                    self._fail(candidate.name, error)
                else:
                    made[candidate.name] = (result, self._gpu.reading)
        finally:
            self._keep(made, round_, prompt, seed)

    def _keep(self, made: Mapping[str, tuple[Result, Any]], round_: int, prompt: int, seed: int) -> None:
        reference = made[REFERENCE][0] if REFERENCE in made else None
        samples: list[Sample] = []
        for name, (result, gpu) in made.items():
            samples.append(
                sample_row(
                    name,
                    result,
                    reference if name != REFERENCE else None,
                    round_=round_,
                    prompt=prompt,
                    seed=seed,
                    counted=self.report.variant(name).kind != "peer",
                    gpu=gpu,
                    image=self._save_image(name, result, prompt, seed) if round_ == 0 else None,
                    clip=self._clip if round_ == 0 else None,
                )
            )
        self._update(samples=(*self.report.samples, *samples))

    def _save_image(self, name: str, result: Result, prompt: int, seed: int) -> str | None:
        if self._folder is None:
            return None
        path = f"images/{prompt:03d}_{seed}_{sanitize(name)}.png"
        save_png(result.frames, self._folder / path, result.record.png_info())
        return path

    def _measure_batches(self) -> None:
        chosen = [one for one in self._candidates if one.kind != "fewer-steps" and not one.differs]
        names = {variant.name for variant in self._able()}
        opened = {one.name: self._session(one) for one in chosen if one.name in names}
        sessions = {name: session for name, session in opened.items() if isinstance(session, Session)}
        prompt, seed = self.settings.prompts[0], self.settings.seeds[0]
        for batch in measure_batches(
            sessions, prompt, seed, self.settings.batch_sizes, known=self.report.batches, tell=self._tell
        ):
            self._update(batches=(*self.report.batches, batch))
            self._save()

    def _measure_peers(self) -> None:
        """Once this process has given the device's memory back: a peer's process loads the model again."""
        if not self._peers:
            return
        base = self._candidates[0].plan
        pipe, _ = self._pipes[base.precision, base.sampler]
        refusals = [(choice, PEERS[choice.name].refuses(pipe)) for choice in self._peers]
        self._sessions.clear()
        self._release()
        self._pipes.clear()
        del pipe
        clean_up(self.device)
        processes.measure(self.report, refusals, base, self._folder, tell=self._tell, keep=self._take)

    def _take(self, report: BenchReport) -> None:
        self.report = report
        self._save()

    def _fail(self, name: str, error: Exception) -> None:
        self._update(
            variants=tuple(
                variant.model_copy(update={"error": reason(error)}) if variant.name == name else variant
                for variant in self.report.variants
            )
        )

    def _update(self, **values: Any) -> None:
        self.report = self.report.model_copy(update=values)

    def _save(self) -> None:
        if self._folder is not None and self.report.samples:
            self.report.save(self._folder)

    def _tell(self, label: str, more: int = 0) -> None:
        if self._progress is not None:
            total = len(self._cells()) * len(self._able() or self._candidates)
            self._progress(Update(label, len(self.report.samples) + more, total))


def _failures(candidate: Candidate) -> tuple[type[Exception], ...]:
    """Which errors are a row of the table: the reference's never; of a peer any, since its code is somebody else's."""
    if candidate.kind == "reference":
        return ()
    return (Exception,) if candidate.kind == "peer" else FAILURES
