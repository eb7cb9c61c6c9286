"""`hasten tune`: the fastest plan above a quality floor, found on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.tune.outcome import Outcome
    from hasten.tune.search import Tuner

app = typer.Typer()

_MODEL, _WANTED, _SEARCH, _OUTPUT = "Model and device", "What is wanted", "The search", "Output"
_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}


@app.command()
def tune(
    model: Annotated[
        str, typer.Option("--model", "-m", rich_help_panel=_MODEL, help="Bundled name, diffusers folder or hub id.")
    ] = "scenes-qwen",
    device: Annotated[str, typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda, …")] = "auto",
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", rich_help_panel=_MODEL, help="Of the reference: --set precision.dtype=fp32."
        ),
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", min=4, rich_help_panel=_MODEL, help="Of the reference.")
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            metavar="METRIC=VALUE",
            rich_help_panel=_WANTED,
            help="psnr=32, ssim=0.95, latent_error=0.02, accuracy=0.98 or clip=-0.01; may be given again.",
        ),
    ] = None,
    objective: Annotated[
        str, typer.Option("--objective", rich_help_panel=_WANTED, help="What is to be small: latency or memory.")
    ] = "latency",
    clip: Annotated[
        Path | None, typer.Option("--clip", rich_help_panel=_WANTED, help="Folder of a CLIP model, for its floor.")
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", rich_help_panel=_WANTED, help="A ceiling for the peak, such as 8GiB.")
    ] = None,
    budget: Annotated[
        str, typer.Option("--budget", rich_help_panel=_SEARCH, help="Time for everything: 20min, 90s, 2h.")
    ] = "20min",
    prompts: Annotated[
        str,
        typer.Option(
            "--prompts",
            rich_help_panel=_SEARCH,
            help="builtin:20, or a text file with a prompt in each line: what the finalists are checked on.",
        ),
    ] = "builtin:20",
    tune_prompts: Annotated[
        int,
        typer.Option(
            "--tune-prompts",
            min=1,
            rich_help_panel=_SEARCH,
            help="Plans are chosen by so many others; of a file, by its first.",
        ),
    ] = 3,
    compiles: Annotated[
        bool, typer.Option("--compile/--no-compile", rich_help_panel=_SEARCH, help="Also try torch.compile.")
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, rich_help_panel=_SEARCH)] = 0,
    out: Annotated[
        Path, typer.Option("--out", "-o", rich_help_panel=_OUTPUT, help="Folder for plans, trials and the report.")
    ] = Path("outputs/tune"),
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=_OUTPUT, help="Go on with the trials in that folder.")
    ] = False,
) -> None:
    """Find the fastest plan whose images are still good enough, and check it on prompts it was not found on.

    Writes best.yaml, pareto.json, report.html and trials.jsonl. Ctrl-C keeps what is known; --resume goes on.

    Example: hasten tune -m scenes-qwen --floor psnr=32 --budget 20min
    """
    from hasten.cli.bench import _command
    from hasten.models import complete_plan
    from hasten.plan import load_plan
    from hasten.plan.values import as_bytes
    from hasten.tune.floors import parse_floor
    from hasten.tune.search import TRIALS, Tuner

    if objective not in ("latency", "memory"):
        raise HastenError(f"--objective {objective}: latency or memory")
    floors = tuple(parse_floor(text) for text in floor or ["psnr=35"])
    seconds = _seconds(budget)
    ceiling = _bytes(max_memory, as_bytes) if max_memory is not None else None
    if (out / TRIALS).exists() and not resume:
        raise HastenError(f"{out / TRIALS} is there already: go on with it (--resume), or name another folder (--out)")
    plan = load_plan(None, sets or (), model=model, device=device)
    if steps is not None:
        plan = load_plan(plan, [f"generation.num_inference_steps={steps}"])
    chosen_by, checked_on = _prompts(prompts, tune_prompts)
    from hasten.cli.console import err

    with err.status("loading") as status:
        tuner = Tuner(
            complete_plan(plan),
            floors,
            chosen_by,
            checked_on,
            seconds,
            out,
            objective=objective,  # type: ignore[arg-type]
            max_bytes=ceiling,
            compiles=compiles,
            clip=clip,
            seed=seed,
            progress=status.update,
            command=_command(),
        )
        try:
            tuner.run()
        finally:
            status.stop()
            _finish(tuner, out)


def _finish(tuner: Tuner, folder: Path) -> None:
    """Write and show what is known, also after an interrupt."""
    from hasten.cli.console import err, out
    from hasten.tune.search import HELD_OUT

    outcome = tuner.outcome
    written = outcome.write(folder)
    if tuner.report is not None and tuner.report.samples:
        from hasten.bench.html import to_html
        from hasten.bench.schema import write_over

        written.append(write_over(folder / HELD_OUT / "report.html", to_html(tuner.report, folder / HELD_OUT)))
    _show(outcome)
    err.print(outcome.summary, soft_wrap=True, markup=False, highlight=False)
    for path in written:
        out.print(str(path), soft_wrap=True, markup=False, highlight=False)


def _show(outcome: Outcome) -> None:
    from rich.table import Table

    from hasten.cli.console import out
    from hasten.tune.outcome import short

    if not outcome.checked:
        return
    table = Table("plan, on held-out prompts", "s an image", "speed-up", "floors", box=None)
    for one in outcome.checked:
        low = "" if one.low is None else f" (≥ {one.low:.2f}×)"
        floors = "; ".join(map(str, one.verdicts)) or "none"
        table.add_row(short(one.trial), f"{one.seconds:.2f}", f"{one.speedup:.2f}×{low}", floors)
    out.print(table)


def _prompts(source: str, count: int) -> tuple[list[str], list[str]]:
    """Prompts to choose by and prompts to check on, none of them both."""
    from hasten.bench.variants import read_prompts
    from hasten.zoo.evaluation import held_out_prompts

    texts = read_prompts(source)
    if source.startswith("builtin:"):
        return held_out_prompts(count, seed=77), texts
    if len(texts) < count + 2:
        raise HastenError(
            f"--prompts {source}: {len(texts)} prompts; {count} to choose by and 2 to check on are needed"
        )
    return texts[:count], texts[count:]


def _seconds(text: str) -> float:
    import re

    found = re.fullmatch(r"([\d.]+)\s*([a-z]*)", text.strip().lower())
    unit = _UNITS.get(found[2] or "s") if found else None
    try:
        seconds = float(found[1]) * unit if found and unit else 0.0
    except ValueError:
        seconds = 0.0
    if seconds <= 0:
        raise HastenError(f"--budget {text}: write a time with its unit, such as 20min, 90s or 2h")
    return seconds


def _bytes(text: str, as_bytes: object) -> float:
    from pydantic_core import PydanticCustomError

    try:
        return float(as_bytes(text))  # type: ignore[operator]
    except PydanticCustomError as error:
        raise HastenError(f"--max-memory {text}: {error.message()}") from error
