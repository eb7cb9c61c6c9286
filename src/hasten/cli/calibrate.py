"""`hasten calibrate`: measure, once for a model, the figures that some methods need."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.cli.console import err, out

if TYPE_CHECKING:
    from hasten.calibration.store import Calibration

app = typer.Typer()


@app.command()
def calibrate(
    model: Annotated[
        str | None, typer.Argument(help="A bundled model, a diffusers folder, a file or a hub id; default: the plan's.")
    ] = None,
    plan: Annotated[
        str | None, typer.Option(help="A plan whose model, sampler and sizes to use; nothing of it is accelerated.")
    ] = None,
    prompts: Annotated[str, typer.Option(help="builtin:4, or a text file with a prompt in each line.")] = "builtin:4",
    steps: Annotated[
        int | None, typer.Option(min=2, help="Steps of the measured runs; default: the model's own.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the first prompt's image; they count up.")] = 20_000,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, …")] = None,
    sets: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Of the plan, such as sampler.shift=2.")
    ] = None,
    path: Annotated[
        Path | None, typer.Option("--out", "-o", help="The file to write; default: where it is found again.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the calibration as JSON.")] = False,
) -> None:
    """Measure what a model's methods need in a few full runs: TeaCache's polynomial, MagCache's ratios.

    The figures hold for this model with this scheduler and these adapters, at any number of steps.

    Example: hasten calibrate scenes-qwen --prompts builtin:4
    """
    from hasten.bench.variants import read_prompts
    from hasten.calibration.measure import measure
    from hasten.generation import Session
    from hasten.plan import build_plan

    options = {"model": model, "device": device, "generation.num_inference_steps": steps}
    typed = {"generation.num_inference_steps": "steps"}
    flags = {key: (f"--{typed.get(key, key)} {value}", value) for key, value in options.items() if value is not None}
    asked = build_plan(plan, sets or (), {}, caller="hasten calibrate", flags=flags)
    texts = read_prompts(prompts)
    session = Session.open(asked, texts)
    with err.status("") as status, session.cleaning():
        found = measure(
            session.pipe,
            lambda number: session.run(texts[number], seed + number, accelerated=False),
            len(texts),
            progress=lambda number: status.update(f"full run {number + 1} of {len(texts)}"),
        )
    written = found.save(path)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        _show(found)
    err.print(f"{written}", soft_wrap=True, highlight=False)


def _show(found: Calibration) -> None:
    from rich.table import Table

    table = Table("denoiser", "branch", "steps", "ratios (MagCache)", "polynomial (TeaCache)", "explains", box=None)
    for denoiser, branches in found.denoisers.items():
        for name, branch in branches.items():
            fit = branch.fit
            table.add_row(
                denoiser,
                name,
                str(len(branch.sigmas)),
                f"{min(branch.ratios):.3f} to {max(branch.ratios):.3f}",
                "none" if fit is None else f"degree {len(fit.polynomial) - 1}",
                "–" if fit is None else f"{fit.explained:.0%}",
            )
    out.print(table)
    for note in found.notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
