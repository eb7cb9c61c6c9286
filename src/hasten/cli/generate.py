"""`hasten generate`: prompts in, images out, with what they took."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hasten.errors import HastenError
from hasten.plan import Output, Plan

if TYPE_CHECKING:
    from hasten.comparison import Comparison
    from hasten.generation import OnProgress, Result
    from hasten.record import Quality, Record

app = typer.Typer()

DEFAULT_PRESET = "taylorseer"
_MODEL, _IMAGE, _CACHE, _OUTPUT = "Model and device", "Image", "Acceleration", "Output"

# Every flag is another spelling of a key of the plan, so that flags, files and --set end in the same object.
FLAGS = {
    "model": "model",
    "device": "device",
    "dtype": "precision.dtype",
    "negative_prompt": "generation.negative_prompt",
    "steps": "generation.num_inference_steps",
    "width": "generation.width",
    "height": "generation.height",
    "true_cfg_scale": "generation.true_cfg_scale",
    "guidance_scale": "generation.guidance_scale",
    "num_images": "generation.num_images",
    "seed": "seed",
    "interval": "cache.interval",
    "taylor_order": "cache.order",
    "first_enhance_steps": "cache.first_enhance",
    "cache_size": "cache.size",
    "quality": "quality",
    "out": "io.out",
    "save_latents": "io.save_latents",
    "grid": "io.grid",
    "compare": "io.compare",
    "rounds": "io.rounds",
}


@app.command()
def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT...", help="What to draw; quote each prompt. '-' reads prompts from stdin, by line."
        ),
    ] = None,
    prompt: Annotated[
        list[str] | None, typer.Option("--prompt", help="The same as PROMPT; may be given several times.")
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", rich_help_panel=_MODEL, help="Bundled name, diffusers folder, .safetensors file or hub id."
        ),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option("--device", rich_help_panel=_MODEL, help="auto, cpu, cuda, npu, hpu, xpu or mps; cuda:1."),
    ] = None,
    dtype: Annotated[
        str | None, typer.Option("--dtype", rich_help_panel=_MODEL, help="auto, fp32, fp16 or bf16.")
    ] = None,
    negative_prompt: Annotated[
        str | None, typer.Option("--negative-prompt", rich_help_panel=_IMAGE, help="What to keep out.")
    ] = None,
    steps: Annotated[
        int | None, typer.Option("--steps", "--num-inference-steps", rich_help_panel=_IMAGE, help="Denoising steps.")
    ] = None,
    width: Annotated[int | None, typer.Option("--width", rich_help_panel=_IMAGE, help="Pixels.")] = None,
    height: Annotated[int | None, typer.Option("--height", rich_help_panel=_IMAGE, help="Pixels.")] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", rich_help_panel=_IMAGE, help="Of the first image; image i has seed + i.")
    ] = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", rich_help_panel=_IMAGE, help="Images for each prompt.")
    ] = None,
    true_cfg_scale: Annotated[
        float | None,
        typer.Option("--true-cfg-scale", rich_help_panel=_IMAGE, help="How strongly the prompt guides (Qwen-Image)."),
    ] = None,
    guidance_scale: Annotated[
        float | None,
        typer.Option("--guidance-scale", rich_help_panel=_IMAGE, help="The same for models that call it so."),
    ] = None,
    disable_taylorseer: Annotated[
        bool, typer.Option("--disable-taylorseer", rich_help_panel=_CACHE, help="Skip nothing: the reference.")
    ] = False,
    interval: Annotated[
        int | None, typer.Option("--interval", rich_help_panel=_CACHE, help="Compute one step in every INTERVAL.")
    ] = None,
    taylor_order: Annotated[
        int | None, typer.Option("--taylor-order", rich_help_panel=_CACHE, help="Degree of the extrapolation.")
    ] = None,
    first_enhance_steps: Annotated[
        int | None,
        typer.Option("--first-enhance-steps", rich_help_panel=_CACHE, help="Steps at the start that are all computed."),
    ] = None,
    cache_size: Annotated[
        float | None, typer.Option("--cache-size", rich_help_panel=_CACHE, help="Ceiling for stored values, in MiB.")
    ] = None,
    plan: Annotated[Path | None, typer.Option("--plan", rich_help_panel=_CACHE, help="A plan's YAML file.")] = None,
    cfg: Annotated[
        str | None,
        typer.Option("--cfg", rich_help_panel=_CACHE, help="A plan's file or its name: base_sd15, configs/mine.yaml."),
    ] = None,
    preset: Annotated[
        str | None, typer.Option("--preset", rich_help_panel=_CACHE, help="A preset's name (see `hasten plan list`).")
    ] = None,
    quality: Annotated[
        str | None,
        typer.Option(
            "--quality",
            rich_help_panel=_CACHE,
            help="near-lossless, high, balanced or draft: hasten chooses the steps to skip.",
        ),
    ] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", rich_help_panel=_CACHE, help="Any key of the plan: --set cache.interval=4."
        ),
    ] = None,
    compare: Annotated[
        bool | None, typer.Option("--compare", rich_help_panel=_OUTPUT, help="Also make the reference, and measure.")
    ] = None,
    rounds: Annotated[
        int | None, typer.Option("--rounds", rich_help_panel=_OUTPUT, help="How often --compare times each way.")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", "-o", rich_help_panel=_OUTPUT, help="Folder for images.")] = None,
    grid: Annotated[
        bool | None, typer.Option("--grid", rich_help_panel=_OUTPUT, help="Also write all images as one picture.")
    ] = None,
    save_latents: Annotated[
        bool | None,
        typer.Option("--save-latents", rich_help_panel=_OUTPUT, help="Also write latents, as safetensors."),
    ] = None,
    json_output: Annotated[
        bool, typer.Option("--json", rich_help_panel=_OUTPUT, help="Print one JSON document on stdout, nothing else.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", rich_help_panel=_OUTPUT, help="Print errors only.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", rich_help_panel=_OUTPUT, help="Print the plan and the files that would be written."),
    ] = False,
) -> None:
    """Make images from prompts, accelerated by a plan (TaylorSeer unless you say otherwise).

    Example: hasten generate "a red circle left of a blue square" --compare
    """
    values = {name: value for name, value in locals().items() if name in FLAGS and value is not None}
    resolved = resolve_plan(plan, preset, sets or [], values, reference=disable_taylorseer, cfg=cfg)
    texts = collect_prompts(prompts or [], prompt or [], quiet=quiet or json_output)
    if dry_run:
        show_plan(resolved, texts, as_json=json_output)
        return
    run(resolved, texts, as_json=json_output, quiet=quiet)


def resolve_plan(
    file: Path | None,
    preset: str | None,
    sets: Sequence[str],
    flags: dict[str, Any],
    *,
    reference: bool,
    cfg: str | None = None,
) -> Plan:
    """One plan from a file or a preset, then `--set`, then the flags; the later wins."""
    from hasten.plan import build_plan

    named = {"--plan": file, "--preset": preset, "--cfg": cfg}
    given = [option for option, value in named.items() if value is not None]
    if len(given) > 1:
        raise HastenError(f"{' and '.join(given)} both name a whole plan: give one of them")
    typed = {FLAGS[name]: (f"{_option(name)} {value}", value) for name, value in flags.items()}
    if reference:
        spare = [_option(name) for name in flags if FLAGS[name].startswith(("cache.", "quality"))]
        if spare:
            raise HastenError(f"--disable-taylorseer skips nothing, so there is no use for {', '.join(spare)}")
        typed["cache"] = ("--disable-taylorseer", None)
    default = None if "quality" in flags else DEFAULT_PRESET
    source: Path | str | None = file if file is not None else cfg or preset or default
    return build_plan(source, sets, {}, caller="hasten generate", flags=typed)


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def collect_prompts(arguments: Sequence[str], options: Sequence[str], *, quiet: bool) -> list[str]:
    """Prompts as they were given, with '-' replaced by the lines of stdin."""
    texts: list[str] = []
    for text in [*arguments, *options]:
        if text == "-":
            texts += [line.rstrip("\n") for line in sys.stdin if line.strip()]
        else:
            texts.append(text)
    if not texts:
        raise HastenError('there is no prompt: hasten generate "a red circle left of a blue square"')
    if not quiet and len(arguments) > 2 and all(text.isascii() and " " not in text for text in arguments):
        from hasten.cli.console import err

        err.print(f"[yellow]{len(texts)} prompts of one word each; quote a prompt of several words[/]")
    return texts


def show_plan(plan: Plan, prompts: Sequence[str], *, as_json: bool) -> None:
    """What would run and be written, as a plan that can be saved and used; imports no torch."""
    import json

    from hasten.files import file_name, free_path
    from hasten.models import complete_plan
    from hasten.plan.resolved import resolved_dict, resolved_yaml

    plan = complete_plan(plan)
    method = plan.method or "reference"
    names: list[Path] = []
    seeds = range(plan.seed, plan.seed + plan.generation.num_images)
    for index, (prompt, seed) in enumerate((prompt, seed) for prompt in prompts for seed in seeds):
        kinds = [("reference", "reference"), ("", method), ("compare", method)] if plan.io.compare else [("", method)]
        for role, kind in kinds:
            file = file_name(
                plan.io.filename,
                method=kind,
                prompt=prompt,
                seed=seed,
                index=index,
                steps=plan.generation.num_inference_steps,
                role=role,
            )
            names.append(free_path(plan.io.out / file, taken=names))
    if as_json:
        document = {"plan": resolved_dict(plan), "prompts": list(prompts), "would_write": [str(name) for name in names]}
        typer.echo(json.dumps(document, ensure_ascii=False, indent=2))
        return
    typer.echo(resolved_yaml(plan).rstrip())
    for name in names:
        typer.echo(f"# would write {name}")


class Outcome:
    """What is finished so far: files and figures but no pixels, since a run may make thousands of images."""

    def __init__(self) -> None:
        self.images: list[dict[str, Any]] = []
        self.comparisons: list[dict[str, Any]] = []
        self.qualities: list[Quality] = []
        self.paths: list[Path] = []
        self.named_after: Record | None = None
        self.grid: Path | None = None

    def add(self, made: Result | Comparison) -> None:
        """Take note of an image, or of a comparison's two."""
        from hasten.comparison import Comparison

        if isinstance(made, Comparison):
            self.named_after = self.named_after or made.accelerated.record
            self.add(made.reference)
            self.add(made.accelerated)
            self.qualities.append(made.quality)
            self.comparisons.append(
                {
                    "prompt": made.reference.record.prompt,
                    "seed": made.reference.record.seed,
                    "reference": str(made.reference.path),
                    "accelerated": str(made.accelerated.path),
                    "picture": str(made.picture),
                    "quality": made.quality.model_dump(mode="json"),
                }
            )
        elif made.path is not None:
            self.paths.append(made.path)
            image = {"path": str(made.path), "record": made.record.model_dump(mode="json")}
            if made.latents_path is not None:
                image["latents"] = str(made.latents_path)
            self.images.append(image)
            self.named_after = self.named_after or made.record

    def save_grid(self, output: Output) -> None:
        """Write all images as one picture."""
        from PIL import Image

        from hasten.generation import save_grid

        if self.named_after is not None:
            self.grid = save_grid([Image.open(path) for path in self.paths], self.named_after, output.out, output)

    def document(self, *, interrupted: bool) -> str:
        """Everything as JSON."""
        import json

        document = {
            "images": self.images,
            "comparisons": self.comparisons,
            "grid": str(self.grid) if self.grid is not None else None,
            "interrupted": interrupted,
        }
        return json.dumps(document, ensure_ascii=False, indent=2)


