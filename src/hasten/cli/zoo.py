"""`hasten zoo`: the bundled models: what is there, how they are trained, whether they draw what they are told."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from hasten.cli.console import err, out
from hasten.errors import HastenError

app = typer.Typer(no_args_is_help=True)

TRAINABLE = ("scenes-qwen", "scenes-sd")


@app.callback()
def zoo() -> None:
    """The bundled models: list, train, check."""


@app.command("list")
def list_models() -> None:
    """List the bundled models with their size on disk and their native settings."""
    from hasten.models import bundled_folder, bundled_models

    table = Table("model", "pipeline", "MB", "native settings", box=None, pad_edge=False)
    for name in bundled_models():
        folder = bundled_folder() / name
        index = json.loads((folder / "model_index.json").read_text())
        native = json.loads((folder / "hasten.json").read_text())
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 1e6
        table.add_row(
            name, index["_class_name"], f"{size:.1f}", ", ".join(f"{key} {value!r}" for key, value in native.items())
        )
    out.print(table)


@app.command()
def train(
    name: Annotated[str, typer.Argument(help=f"What to train: {', '.join(TRAINABLE)}.")],
    folder: Annotated[Path | None, typer.Option(help="Checkpoints and curves; default: checkpoints/NAME.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    vocabulary: Annotated[str | None, typer.Option(help="small (5 shapes, 6 colours, plain) or full.")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Processes on CPU; default: one per core, at most 4.")
    ] = None,
    vae_steps: Annotated[int | None, typer.Option(min=1)] = None,
    decoder_steps: Annotated[int | None, typer.Option(min=1)] = None,
    text_steps: Annotated[int | None, typer.Option(min=1)] = None,
    low_steps: Annotated[int | None, typer.Option(min=0, help="Denoiser steps at half the native size.")] = None,
    high_steps: Annotated[int | None, typer.Option(min=1, help="Denoiser steps at the native size.")] = None,
    batch: Annotated[
        int | None, typer.Option(min=2, help="Samples per worker and step; at the native size a third.")
    ] = None,
    width: Annotated[int | None, typer.Option(min=32, help="Denoiser width, a multiple of 64 (a UNet: of 32).")] = None,
    layers: Annotated[
        int | None, typer.Option(min=1, help="Denoiser blocks, at least 4; a UNet's layers in each block.")
    ] = None,
    finish_steps: Annotated[
        int | None, typer.Option(min=0, help="Decoder steps on the trained denoiser's predictions.")
    ] = None,
    looks: Annotated[int | None, typer.Option(min=0, help="Held-out prompts drawn and scored at checkpoints.")] = None,
    compiled: Annotated[
        bool, typer.Option("--compile/--no-compile", help="Compile the blocks: slow start, twice the speed.")
    ] = True,
    quiet: Annotated[bool, typer.Option(help="No progress bars.")] = False,
) -> None:
    """Train a bundled model from nothing, or go on where an earlier call stopped.

    Ends in FOLDER/pipeline, which diffusers loads as it is. Losses and accuracies are in FOLDER/*.csv.
    """
    if name not in TRAINABLE:
        raise HastenError(f"no recipe for {name!r}; there is one for: {', '.join(TRAINABLE)}")
    head, least = (32, 1) if name == "scenes-sd" else (64, 4)
    if width and width % head:
        raise HastenError(f"--width {width}: must be a multiple of {head} (heads are {head} wide)")
    if layers and layers < least:
        raise HastenError(f"--layers {layers}: at least {least} (the probe looks at block {least})")
    from hasten.devices import resolve_device
    from hasten.zoo.recipe import Recipe
    from hasten.zoo.recipe import train as run
    from hasten.zoo.scenes import VOCABULARIES

    recipe = Recipe.for_device(name, resolve_device(device).type, workers)
    if vocabulary and vocabulary not in VOCABULARIES:
        raise HastenError(f"--vocabulary {vocabulary}: there are {' and '.join(VOCABULARIES)}")
    schedule: dict[str, Any] = {"low_steps": low_steps, "high_steps": high_steps}
    if batch:
        schedule |= {"low_batch": batch, "high_batch": max(2, batch // 3)}
    changes: dict[str, Any] = {
        "vocabulary": vocabulary,
        "vae_steps": vae_steps,
        "decoder_steps": decoder_steps,
        "text_steps": text_steps,
        "finish_steps": finish_steps,
        "width": width,
        "layers": layers,
        "looks": looks,
        "denoiser": replace(recipe.denoiser, **{key: value for key, value in schedule.items() if value is not None}),
    }
    recipe = replace(recipe, compiled=compiled, **{key: value for key, value in changes.items() if value is not None})
    folder = folder or Path("checkpoints") / name
    try:
        pipeline = run(folder, recipe, quiet)
    except KeyboardInterrupt:
        err.print(f"stopped; the same command goes on from the last checkpoint in {folder}")
        raise
    out.print(f"{pipeline}", soft_wrap=True, highlight=False)
    err.print(f"try it: hasten generate 'a red circle' --model {pipeline}", soft_wrap=True, highlight=False)


@app.command()
def check(
    model: Annotated[
        str | None, typer.Argument(help="A bundled model or a folder; without one, drawn scenes are read.")
    ] = None,
    prompts: Annotated[int, typer.Option(min=1, help="How many held-out prompts.")] = 200,
    vocabulary: Annotated[str, typer.Option(help="small or full.")] = "full",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, …")] = "auto",
    steps: Annotated[int | None, typer.Option(min=1, help="Denoising steps; default: the model's own.")] = None,
    seed: Annotated[int, typer.Option()] = 0,
    pictures: Annotated[Path | None, typer.Option(help="Save a contact sheet of the pictures here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Count how many held-out prompts are drawn fully right, with nothing skipped.

    Without MODEL the scene checker itself is measured, on scenes drawn from known captions.
    """
    from hasten.zoo.evaluation import check_drawn, check_model

    if model is None:
        report = check_drawn(prompts, vocabulary, seed, pictures)
    else:
        report = check_model(model, prompts, vocabulary, device, steps, seed, pictures)
    if as_json:
        typer.echo(json.dumps(report.to_dict(), indent=1))
        return
    table = Table("share of", "right", box=None, pad_edge=False)
    for name, value in report.shares.items():
        table.add_row(name, f"{value:.1%}")
    out.print(table)
    for title, rows in (("shape asked → drawn", report.shapes), ("colour asked → drawn", report.colours)):
        wrong = {pair: count for pair, count in rows.items() if pair[0] != pair[1]}
        if wrong:
            out.print(
                f"[bold]{title}[/]: " + ", ".join(f"{a} → {b} ×{count}" for (a, b), count in sorted(wrong.items()))
            )
    for prompt in report.wrong[:20]:
        out.print(f"wrong: {prompt}", highlight=False, markup=False)
