"""`hasten prune`: a smaller model of the same class, in an ordinary diffusers folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hasten.cli.console import err, out
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.prune.pruning import Pruned

app = typer.Typer()

_WHAT, _JUDGED, _RECOVERY = "What goes", "What it is judged on", "Recovery"


@app.command()
def prune(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="A bundled model, a diffusers folder or a hub id.")],
    target: Annotated[Path, typer.Option("--to", help="The folder to write; an existing one is only recovered.")],
    ratio: Annotated[float, typer.Option(rich_help_panel=_WHAT, help="The share of the cost that is to go.")] = 0.3,
    cost: Annotated[
        Literal["macs", "parameters", "time"], typer.Option("--of", rich_help_panel=_WHAT, help="Which cost.")
    ] = "macs",
    what: Annotated[
        Literal["blocks", "widths"],
        typer.Option(rich_help_panel=_WHAT, help="Whole blocks; or channels, heads and feed-forward width."),
    ] = "blocks",
    importance: Annotated[
        Literal["effect", "magnitude", "taylor"] | None,
        typer.Option(
            rich_help_panel=_WHAT,
            help="Blocks: effect on the output. Widths: magnitude (default), or taylor (Diff-Pruning).",
        ),
    ] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, rich_help_panel=_WHAT, help="Of Diff-Pruning: of the largest loss.")
    ] = 0.05,
    only: Annotated[
        list[str] | None,
        typer.Option(rich_help_panel=_WHAT, help="Of widths: only this key of the configuration; may be repeated."),
    ] = None,
    component: Annotated[
        str | None, typer.Option("--component", "-c", rich_help_panel=_WHAT, help="Which denoiser, where several are.")
    ] = None,
    prompts: Annotated[
        str, typer.Option(rich_help_panel=_JUDGED, help="builtin:4, or a text file with a prompt in each line.")
    ] = "builtin:4",
    steps: Annotated[int, typer.Option(min=1, rich_help_panel=_JUDGED, help="Steps of the runs.")] = 8,
    seed: Annotated[int, typer.Option(min=0, rich_help_panel=_JUDGED, help="Of the first; they count up.")] = 30_000,
    device: Annotated[str | None, typer.Option(rich_help_panel=_JUDGED, help="auto, cpu, cuda, …")] = None,
    recover: Annotated[
        int,
        typer.Option(
            min=0, metavar="STEPS", rich_help_panel=_RECOVERY, help="Train on the unpruned model; 0 for not at all."
        ),
    ] = 0,
    batch: Annotated[int, typer.Option(min=1, rich_help_panel=_RECOVERY, help="Scenes in an update.")] = 32,
    rate: Annotated[
        float, typer.Option(min=0, rich_help_panel=_RECOVERY, help="Of the learning rates of the model's recipe.")
    ] = 0.5,
    looks: Annotated[
        int, typer.Option(min=0, rich_help_panel=_RECOVERY, help="Held-out prompts drawn and scored at checkpoints.")
    ] = 0,
    every: Annotated[int, typer.Option(min=1, rich_help_panel=_RECOVERY, help="Steps between checkpoints.")] = 100,
    folder: Annotated[
        Path | None, typer.Option(rich_help_panel=_RECOVERY, help="Checkpoints and curves; default: TO-recovery.")
    ] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", rich_help_panel=_RECOVERY, help="Slow start, twice the speed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Make a model smaller, as far as its own configuration can say so, and write an ordinary diffusers folder.

    With --recover, a model that shares the bundled models' recipe is trained on what the unpruned one says; the same
    command goes on where it was stopped.

    Example: hasten prune scenes-qwen --to pruned --ratio 0.3
    """
    from hasten.bench.variants import read_prompts
    from hasten.generation import Session
    from hasten.plan import build_plan
    from hasten.prune.pruning import Goal, save
    from hasten.prune.pruning import prune as make

    goal = Goal(ratio, cost, what, importance, threshold, tuple(only or ()), steps, seed)
    if (target / "model_index.json").is_file():
        if not recover:
            raise HastenError(f"{target} is there already: name another folder, or --recover STEPS to train it")
    else:
        options = {"model": model, "device": device}
        flags = {key: (f"--{key} {value}", value) for key, value in options.items() if value is not None}
        asked = build_plan(None, (), {}, caller="hasten prune", flags=flags)
        session = Session.open(asked, read_prompts(prompts))
        with err.status("runs to judge it on") as status, session.cleaning():
            pruned = make(session, goal, component, lambda text: _say(text, status))
            save(session, pruned, target)
        if as_json:
            typer.echo(json.dumps(_document(pruned), indent=1))
        else:
            _show(pruned)
    if recover:
        _recover(model, target, folder or target.with_name(f"{target.name}-recovery"), recover, locals())
    out.print(str(target), markup=False, highlight=False, soft_wrap=True)


def _recover(model: str, target: Path, folder: Path, steps: int, options: dict[str, object]) -> None:
    from hasten.devices import resolve_device
    from hasten.models import locate
    from hasten.prune.recovery import Recovery, recover

    original = locate(model).path
    if original is None:
        raise HastenError("--recover needs a bundled model, or a folder that shares its recipe")
    names = ("batch", "rate", "looks", "every", "compiled")
    device = resolve_device(str(options["device"] or "auto")).type
    recovery = Recovery(steps=steps, device=device, **{name: options[name] for name in names})  # type: ignore[arg-type]
    try:
        recover(target, original, folder, recovery)
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on from the last checkpoint in {folder}")
        raise


def _say(text: str, status: object) -> None:
    err.print(f"  {text}", markup=False, highlight=False, soft_wrap=True)


def _document(pruned: Pruned) -> dict[str, object]:
    return {
        "denoiser": pruned.name,
        "class": pruned.kind,
        "changed": {key: {"before": before, "after": after} for key, (before, after) in pruned.changed.items()},
        "left_out": {path: list(members) for path, members in pruned.gone.items()},
        "left": pruned.left,
        "error": pruned.error,
        "notes": list(pruned.notes),
    }


def _show(pruned: Pruned) -> None:
    out.print(f"{pruned.name}: {pruned.kind}", markup=False, highlight=False)
    for key, (before, after) in pruned.changed.items():
        out.print(f"  {key}: {before} → {after}", markup=False, highlight=False, soft_wrap=True)
    for path, members in pruned.gone.items():
        out.print(f"  left out of {path}: {', '.join(map(str, members))}", markup=False, highlight=False)
    shares = ", ".join(f"{share:.1%} of {cost}" for cost, share in pruned.left.items())
    out.print(f"  left: {shares}", markup=False, highlight=False, soft_wrap=True)
    out.print(f"  outputs are off by {pruned.error:.2%} (mean squared, before any recovery)", highlight=False)
    for note in pruned.notes:
        err.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
