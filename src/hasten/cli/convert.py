"""`hasten convert`: checkpoints into diffusers folders, and back into single files."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def convert(
    source: Annotated[
        str, typer.Option("--from", help="Bundled name, diffusers folder, .safetensors file, or .ckpt (weights only).")
    ],
    target: Annotated[
        Path, typer.Option("--to", help="The diffusers folder to write, or a .safetensors file; not there yet.")
    ],
    config: Annotated[
        Path | None, typer.Option("--config", help="The diffusers folder whose configuration a single file has.")
    ] = None,
    dtype: Annotated[str, typer.Option("--dtype", help="fp32, fp16 or bf16; auto is fp32.")] = "auto",
    shard: Annotated[
        str | None, typer.Option("--shard", metavar="SIZE", help="The most that a file holds: 500MB; default 10GB.")
    ] = None,
    variant: Annotated[
        str | None, typer.Option("--variant", help="A word in the files' names, as diffusers' variants.")
    ] = None,
) -> None:
    """Write a model as a diffusers folder or a single file, offline, and compare every tensor that was written.

    Example: hasten convert --from model.ckpt --config sd15/ --to folder --dtype fp16 --variant fp16
    """
    from hasten.cli.console import err, out
    from hasten.convert import convert as write

    compared = write(source, target, config=config, dtype=dtype, shard=shard, variant=variant)
    out.print(str(target), markup=False, highlight=False, soft_wrap=True)
    err.print(f"  {compared} tensors read back and found equal", highlight=False)
