"""The main job: a plan and prompts become images, each with a record of what it is and what it took."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from hasten import record as records
from hasten.calling import batched, call_arguments, pixels_of
from hasten.describing import describe_device, describe_model, dtype_name, dtype_of, plan_of_one, versions
from hasten.devices import PeakMemory, clean_up
from hasten.errors import HastenError
from hasten.files import check_writable, file_name, write_new
from hasten.images import grid, save_png, to_pil
from hasten.models import complete_plan, native_of, with_native
from hasten.passes import Keeper, without_passes
from hasten.plan import Output, Plan, load_plan
from hasten.record import Record
from hasten.stages import StageWatch

REFERENCE = "reference"
"""The method's name of an image with nothing skipped."""


@dataclass(frozen=True)
class Progress:
    """Where a run is, told after every step.

    Attributes:
        label: what is being made, e.g. "taylorseer" or "reference 2/3".
        image, images: number of this image, from 1, and of all.
        step, steps: steps done, and the schedule's length (a two-call solver counts both calls).
        computed, skipped: steps so far by what happened.
    """

    label: str
    prompt: str
    seed: int
    image: int
    images: int
    step: int
    steps: int
    computed: int
    skipped: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True)
class Result:
    """One generated image or film.

    Attributes:
        pixels: float, shape (frames, channels, height, width), in [0, 1], before rounding to bytes.
        latents: what the last step of the scheduler returned, in the pipeline's own layout.
        record: what it is and what was measured.
        path: the file it was written to, if it was.
        latents_path: the same for its latents.
    """

    pixels: torch.Tensor
    latents: torch.Tensor | None
    record: Record
    path: Path | None = None
    latents_path: Path | None = None

    @property
    def frames(self) -> list[Image.Image]:
        return [to_pil(frame) for frame in self.pixels]

    @property
    def image(self) -> Image.Image:
        """The image; of a film the middle frame."""
        return to_pil(self.pixels[len(self.pixels) // 2])

    def save(self, folder: str | Path = "outputs", name: str | None = None, *, latents: bool = False) -> Result:
        """Write the image with its record inside; never over another file.

        Args:
            name: `{method}_{prompt}_{seed}.png` by default.
            latents: also write these, as `…_latents.safetensors` beside it.

        Returns:
            The same result with its paths.
        Raises:
            HastenError: the folder cannot be written to.
        """
        folder = Path(folder)
        check_writable(folder)
        wanted = folder / (name or name_of(Output(), self.record))
        path = write_new(wanted, lambda file: save_png(self.frames, file, self.record.png_info()))
        beside: Path | None = None
        if latents and self.latents is not None:
            from safetensors.torch import save

            data = save({"latents": self.latents.contiguous()}, {"hasten": self.record.to_json()})
            beside = write_new(path.with_name(f"{path.stem}_latents.safetensors"), lambda file: file.write(data))
        return replace(self, path=path, latents_path=beside)


def name_of(output: Output, record: Record, index: int = 0, role: str = "") -> str:
    """The file's name that a plan's `io.filename` gives to an image.

    Args:
        index: its number in the run, from 0.
        role: "reference", "compare" or "grid" for what is made beside the images.
    """
    return file_name(
        output.filename,
        method=record.method,
        prompt=record.prompt,
        seed=record.seed,
        index=index,
        steps=record.steps.total if record.plan.adaptive.on else record.plan.generation.num_inference_steps,
        role=role,
    )


def generate(
    plan: Plan | Mapping[str, Any] | str | Path | None,
    prompts: str | Sequence[str],
    progress: OnProgress | None = None,
    pipe: Any = None,
    save: bool = False,
) -> list[Result]:
    """Make `plan.generation.num_images` images for every prompt; image i has the seed `plan.seed + i`.

    Args:
        plan: a plan, or what `load_plan` makes one of ("taylorseer", "plan.yaml", …); None skips nothing.
        prompts: one or several.
        progress: called after every step.
        pipe: a loaded pipeline to use; by default the one that the plan names is loaded.
        save: write every image into `plan.io.out` as soon as it is there.

    Raises:
        HastenError: anything a user can mend, before the computing starts wherever that can be known.

    >>> hasten.generate("taylorseer", "a red circle left of a blue square")[0].image  # doctest: +SKIP
    """
    return list(stream(plan, prompts, progress=progress, pipe=pipe, save=save))


def stream(
    plan: Plan | Mapping[str, Any] | str | Path | None,
    prompts: str | Sequence[str],
    progress: OnProgress | None = None,
    pipe: Any = None,
    save: bool = False,
) -> Iterator[Result]:
    """`generate`, one image at a time, so that an interrupt loses only the one in the making."""
    session = Session.open(plan, prompts, pipe=pipe, save=save, lasting=False)
    with session.cleaning():
        for number, (prompt, seed) in enumerate(session.jobs, start=1):
            result = session.run(prompt, seed, number=number, progress=progress)
            if save:
                output = session.plan.io
                name = name_of(output, result.record, number - 1)
                result = result.save(output.out, name, latents=output.save_latents)
            yield result


@dataclass(frozen=True)
class Session:
    """A plan with its pipeline, checked and ready to run."""

    plan: Plan
    pipe: Any
    prompts: tuple[str, ...]
    keeper: Keeper
    notes: tuple[str, ...] = ()
    """What is to be said of the plan, in every record."""

    @classmethod
    def open(
        cls,
        plan: Any,
        prompts: str | Sequence[str],
        *,
        pipe: Any = None,
        save: bool = False,
        keeper: Keeper | None = None,
        lasting: bool = True,
    ) -> Session:
        """Check everything that can be checked, then load: a mistake must not cost a model's loading time.

        Args:
            keeper: that of another session with the same pipeline.
            lasting: False where a pipeline that is loaded here is for this plan alone: weights that the plan replaces,
                by quantized ones for example, are then freed.
        """
        prompts = (prompts,) if isinstance(prompts, str) else tuple(prompts)
        for prompt in prompts:
            try:
                prompt.encode()
            except UnicodeEncodeError as error:
                raise HastenError(f"the prompt {prompt!r} is not valid UTF-8 text") from error
        if not prompts:
            raise HastenError("there is no prompt")
        plan = load_plan(plan)
        if pipe is None:
            plan = complete_plan(plan)
        else:
            if "model" not in plan.model_fields_set:
                # A pipeline that was given may be any; the plan's default would name the wrong one in the record.
                source = getattr(getattr(pipe, "config", None), "_name_or_path", None)
                plan = plan.model_copy(update={"model": str(source or type(pipe).__name__)})
            plan = with_native(plan, native_of(pipe))
        if save:
            check_writable(plan.io.out)
        keeps = lasting or pipe is not None
        if pipe is None:
            from hasten.loading import load

            pipe = load(plan)
        call_arguments(pipe, plan, prompts[0], plan.seed)  # raises for what this pipeline cannot do
        notes: tuple[str, ...] = ()
        if plan.quality is not None:
            from hasten.quality import resolve_quality

            plan, note = resolve_quality(plan, pipe, plan.generation.num_inference_steps)
            notes = (note,)
        return cls(plan, pipe, prompts, keeper or Keeper(pipe, keeps=keeps), notes)

    @property
    def jobs(self) -> list[tuple[str, int]]:
        """(prompt, seed) of every image."""
        seeds = range(self.plan.seed, self.plan.seed + self.plan.generation.num_images)
        return [(prompt, seed) for prompt in self.prompts for seed in seeds]

    @property
    def device(self) -> torch.device:
        return torch.device(getattr(self.pipe, "_execution_device", None) or self.pipe.device)

    @contextlib.contextmanager
    def cleaning(self) -> Iterator[None]:
        """Free the device's unused memory before and after; leave the pipeline as it was."""
        clean_up(self.device)
        try:
            yield
        finally:
            self.keeper.release()
            clean_up(self.device)

    def run(
        self,
        prompt: str,
        seed: int,
        *,
        accelerated: bool = True,
        steps: int | None = None,
        batch: int = 1,
        number: int = 1,
        images: int | None = None,
        label: str | None = None,
        progress: OnProgress | None = None,
    ) -> Result:
        """Make one image.

        Args:
            accelerated: False skips nothing whatever the plan says.
            steps: another number of steps than the plan's, for a warm-up.
            batch: so many images in one call, with the seeds from `seed` on; the result holds the first of them.
            number, images, label: for the progress reports.

        Raises:
            HastenError: out of memory, or an output that is no image.
        """
        plan = self.plan if accelerated else without_passes(self.plan)
        self.keeper.engage(plan)
        call = call_arguments(self.pipe, plan, prompt, seed)
        arguments = dict(call.arguments) if batch == 1 else batched(call.arguments, seed, batch)
        if steps is not None:
            arguments["num_inference_steps"] = steps
        method = plan.method or REFERENCE
        handle: Any = None

        def report_progress() -> None:
            if progress is None:
                return
            done = watch.steps_done
            skipped = handle.report().skipped_steps if handle is not None else 0
            progress(
                Progress(
                    label=label or method,
                    prompt=prompt,
                    seed=seed,
                    image=number,
                    images=images or len(self.jobs),
                    step=done,
                    steps=watch.steps_total,
                    computed=done - skipped,
                    skipped=skipped,
                )
            )

        watch = StageWatch(self.pipe, self.device, report_progress)
        report: Any = None
        try:
            with PeakMemory(self.device) as memory, watch, contextlib.ExitStack() as stack:
                if plan.cache is not None:
                    from hasten.handle import attach

                    # Its own number of steps is the pipeline's business: a warm-up makes fewer than the plan says.
                    handle = stack.enter_context(attach(self.pipe, plan, passes=False))
                output = self.pipe(**arguments)
                if handle is not None:
                    report = handle.report()
            pixels = pixels_of(output)
        except torch.OutOfMemoryError as error:
            clean_up(self.device)
            raise HastenError(
                f"{self.device} ran out of memory: make a smaller image (--width, --height), use --dtype bf16 or fp16, "
                "or bound the cache with --cache-size MiB"
            ) from error
        except ValueError as error:
            if isinstance(error, HastenError) or watch.steps_total:
                raise
            # Before the schedule is set, a pipeline checks its inputs and nothing else.
            raise HastenError(f"{type(self.pipe).__name__} refuses these settings: {error}") from error
        except RuntimeError as error:
            if "not implemented for" not in str(error):
                raise
            raise HastenError(
                f"this model needs an operation that {self.device} lacks in this dtype ({error}): use --dtype fp32"
            ) from error
        notes = [*call.notes, *(self.notes if plan.cache is not None else ())]
        if self.device.type == "cpu" and dtype_of(self.pipe) is torch.float16:
            notes.append("fp16 is slow on most CPUs: fp32 or bf16 is usually faster")
        if not bool(torch.isfinite(pixels).all()):
            notes.append(
                "the image holds NaN or infinity: the dtype may be too narrow for this model, try bf16 or fp32"
            )
            pixels = pixels.nan_to_num(0.0)
        skipped = report.skipped_steps if report is not None else 0
        if report is not None and not skipped:
            notes.append("nothing was skipped")
        done = watch.steps_done or plan.generation.num_inference_steps
        record = Record(
            prompt=prompt,
            seed=seed,
            width=pixels.shape[-1],
            height=pixels.shape[-2],
            frames=len(pixels),
            method=method,
            plan=plan_of_one(plan, seed, dtype_name(self.pipe)),
            model=describe_model(plan, self.pipe),
            device=describe_device(self.pipe, self.device),
            versions=versions(),
            timings=watch.timings(),
            steps=records.Steps(total=done, computed=done - skipped, skipped=skipped),
            memory=records.Memory(peak_bytes=memory.bytes or 0, source=memory.source),
            report=report.to_dict() if report is not None else None,
            passes=tuple(
                records.Pass(name=r.name, component=r.component, what=r.what, figures=r.figures)
                for r in self.keeper.rows
            ),
            notes=(*notes, *(report.notes if report is not None else ())),
        )
        latents = watch.latents.cpu() if watch.latents is not None else None
        return Result(pixels, latents, record)


def save_grid(images: Sequence[Image.Image], record: Record, folder: Path, output: Output | None = None) -> Path:
    """Write images as one picture, `grid_{method}_{prompt}_{seed}.png` by the record of one of them."""
    sheet = grid(images)
    return write_new(folder / name_of(output or Output(), record, role="grid"), lambda file: save_png([sheet], file))
