"""`hasten explain`: what a plan would do to a model, before anything is generated."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.console import err, out
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.explain import Explanation, Part, Step

app = typer.Typer()

_MARKS = {"computed": "C", "skipped": ".", "open": "?"}
_GROUP = 10


@app.command()
def explain(
    plan: Annotated[str, typer.Option("--plan", "-p", help="A plan, a preset's or method's name.")] = "taylorseer",
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="A bundled model, a folder, a file or a hub id.")
    ] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the model's own.")] = None,
    prompt: Annotated[str, typer.Option(help="What the first steps are made of.")] = "a red circle",
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, …")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Any key of the plan: --set cache.interval=4."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Show which modules a plan leaves out, what is stored, and what becomes of each step.

    Two steps are made to see how the model's blocks hang together; no image is.

    Example: hasten explain --plan taylorseer --model scenes-qwen
    """
    from hasten.explain import explain as look
    from hasten.generation import Session
    from hasten.plan import build_plan

    options = {"model": model, "device": device, "generation.num_inference_steps": steps}
    flags = {
        key: (f"--{'steps' if key.startswith('generation') else key} {value}", value)
        for key, value in options.items()
        if value is not None
    }
    asked = build_plan(plan, sets or (), {}, caller="hasten explain", flags=flags)
    if asked.cache is None:
        raise HastenError("this plan has no cache, so that every step is computed: nothing to explain")
    session = Session.open(asked, prompt)
    with err.status("two steps"), session.cleaning():
        found = look(session.pipe, session.plan, lambda: session.run(prompt, session.plan.seed, accelerated=False))
    if as_json:
        typer.echo(json.dumps([layer.to_dict() for layer in found], indent=1))
        return
    for layer in found:
        for line in _lines(layer):
            out.print(line, markup=False, highlight=False, soft_wrap=True)


def _lines(layer: Explanation) -> Iterator[str]:
    yield f"{layer.method}: policy {layer.policy}, {layer.predictor}"
    if layer.signal:
        yield f"  signal {layer.signal}"
    for part in layer.parts:
        yield f"  {part.denoiser} ({part.kind}), branches {', '.join(part.branches)}: site {part.site}"
        yield f"    left out at a skipped step: {_what(part)}"
        size = part.snapshot_bytes / 2**20
        kept = f"{layer.snapshots} snapshot{'' if layer.snapshots == 1 else 's'}"
        yield f"    stored: {kept} of {size:.2f} MiB for each branch"
    fates = Counter(step.fate for step in layer.steps)
    reasons = Counter(step.reason for step in layer.steps if step.fate == "computed")
    why = f" ({', '.join(f'{reason} {count}' for reason, count in reasons.items())})" if reasons else ""
    still = f", {fates['open']} open until the run" if fates["open"] else ""
    yield f"  {len(layer.steps)} steps: {fates['computed']} computed{why}, {fates['skipped']} skipped{still}"
    yield f"    {_drawn(layer.steps)}"
    yield from (f"  note: {note}" for note in layer.notes)


def _drawn(steps: Sequence[Step]) -> str:
    """`CCC...C... C...` with a space after every ten; `?` where the run decides."""
    marks = "".join(_MARKS[step.fate] for step in steps)
    return " ".join(marks[begin : begin + _GROUP] for begin in range(0, len(marks), _GROUP))


def _what(part: Part) -> str:
    if not part.modules:
        return "the whole denoiser"
    count = len(part.modules)
    return f"{', '.join(ranges(part.modules))} ({count} modules, {part.share:.0%} of its weights)"


def ranges(names: Sequence[str]) -> list[str]:
    """Names that differ in one number only, as one: `blocks.0.attn to blocks.11.attn`.

    >>> ranges(["blocks.0", "blocks.1", "blocks.2", "norm", "other.3"])
    ['blocks.0 to blocks.2', 'norm', 'other.3']
    """

    def pattern(name: str) -> tuple[str, ...]:
        return tuple("#" if part.isdecimal() else part for part in name.split("."))

    ordered = {key: list(group) for key, group in groupby(sorted(names, key=pattern), key=pattern)}
    groups = sorted(ordered.values(), key=lambda group: min(names.index(name) for name in group))
    found = []
    for group in groups:
        group.sort(key=names.index)
        found.append(group[0] if len(group) == 1 else f"{group[0]} to {group[-1]}")
    return found
