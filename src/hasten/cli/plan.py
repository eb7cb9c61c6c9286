"""`hasten plan`: check a plan, show what it resolves to, list the presets."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from hasten.cli.console import err, out
from hasten.errors import PlanError
from hasten.plan import load_plan, preset_names, read_preset

app = typer.Typer(no_args_is_help=True)


@app.callback()
def plan() -> None:
    """Check, show and list plans."""


@app.command()
def check(
    files: Annotated[list[str], typer.Argument(metavar="FILE...", help="YAML files, or names of presets.")],
    sets: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="As for `generate`.")] = None,
) -> None:
    """Say everything that is wrong with a plan; exit with 2 if anything is."""
    failed = False
    for file in files:
        try:
            load_plan(file, sets or ())
        except PlanError as error:
            failed = True
            for problem in error.problems:
                out.print(problem, markup=False, highlight=False, soft_wrap=True)
        else:
            err.print(f"{file}: ", end="", markup=False, highlight=False)
            err.print("[green]fine[/]")
    if failed:
        raise typer.Exit(2)


@app.command()
def show(
    source: Annotated[
        str | None, typer.Argument(metavar="[FILE|PRESET]", help="Without one: the defaults, which skip nothing.")
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Such as cache.interval=4; may be given several times."),
    ] = None,
    resolved: Annotated[
        bool, typer.Option("--resolved/--as-written", help="Fill in the defaults of the cache's method.")
    ] = True,
) -> None:
    """Print the whole plan as YAML that can be used as a plan again."""
    loaded = load_plan(source, sets or ())
    text = loaded.to_yaml()
    if resolved:
        from hasten.plan.resolved import resolved_yaml

        text = resolved_yaml(loaded)
    out.print(text.rstrip("\n"), markup=False, highlight=False, soft_wrap=True)


@app.command("list")
def list_presets() -> None:
    """List the presets that come with hasten."""
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", style="bold")
    table.add_column("what it is for")
    for name in preset_names():
        first = read_preset(name).splitlines()[0]
        table.add_row(name, first.removeprefix("#").strip())
    out.print(table)
