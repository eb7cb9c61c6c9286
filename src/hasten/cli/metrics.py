"""`hasten metrics`: how close pictures are to their references, and how well they show what was asked."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from hasten.cli.console import err, out
from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.metrics.report import Measurement

app = typer.Typer()


@app.command()
def metrics(
    image: Annotated[Path, typer.Argument(metavar="A", help="What is measured: an image, a film, a latent, a folder.")],
    reference: Annotated[
        Path | None, typer.Argument(metavar="B", help="Its reference. Without it, only adherence is measured.")
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="The prompt of all pictures.")] = None,
    prompts: Annotated[
        Path | None,
        typer.Option("--prompts", help="File of prompts: .json by name, or one a line in the order of the names."),
    ] = None,
    reference_prompts: Annotated[
        Path | None,
        typer.Option("--reference-prompts", help="Captions of B, where A is an edit of it: directional similarity."),
    ] = None,
    clip: Annotated[Path | None, typer.Option("--clip", help="Folder of a CLIP model.")] = None,
    lpips: Annotated[
        Path | None, typer.Option("--lpips", help="File or folder of AlexNet or VGG16 weights, for LPIPS.")
    ] = None,
    embedding: Annotated[
        list[Path] | None,
        typer.Option(
            "--embedding", help="Folder of a vision model (DINOv2, CLIP, …), for a distance as DreamSim's. Repeatable."
        ),
    ] = None,
    features: Annotated[
        str,
        typer.Option(
            "--features",
            help="What sets are compared in: scenes, a folder of a vision model, a TorchScript file, or none.",
        ),
    ] = "scenes",
    scores: Annotated[
        Path | None, typer.Option("--scores", help="File of scores that another program gave (image reward, …).")
    ] = None,
    video: Annotated[bool, typer.Option("--video", help="A folder of pictures is one film.")] = False,
    device: Annotated[str, typer.Option("--device", help="Where networks run.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; every pair by itself.")] = False,
) -> None:
    """Measure pictures against their references and their prompts.

    Folders are paired by name, or by prompt and seed where hasten wrote them into the PNG. Nothing is downloaded.
    """
    if prompt is not None and prompts is not None:
        raise HastenError("--prompt is for all pictures, --prompts for each: choose one")
    asked = prompt if prompts is None else read_prompts(prompts)
    captions = None if reference_prompts is None else read_prompts(reference_prompts)
    if captions is not None and asked is None:
        raise HastenError("--reference-prompts also needs the captions of A: --prompt or --prompts")
    from hasten.metrics.measuring import measure

    with err.status("measuring") as status:
        found = measure(
            image,
            reference,
            prompts=asked,
            reference_prompts=captions,
            clip=clip,
            lpips=lpips,
            embedding=embedding or None,
            features=None if features == "none" else features,
            scores=scores,
            video=video,
            device=device,
            on_pair=lambda done, count: status.update(f"measuring {done} of {count}"),
        )
    if as_json:
        document = {"image": str(image), "reference": None if reference is None else str(reference), **found.to_dict()}
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2, allow_nan=False))
    else:
        _print(found)
    for name, other, names in (("A", "B", found.unmatched_images), ("B", "A", found.unmatched_references)):
        for one in names:
            err.print(f"no partner: {one} of {name} has none in {other}", markup=False, highlight=False, soft_wrap=True)
    for failure in found.failed:
        err.print(f"not compared: {failure.name}: {failure.reason}", markup=False, highlight=False, soft_wrap=True)


def read_prompts(file: Path) -> Any:
    """Prompts of a file: a mapping or a list from .json, else one a line, empty lines passed over.

    Raises:
        HastenError: the file is missing or holds something else.
    """
    try:
        text = file.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HastenError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    if file.suffix != ".json":
        return [line.strip() for line in text.splitlines() if line.strip()]
    try:
        content = json.loads(text)
    except ValueError as error:
        raise HastenError(f"{file} is no JSON: {error}") from error
    values = content.values() if isinstance(content, dict) else content
    if not isinstance(content, (dict, list)) or not all(isinstance(value, str) for value in values):
        raise HastenError(f'{file}: prompts are {{"name": "prompt"}} or ["prompt"]')
    return content


def _print(found: Measurement) -> None:
    if found.pairs:
        _print_fidelity(found)
    if found.adherence:
        table = _table("Adherence", "A", "B", "pictures")
        for row in found.adherence:
            values = (row.image, row.reference)
            table.add_row(_title(row.metric), *(_number(row.metric, value) for value in values), str(row.count))
        out.print(table, "")
    if found.distances:
        first = found.distances[0]
        table = _table("Distance of the sets", first.features, "pictures")
        for one in found.distances:
            spread = f" ± {one.spread:.4f}" if one.spread else ""
            table.add_row(
                _title(one.metric), _number(one.metric, one.value) + spread, f"{one.images}, {one.references}"
            )
        out.print(table, "")
    for note in found.notes:
        out.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    for missing in found.not_computed:
        line = f"[dim]not computed: {escape(_plain_title(missing.metric))}: {escape(missing.reason)}[/]"
        out.print(line, highlight=False, soft_wrap=True)


def _print_fidelity(found: Measurement) -> None:
    several = len(found.pairs) > 1
    table = _table("Fidelity", *(("mean", "worst", "pairs") if several else ("value",)))
    for figure in found.figures():
        if not several:
            table.add_row(_title(figure.metric), _number(figure.metric, figure.mean))
            continue
        count = str(figure.count)
        if 0 < figure.identical < figure.count:
            count += f", {figure.identical} identical left out"
        values = (figure.mean, figure.worst)
        table.add_row(_title(figure.metric), *(_number(figure.metric, value) for value in values), count)
    out.print(table, "")


def _table(title: str, *columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column(title, style="bold", no_wrap=True)
    for column in columns:
        table.add_column(escape(column), justify="right")
    return table


def _plain_title(name: str) -> str:
    from hasten.metrics.report import METRICS

    return METRICS[name].title if name in METRICS else name


def _title(name: str) -> str:
    from hasten.metrics.report import METRICS

    return f"{METRICS[name].title} {'↑' if METRICS[name].better == 'higher' else '↓'}"


def _number(name: str, value: float | None) -> str:
    from hasten.metrics.report import METRICS

    if value is None or math.isnan(value):
        return "–"
    metric = METRICS[name]
    if math.isinf(value):
        return "∞ (identical)" if name == "psnr" else "∞"
    return f"{value:.{metric.digits}f}{f' {metric.unit}' if metric.unit else ''}"
