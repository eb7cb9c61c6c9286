"""`hasten metadata`: print what an image says of how it was made."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from hasten.cli.console import err, out
from hasten.errors import HastenError
from hasten.record import Found, Record, parse_parameters, read_png

app = typer.Typer()


@app.command()
def metadata(
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="PNG images.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the record as JSON.")] = False,
    as_plan: Annotated[
        bool, typer.Option("--plan", help="Print the plan as YAML: hasten generate --plan FILE makes the image again.")
    ] = False,
) -> None:
    """Print how an image was made: by hasten, or by any program that writes A1111's `parameters`."""
    if as_json and as_plan:
        raise HastenError("--json and --plan are two forms: choose one")
    if as_plan and len(files) > 1:
        raise HastenError("--plan prints one plan: give one file")
    found = [(file, read_png(file)) for file in files]
    if as_plan:
        _print_plan(*found[0])
    elif as_json:
        documents = [_document(content) for _, content in found]
        typer.echo(json.dumps(documents[0] if len(documents) == 1 else documents, ensure_ascii=False, indent=2))
    else:
        for file, content in found:
            _print_table(file, content)


def _print_plan(file: Path, content: Found) -> None:
    if content.record is None:
        raise HastenError(f"{file} was not made by hasten: it holds A1111 parameters, but no plan")
    # A comment may not be broken by what is in the prompt.
    prompt = json.dumps(content.record.prompt, ensure_ascii=False)
    typer.echo(f"# prompt: {prompt}")
    typer.echo(content.record.plan.to_yaml().rstrip())


def _document(content: Found) -> Any:
    if content.record is not None:
        return content.record.model_dump(mode="json")
    return {"parameters": parse_parameters(content.parameters or "")}


def _print_table(file: Path, content: Found) -> None:
    out.print(Text(str(file), style="bold"), soft_wrap=True)
    table = Table(show_header=False, box=None)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = _rows(content.record) if content.record is not None else parse_parameters(content.parameters or "")
    for name, value in rows.items():
        table.add_row(name, Text(value))
    out.print(table)
    if content.record is None:
        err.print("not made by hasten: these are A1111 parameters", highlight=False)


def _rows(record: Record) -> dict[str, str]:
    times, steps, quality = record.timings, record.steps, record.quality
    generation = record.plan.generation
    size = f"{record.width}×{record.height}" + (f", {record.frames} frames" if record.frames > 1 else "")
    rows = {
        "prompt": record.prompt,
        "negative prompt": generation.negative_prompt or "",
        "model": f"{record.model.name} ({record.model.pipeline})",
        "size": size,
        "seed": str(record.seed),
        "method": record.method,
        "steps": f"{steps.total}: {steps.computed} computed, {steps.skipped} skipped",
        "sampler": record.model.scheduler or "",
        "time": f"{times.total:.2f} s: text {times.text:.2f}, denoise {times.denoise:.2f}, decode {times.decode:.2f}",
        "memory": f"{record.memory.peak_bytes / (1 << 20):.0f} MiB peak ({record.memory.source})",
        "device": f"{record.device.name}, {record.device.dtype}",
        "versions": ", ".join(f"{name} {value}" for name, value in record.versions.items()),
        "created": record.created.isoformat(),
    }
    if quality is not None:
        ratio = "∞ (identical)" if quality.identical else f"{quality.psnr:.2f} dB" if quality.psnr is not None else "–"
        likeness = "–" if quality.ssim is None else f"{quality.ssim:.4f}"
        rows["against reference"] = f"PSNR {ratio}, SSIM {likeness}, {quality.speedup or 1:.2f}× as fast"
    for number, note in enumerate(record.notes, start=1):
        rows[f"note {number}"] = note
    return {name: value for name, value in rows.items() if value.strip()}