def run(plan: Plan, prompts: Sequence[str], *, as_json: bool, quiet: bool) -> None:
    """Generate, show what is done as it is done, and keep what is finished whatever happens."""
    from contextlib import ExitStack, nullcontext

    from hasten.cli.show import live_bar, plain_warnings, print_made, print_summary

    outcome = Outcome()
    finished = False
    silent = as_json or quiet
    bar = live_bar(enabled=not silent)
    try:
        with ExitStack() as stack:
            stack.enter_context(plain_warnings(shown=not quiet))
            if bar is not None:
                stack.enter_context(bar)
            for made in _made(plan, prompts, bar.show if bar is not None else None):
                outcome.add(made)
                if not silent:
                    with bar.hidden() if bar is not None else nullcontext():
                        print_made(made)
        if plan.io.grid:
            outcome.save_grid(plan.io)
        if not silent:
            print_summary(outcome.qualities, outcome.grid)
        finished = True
    finally:
        if as_json and (finished or outcome.images):
            typer.echo(outcome.document(interrupted=not finished))


def _made(plan: Plan, prompts: Sequence[str], progress: OnProgress | None) -> Iterator[Result | Comparison]:
    if plan.io.compare:
        from hasten.comparison import stream_comparisons

        yield from stream_comparisons(plan, prompts, plan.io.rounds, progress=progress, save=True)
    else:
        from hasten.generation import stream

        yield from stream(plan, prompts, progress=progress, save=True)
