"""`hasten inspect`: a model's layers, stages, cost and places in the code, without its weights."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.inspect.diagram import Touched
    from hasten.inspect.folding import Row
    from hasten.inspect.inspection import Component, Inspection
    from hasten.inspect.tables import Table

app = typer.Typer()

_WHAT, _SHOW, _OUT, _TIME = "Size of the call", "What is shown", "Output", "Times"
# What a terminal has no room for: it stands in the other forms.
_WIDE = frozenset({"inputs"})
_UNTIMED = frozenset({"output", "MACs, a call"})


@app.command()
def inspect(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="Bundled name, architecture (sd15, sdxl, flux, …), folder, config.json or hub id."
        ),
    ],
    size: Annotated[
        str | None, typer.Option("--size", metavar="WxH", rich_help_panel=_WHAT, help="Pixels: 1024x1024 or 1024.")
    ] = None,
    frames: Annotated[
        int | None, typer.Option("--frames", min=1, rich_help_panel=_WHAT, help="Frames of a film.")
    ] = None,
    batch: Annotated[
        int, typer.Option("--batch", min=1, rich_help_panel=_WHAT, help="Samples in a call; 2 for guidance in one.")
    ] = 1,
    text: Annotated[
        int | None, typer.Option("--text", min=1, rich_help_panel=_WHAT, help="Tokens of a prompt.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=1, rich_help_panel=_WHAT, help="Steps for an image.")
    ] = None,
    passes: Annotated[
        int | None, typer.Option("--passes", min=1, rich_help_panel=_WHAT, help="Passes a step: 2 with guidance.")
    ] = None,
    component: Annotated[
        list[str] | None,
        typer.Option("--component", "-c", rich_help_panel=_SHOW, help="Only this one: unet, vae, …; may be repeated."),
    ] = None,
    depth: Annotated[
        str, typer.Option("--depth", "-d", rich_help_panel=_SHOW, help="Levels of layers; 0 for none, or all.")
    ] = "2",
    match: Annotated[
        str | None,
        typer.Option("--match", rich_help_panel=_SHOW, help="Layers whose path or class this expression finds."),
    ] = None,
    sort: Annotated[
        Literal["parameters", "macs", "time"] | None,
        typer.Option("--sort", rich_help_panel=_SHOW, help="A flat list, the largest first."),
    ] = None,
    code: Annotated[
        bool, typer.Option("--code", rich_help_panel=_SHOW, help="Every class with its file and line.")
    ] = False,
    time: Annotated[
        bool, typer.Option("--time", rich_help_panel=_TIME, help="Measure each layer on this device; needs weights.")
    ] = False,
    device: Annotated[
        str, typer.Option("--device", rich_help_panel=_TIME, help="auto, cpu, cuda, npu, hpu, xpu or mps.")
    ] = "auto",
    dtype: Annotated[str, typer.Option("--dtype", rich_help_panel=_TIME, help="auto, fp32, fp16 or bf16.")] = "auto",
    as_json: Annotated[
        bool, typer.Option("--json", rich_help_panel=_OUT, help="Everything as JSON on stdout.")
    ] = False,
    as_csv: Annotated[bool, typer.Option("--csv", rich_help_panel=_OUT, help="The layers as CSV.")] = False,
    as_markdown: Annotated[
        bool, typer.Option("--markdown", rich_help_panel=_OUT, help="All tables as Markdown.")
    ] = False,
    diagram: Annotated[
        Path | None,
        typer.Option("--diagram", rich_help_panel=_OUT, help="Draw the denoiser, or one --component: a .svg or .html."),
    ] = None,
    plan: Annotated[
        str | None,
        typer.Option("--plan", "-p", rich_help_panel=_OUT, help="Colour what a plan leaves out at a skipped step."),
    ] = None,
) -> None:
    """Show what a model is made of, what each part costs, and where it is written; no weights are needed.

    Example: hasten inspect sdxl --component unet --match attn1
    """
    if sum((as_json, as_csv, as_markdown)) > 1:
        raise HastenError("--json, --csv and --markdown are three forms: choose one")
    if sort == "time" and not time:
        raise HastenError("--sort time: times are measured with --time")
    if diagram is not None and diagram.suffix not in (".svg", ".html"):
        raise HastenError(f"--diagram {diagram}: a file that ends in .svg or .html")
    if plan is not None and diagram is None:
        raise HastenError("--plan colours a drawing: name its file with --diagram")
    from hasten.inspect.inspection import Size, Timed, inspect_model
    from hasten.inspect.sources import find_source

    width, height = _pixels(size)
    wanted = Size(width, height, frames, batch, text, steps, passes)
    deepest = _levels(depth)
    timed = Timed(device, dtype) if time else None
    found = inspect_model(find_source(model), wanted, component or (), timed)
    if diagram is not None:
        _draw(found, diagram, component or (), plan, model)
        return
    rows = {
        part.name: _rows(part, deepest, match, sort)
        for part in found.components
        if component or part.role == "denoiser" or match or as_json
    }
    flat = match is not None or sort is not None
    if match is not None and not any(rows.values()):
        raise HastenError(f"--match {match}: no layer's path or class has it; all of them: --depth all")
    if as_json:
        from hasten.inspect.document import to_document

        typer.echo(json.dumps(to_document(found, rows), ensure_ascii=False, indent=1))
    elif as_csv:
        _print_csv(found, rows)
    elif as_markdown:
        _print_markdown(found, rows, flat=flat, code=code)
    else:
        _print(found, rows, flat=flat, code=code)


def _draw(found: Inspection, file: Path, wanted: Sequence[str], plan: str | None, model: str) -> None:
    from hasten.cli.console import out
    from hasten.inspect.diagram import draw, to_html

    parts = [part for part in found.components if part.name in wanted or (not wanted and part.role == "denoiser")]
    if not parts or len(wanted) > 1:
        names = ", ".join(part.name for part in found.components)
        raise HastenError(f"--diagram draws one component: name it with --component ({names})")
    part = parts[0]
    drawn = draw(found, part, _touched(plan, model, part) if plan is not None else None)
    if file.suffix == ".html":
        drawn = to_html(drawn, f"{found.name}: {part.kind}")
    try:
        file.write_text(drawn, "utf-8")
    except OSError as error:
        raise HastenError(f"cannot write {file}: {error.strerror or error}") from error
    out.print(str(file), markup=False, highlight=False, soft_wrap=True)


def _touched(plan: str, model: str, part: Component) -> Touched:
    """What a plan leaves out, seen in two steps of the model itself."""
    from hasten.explain import explain
    from hasten.generation import Session
    from hasten.inspect.diagram import Touched
    from hasten.inspect.sources import architectures
    from hasten.plan import build_plan

    if model in architectures():
        raise HastenError(f"--plan is tried on the model itself, and {model} is a configuration: name a folder")
    asked = build_plan(plan, (), {}, caller="hasten inspect", flags={"model": (f"MODEL {model}", model)})
    if asked.cache is None:
        raise HastenError(f"--plan {plan} has no cache: every step is computed, nothing is left out")
    prompt = "a red circle"
    session = Session.open(asked, prompt)
    with session.cleaning():
        layers = explain(session.pipe, session.plan, lambda: session.run(prompt, session.plan.seed, accelerated=False))
    mine = [found for layer in layers for found in layer.parts if found.denoiser == part.name]
    modules = {name for found in mine for name in (found.modules or ("",))}
    words = "; ".join(dict.fromkeys(f"site {found.site}, {found.share:.0%} of the weights" for found in mine))
    return Touched(plan, modules, words)


def _pixels(size: str | None) -> tuple[int | None, int | None]:
    if size is None:
        return None, None
    parts = size.lower().replace("×", "x").split("x")
    if len(parts) > 2 or not all(part.isdecimal() and int(part) for part in parts):
        raise HastenError(f"--size {size}: write WIDTHxHEIGHT in pixels, such as 1024x768, or one number for a square")
    return int(parts[0]), int(parts[-1])


def _levels(depth: str) -> int | None:
    if depth == "all":
        return None
    if not depth.isdecimal():
        raise HastenError(f"--depth {depth}: a whole number, or all")
    return int(depth)


def _rows(component: Component, depth: int | None, match: str | None, sort: str | None) -> list[Row]:
    from hasten.inspect.folding import ends, matching, rows_of, sorted_by

    if match is not None:
        try:
            rows = matching(rows_of(component.root)[1:], match)
        except re.error as error:
            raise HastenError(f"--match {match}: not a regular expression: {error}") from error
    else:
        rows = rows_of(component.root, depth)[1:]
    if sort is not None:
        rows = sorted_by(rows if match is not None else ends(rows), sort)  # type: ignore[arg-type]
    return rows


def _tables(found: Inspection, rows: dict[str, list[Row]], *, flat: bool, code: bool, bars: bool) -> list[Table]:
    from hasten.inspect import tables

    made = [] if flat else [tables.totals_table(found), tables.stages_table(found, bars)]
    for component in found.components:
        if rows.get(component.name):
            made.append(tables.layers_table(component, rows[component.name], indented=not flat, places=code))
        if code and not flat:
            made.append(tables.classes_table(component))
    return made


def _print(found: Inspection, rows: dict[str, list[Row]], *, flat: bool, code: bool) -> None:
    from rich.table import Table as Drawn
    from rich.text import Text

    from hasten.cli.console import err, out
    from hasten.inspect.tables import CONVENTION, skip_lines

    out.print(Text(_headline(found), style="bold"), soft_wrap=True)
    for table in _tables(found, rows, flat=flat, code=code, bars=True):
        drawn = Drawn(title=table.title, title_justify="left", box=None, pad_edge=False)
        wide = _WIDE | (_UNTIMED if "share of time" in table.head else set())
        if table.title == "Stages":  # there the class says less than the bars
            wide |= {"what"}
        columns = [index for index, name in enumerate(table.head) if name not in wide]
        for index in columns:
            name = table.head[index]
            is_left = name in table.left
            drawn.add_column(name, justify="left" if is_left else "right", no_wrap=not is_left, overflow="fold")
        for row in table.rows:
            drawn.add_row(*(Text(row[index]) for index in columns))
        out.print(drawn)
    for component in () if flat else found.components:
        for line in skip_lines(component):
            out.print(Text(line), soft_wrap=True)
    err.print(Text(CONVENTION, style="dim"))
    for note in found.notes:
        err.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)


def _print_markdown(found: Inspection, rows: dict[str, list[Row]], *, flat: bool, code: bool) -> None:
    from hasten.inspect.tables import CONVENTION, skip_lines, to_markdown

    lines = [f"# {found.name}", "", _headline(found), ""]
    for table in _tables(found, rows, flat=flat, code=code, bars=False):
        lines += to_markdown(table)
    for component in () if flat else found.components:
        lines += [f"- {line}" for line in skip_lines(component)]
    lines += ["", CONVENTION, "", *(f"- {note}" for note in found.notes)]
    typer.echo("\n".join(lines).rstrip())


def _print_csv(found: Inspection, rows: dict[str, list[Row]]) -> None:
    from hasten.inspect.tables import layers_table, to_csv

    names: Sequence[str] = [component.name for component in found.components if rows.get(component.name)]
    if len(names) > 1:
        raise HastenError(f"--csv is one table: choose a --component ({', '.join(names)})")
    for component in found.components:
        if component.name in names:
            table = layers_table(component, rows[component.name], indented=False, places=True)
            typer.echo(to_csv(table), nl=False)


def _headline(found: Inspection) -> str:
    use = found.use
    film = f", {use.frames} frames" if use.frames and use.frames > 1 else ""
    kind = f" ({found.pipeline})" if found.pipeline else ""
    return (
        f"{found.name}{kind}: {use.width}×{use.height} pixels{film}, {use.text} text tokens, batch {found.batch}; "
        f"an image is {use.steps} steps × {use.passes} passes"
    )
