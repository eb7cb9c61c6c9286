"""A peer's process, from outside: begin it, follow it, end it, and take over what it measured."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

import hasten
from hasten.bench.peers import facts
from hasten.bench.schema import FILE, BenchReport, Part, PeerChoice, Settings, Variant, read_report, write_over
from hasten.bench.variants import REFERENCE
from hasten.errors import HastenError
from hasten.files import sanitize
from hasten.plan import Plan

REQUEST, LOG = "request.json", "log.txt"
ENDING_SECONDS = 60
_ORDER = {"reference": 0, "plan": 1, "peer": 2, "fewer-steps": 3}


class Request(Part):
    """What a peer's process is to measure.

    Attributes:
        threads: of torch on the CPU, as in the process that asks.
        known: rows of fewer steps that are measured already.
    """

    base: Plan
    settings: Settings
    peer: PeerChoice
    threads: int
    known: tuple[str, ...] = ()


def measure(
    report: BenchReport,
    peers: Sequence[tuple[PeerChoice, str | None]],
    base: Plan,
    out: Path | None,
    *,
    tell: Callable[[str, int], None],
    keep: Callable[[BenchReport], None],
) -> None:
    """Measure peers, one after the other, each in its process.

    Args:
        report: what is measured already.
        peers: each with the reason why it need not be tried, or None.
        base: the reference's plan.
        out: the report's folder; None where nothing is kept.
        tell: called with what comes next and how many images this peer has made.
        keep: called with the grown report after every peer, also where an interrupt ended it.
    """
    with contextlib.ExitStack() as stack:
        root = out / "peers" if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for choice, why in peers:
            folder = root / sanitize(choice.label)
            request = Request(
                base=base,
                settings=report.settings.model_copy(update={"peers": (), "batch_sizes": ()}),
                peer=choice,
                threads=torch.get_num_threads(),
                known=tuple(variant.name for variant in report.variants if variant.kind == "fewer-steps"),
            )
            try:
                if why is None:
                    run(request, folder, tell)
            except HastenError as error:
                why = str(error)
            finally:
                if why is not None:
                    report = failed(report, choice, why)
                elif (folder / FILE).exists():  # of an interrupt, too
                    report = take_over(report, choice, folder, out)
                keep(report)


def run(request: Request, folder: Path, tell: Callable[[str, int], None]) -> None:
    """Measure a peer in a process of its own. What it measured is `report.json` in the folder, also where it failed.

    Where the folder holds an unfinished report of the same request, the process goes on with it.

    Args:
        tell: called with what comes next and how many images are made.

    Raises:
        HastenError: the process ended without a report.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if _asked(folder) == request and (folder / FILE).exists():
        if read_report(folder).complete:
            return
    else:
        (folder / FILE).unlink(missing_ok=True)
    write_over(folder / REQUEST, request.model_dump_json(indent=1))
    source = str(Path(hasten.__file__).parent.parent)
    paths = [source, *filter(None, [os.environ.get("PYTHONPATH")])]
    with (folder / LOG).open("w", encoding="utf-8") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "hasten.bench.peers.worker", str(folder)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
            start_new_session=True,  # Ctrl-C reaches it once, from here
        )
        try:
            assert process.stdout is not None
            for line in process.stdout:
                text, done = json.loads(line)
                tell(f"{request.peer.label}: {text}", done)
            process.wait()
        except BaseException:
            _end(process)
            raise
        finally:
            if process.stdout is not None:
                process.stdout.close()
    if not (folder / FILE).exists():
        lines = (folder / LOG).read_text("utf-8", errors="replace").strip().splitlines()
        last = lines[-1] if lines else "it said nothing"
        raise HastenError(f"its process ended with code {process.returncode}: {last}")


def take_over(report: BenchReport, choice: PeerChoice, folder: Path, root: Path | None) -> BenchReport:
    """The report with what a peer's process measured.

    Args:
        folder: the peer's, with its `report.json`.
        root: the report's folder, which paths of images are below; None where no images are kept.
    """
    theirs = read_report(folder)
    label = choice.label
    rows = [variant.model_copy(update={"process": label}) for variant in theirs.variants if variant.kind != "reference"]
    place = f"{folder.relative_to(root).as_posix()}/" if root is not None else None
    samples = [
        sample.model_copy(
            update={
                "process": label,
                "image": f"{place}{sample.image}" if place is not None and sample.image is not None else None,
            }
        )
        for sample in theirs.samples
    ]
    notes = [f"{label}: {note}" for note in theirs.notes if note not in report.notes]
    if not _same_reference(report, theirs):
        notes.append(
            f"{label}: the plain pipeline made other images in its process than in the benchmark's own: it is measured "
            "against those"
        )
    return report.model_copy(
        update={
            "variants": in_order([*report.variants, *rows]),
            "samples": (*report.samples, *samples),
            "notes": (*report.notes, *notes),
        }
    )


def failed(report: BenchReport, choice: PeerChoice, why: str) -> BenchReport:
    """The report with a row that says why a peer did not run."""
    base = next(variant.plan for variant in report.variants if variant.kind == "reference")
    row = Variant(name=choice.label, kind="peer", plan=base, process=choice.label, peer=facts(choice), error=why)
    return report.model_copy(update={"variants": in_order([*report.variants, row])})


def in_order(variants: list[Variant]) -> tuple[Variant, ...]:
    """Reference, plans, peers, and the plain pipeline with fewer steps."""
    return tuple(sorted(variants, key=lambda variant: _ORDER[variant.kind]))


def _asked(folder: Path) -> Request | None:
    try:
        return Request.model_validate_json((folder / REQUEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None


def _end(process: subprocess.Popen[str]) -> None:
    """Let it keep what it measured, as Ctrl-C does; end it by force where it does not listen."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGINT)
    try:
        process.wait(ENDING_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _same_reference(report: BenchReport, theirs: BenchReport) -> bool:
    own = {(s.prompt, s.seed): s.digest for s in report.of(REFERENCE)}
    return all(own.get((s.prompt, s.seed), s.digest) == s.digest for s in theirs.of(REFERENCE))
