"""`hasten bench`: plans against the reference, in time and quality, with a report to send around."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.errors import HastenError

if TYPE_CHECKING:
    from hasten.bench.run import Update
    from hasten.bench.schema import BenchReport, PeerChoice
    from hasten.plan import Plan

app = typer.Typer()

_MODEL, _IMAGES, _WHAT, _OUTPUT = "Model and device", "Images", "What is measured", "Output"
_FLAGS = {
    "model": "model",
    "device": "device",
    "dtype": "precision.dtype",
    "steps": "generation.num_inference_steps",
    "width": "generation.width",
    "height": "generation.height",
}
_LEFT_OUT = ("per step", "latent error", "right")
_NAMES = 14


@app.command()
def bench(
    plans: Annotated[
        list[str] | None,
        typer.Option("--plans", "-p", rich_help_panel=_WHAT, help="Presets, methods and YAML files, with commas."),
    ] = None,
    cfg: Annotated[
        str | None,
        typer.Option("--cfg", rich_help_panel=_WHAT, help="This plan, with its own model, steps, seed and folder."),
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            "--sweep",
            metavar="KEY=V,V,…",
            rich_help_panel=_WHAT,
            help="Every plan at each value: --sweep cache.interval=2,3,4. Several make all combinations.",
        ),
    ] = None,
    batch_sizes: Annotated[
        str | None,
        typer.Option("--batch-sizes", rich_help_panel=_WHAT, help="Also so many images in one call: 1,2,4,8."),
    ] = None,
    peers: Annotated[
        bool, typer.Option("--peers", rich_help_panel=_WHAT, help="Also every other implementation that hasten knows.")
    ] = False,
    peer: Annotated[
        list[str] | None,
        typer.Option(
            "--peer",
            metavar="NAME[:KEY=V,…]",
            rich_help_panel=_WHAT,
            help="Also this one, with settings of its own: --peer deepcache:cache_interval=5. May be given again.",
        ),
    ] = None,
    clip: Annotated[
        Path | None,
        typer.Option("--clip", rich_help_panel=_WHAT, help="Folder of a CLIP model: also how well images fit prompts."),
    ] = None,
    rounds: Annotated[
        int | None,
        typer.Option(
            "--rounds", rich_help_panel=_WHAT, min=1, help="How often each image is made; default: 3 timings at least."
        ),
    ] = None,
    warmup: Annotated[
        int, typer.Option("--warmup", rich_help_panel=_WHAT, min=0, help="Runs of each plan that are not timed.")
    ] = 1,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", rich_help_panel=_MODEL, help="Bundled name, diffusers folder or hub id."),
    ] = None,
    device: Annotated[
        str | None, typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda, npu, hpu, xpu or mps.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", rich_help_panel=_MODEL, help="auto, fp32, fp16 or bf16.")
    ] = None,
    prompts: Annotated[
        str | None,
        typer.Option("--prompts", rich_help_panel=_IMAGES, help="builtin:20, or a text file, a prompt in each line."),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", rich_help_panel=_IMAGES, help="One prompt; may be given again.")
    ] = None,
    seeds: Annotated[
        int | None, typer.Option("--seeds", rich_help_panel=_IMAGES, min=1, help="Seeds for each prompt; default: 1.")
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", rich_help_panel=_IMAGES, min=0, help="The first of the seeds; default: 0.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--num-inference-steps", rich_help_panel=_IMAGES, help="Of the reference.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", rich_help_panel=_IMAGES, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option("--height", rich_help_panel=_IMAGES, help="Pixels.")] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", rich_help_panel=_OUTPUT, help="Folder of the report; default: outputs/bench."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", rich_help_panel=_OUTPUT, help="Go on with the report in that folder.")
    ] = False,
    json_output: Annotated[
        bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print report.json on stdout, nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="Print errors only.")] = False,
) -> None:
    """Measure plans beside the reference and write report.json, report.md and report.html.

    Example: hasten bench --plans taylorseer,reuse --prompts builtin:20 --seeds 3 --out outputs/bench

    Example: hasten bench --peers --prompts builtin:5

    Example: hasten bench --cfg scenes_sd_fp32_ddpm50 --prompts builtin:5
    """
    from hasten.bench.schema import FILE, read_report

    values = {name: value for name, value in locals().items() if name in _FLAGS and value is not None}
    base = _base(values, cfg)
    out = out or (base.io.out if cfg else Path("outputs")) / "bench"
    first, count = base.seed if seed is None else seed, seeds or base.generation.num_images
    texts = _prompts(prompts, prompt or [])
    sizes = _sizes(batch_sizes)
    choices = _peers(peer or [], every=peers)
    there = (out / FILE).exists()
    if there and not resume:
        raise HastenError(f"{out / FILE} is there already: go on with it (--resume), or name another folder (--out)")
    previous = read_report(out / FILE) if there else None
    _run(
        base,
        sources=[*_sources([cfg] if cfg else []), *_sources(plans or ([] if cfg else ["taylorseer"]))],
        prompts=texts,
        seeds=range(first, first + count),
        rounds=rounds,
        warmup=warmup,
        sweeps=sweep or [],
        batch_sizes=sizes,
        peers=choices,
        clip=clip,
        out=out,
        previous=previous,
        as_json=json_output,
        quiet=quiet,
    )


def _base(values: dict[str, Any], cfg: str | None) -> Plan:
    """What all variants share, and the reference has: of a plan whatever does not make it faster."""
    from hasten.plan import build_plan, load_plan
    from hasten.plan.speed import SPEED

    source: Plan | None = None
    if cfg is not None:
        source = load_plan(cfg)
        faster = {name: type(source).model_fields[name].default for name in SPEED if name != "sampler"}
        source = source.model_copy(update={**faster, "cache": None})
    flags = {_FLAGS[name]: (f"--{name} {value}", value) for name, value in values.items()}
    return build_plan(source, (), {}, caller="hasten bench", flags=flags)


def _sources(texts: list[str]) -> list[str | Path]:
    names = [name.strip() for text in texts for name in text.split(",") if name.strip()]
    return [Path(name) if name.endswith((".yaml", ".yml")) else name for name in names]


def _prompts(source: str | None, texts: list[str]) -> list[str]:
    from hasten.bench.variants import read_prompts

    if source is None:
        return texts or read_prompts("builtin:5")
    return [*read_prompts(source), *texts]


def _sizes(text: str | None) -> list[int]:
    if text is None:
        return []
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) for part in parts):
        raise HastenError(f"--batch-sizes {text}: write whole numbers with commas between them, such as 1,2,4")
    return [int(part) for part in parts]


def _peers(texts: list[str], *, every: bool) -> tuple[PeerChoice, ...]:
    if not texts and not every:
        return ()
    from hasten.bench.peers import every_peer, parse_peer

    chosen = [parse_peer(text) for text in texts]
    return every_peer(chosen) if every else tuple(chosen)


def _run(base: Plan, *, as_json: bool, quiet: bool, out: Path, **settings: Any) -> None:
    from contextlib import ExitStack

    from hasten.bench.run import Bench
    from hasten.cli.show import plain_warnings

    silent = as_json or quiet
    with ExitStack() as stack:
        stack.enter_context(plain_warnings(shown=not quiet))
        progress = None if silent else stack.enter_context(_Bar()).show
        bench = Bench(base, out=out, command=_command(), progress=progress, **settings)
        try:
            bench.run()
        finally:  # an interrupt, too, leaves a report of what is measured
            if bench.report.samples:
                written = _write(bench.report, out)
                if progress is not None:
                    stack.close()
                _print(bench.report, written, as_json=as_json, quiet=quiet)


def _write(report: BenchReport, folder: Path) -> list[Path]:
    from hasten.bench.html import to_html
    from hasten.bench.markdown import to_markdown
    from hasten.bench.schema import FILE, write_over

    return [
        folder / FILE,
        write_over(folder / "report.md", to_markdown(report)),
        write_over(folder / "report.html", to_html(report, folder)),
    ]


def _print(report: BenchReport, written: list[Path], *, as_json: bool, quiet: bool) -> None:
    from hasten.cli.console import err, out

    if as_json:
        typer.echo(report.model_dump_json(indent=1))
        return
    if quiet:
        return
    from rich.table import Table
    from rich.text import Text

    from hasten.bench.tables import notes, overview

    shown = overview(report)
    table = Table(box=None)
    # As many as fit into the terminal beside the variants' names; the reports have them all.
    columns, room = [0], out.width - _NAMES
    for index, name in enumerate(shown.head[1:], 1):
        width = max(len(cell) for cell in (name, *(row[index] for row in shown.rows))) + 2
        if name not in _LEFT_OUT and "memory" not in name and width <= room:
            columns.append(index)
            room -= width
    for index in columns:
        table.add_column(shown.head[index], justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    for row in shown.rows:
        table.add_row(*(Text(row[index]) for index in columns))
    out.print(table)
    for note in (shown.caption, *notes(report)):
        err.print(Text(note), soft_wrap=True)
    for path in written:
        out.print(Text(str(path)), soft_wrap=True)


def _command() -> str:
    """What was typed, so that it can be typed again."""
    import shlex
    import sys

    return shlex.join(["hasten", *sys.argv[1:]])


class _Bar:
    """Images made of all images, on stderr, where somebody looks."""

    def __init__(self) -> None:
        from rich import progress as bars

        from hasten.cli.console import err

        self._bar = bars.Progress(
            bars.SpinnerColumn(),
            bars.TextColumn("{task.description}", markup=False),
            bars.BarColumn(bar_width=24),
            bars.MofNCompleteColumn(),
            bars.TimeElapsedColumn(),
            bars.TimeRemainingColumn(),
            console=err,
            transient=True,
            disable=not err.is_terminal,
            # Drawing takes the time of what is measured: once a second is enough.
            refresh_per_second=1,
        )
        self._task = self._bar.add_task("loading", total=None)

    def __enter__(self) -> _Bar:
        self._bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bar.stop()

    def show(self, now: Update) -> None:
        """Before every image."""
        self._bar.update(self._task, description=now.label, completed=now.done, total=now.total)
