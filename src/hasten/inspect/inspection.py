"""Inspect a model: each component built without weights, called once, and taken apart into layers and stages."""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import nn

from hasten.devices import resolve_device, resolve_dtype
from hasten.errors import HastenError, LoadError
from hasten.inspect.building import build
from hasten.inspect.layers import Layer, layers_of
from hasten.inspect.layouts import Grid
from hasten.inspect.running import NoInputsError, Run, run_decoder, run_denoiser, run_text_encoder
from hasten.inspect.sources import Part, Source, Use
from hasten.inspect.stages import Stage, stages_of
from hasten.inspect.timing import load_part, measure
from hasten.inspect.watching import Shape, Skip
from hasten.loading import quiet_loading

Role = Literal["denoiser", "decoder", "text", "other"]

_VAE_SCALE = 8
_CLIP_TOKENS, _MOST_TOKENS = 77, 512
_SIDE = 1024
_TIMESTEP, _TIMESTEP_ENDS = ("timestep", "timesteps", "t", "timestep_ratio"), ("_timesteps", "_time")
_DENOISERS = ("unet", "transformer", "transformer_2")
_PROBED = 8


@dataclass(frozen=True)
class Size:
    """What is asked for; None = as the model is used by default.

    Attributes:
        width, height: pixels.
        frames: of a film.
        batch: samples in one call of the denoiser; 2 where guidance shares a call.
        text: tokens of a prompt.
        steps, passes: calls of the denoiser for an image.
    """

    width: int | None = None
    height: int | None = None
    frames: int | None = None
    batch: int = 1
    text: int | None = None
    steps: int | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Component:
    """One component, taken apart.

    Attributes:
        name: as the pipeline calls it.
        kind, library: its class.
        role: what it does in a pipeline.
        root: its layers.
        stages: its parts.
        skips: its skip connections.
        inputs, outputs: of the call that was watched.
        calls: calls of one sample for an image; 0 where it takes no part in making one.
        samples: in the call that was watched.
        problem: why no call went through; its cost is then unknown.
    """

    name: str
    kind: str
    library: str
    role: Role
    root: Layer
    stages: tuple[Stage, ...]
    skips: tuple[Skip, ...]
    inputs: dict[str, Shape]
    outputs: tuple[Shape, ...]
    calls: int
    samples: int = 1
    problem: str | None = None


@dataclass(frozen=True)
class Inspection:
    """What was found in a model.

    Attributes:
        name: of the model.
        pipeline: its class, None for a component alone.
        use: at which size and with how many steps.
        batch: samples in the call that was watched.
        components: those that were asked for.
        notes: what was assumed, and what was left out.
    """

    name: str
    pipeline: str | None
    use: Use
    batch: int
    components: tuple[Component, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Timed:
    """Where to measure times.

    Attributes:
        device, dtype: as a plan names them.
    """

    device: str = "auto"
    dtype: str = "auto"


def inspect_model(
    source: Source,
    size: Size = Size(),
    only: Sequence[str] = (),
    timed: Timed | None = None,
) -> Inspection:
    """Take a model apart.

    Args:
        source: of `find_source`.
        size: of the image, and of the call.
        only: names of components; all where it is empty.
        timed: also measure times, which needs weights.

    Raises:
        HastenError: no such component, a size that the model cannot have, or no weights to measure.
    """
    names = [part.name for part in source.parts]
    unknown = [name for name in only if name not in names]
    if unknown:
        raise HastenError(f"{source.name} has no component {unknown[0]!r}; it has {', '.join(names)}")
    with quiet_loading():
        return _Inspector(source, size, timed).inspect([part for part in source.parts if not only or part.name in only])


class _Inspector:
    def __init__(self, source: Source, size: Size, timed: Timed | None) -> None:
        self.source = source
        self.size = size
        self.timed = timed
        self.notes = [f"{name} left out: {why}" for name, why in source.left_out]
        self.models: dict[str, nn.Module] = {}
        self._defaults = _pipeline_defaults(source.pipeline)

    def inspect(self, parts: Sequence[Part]) -> Inspection:
        scale, z = self._scale()
        use = self._use(scale)
        components = tuple(self._component(part, use, scale, z) for part in parts)
        return Inspection(
            self.source.name, self.source.pipeline, use, self.size.batch, components, tuple(dict.fromkeys(self.notes))
        )

    def _model(self, part: Part) -> nn.Module:
        if part.name not in self.models:
            self.models[part.name] = build(part)
        return self.models[part.name]

    # --- sizes

    def _scale(self) -> tuple[tuple[int, int], int | None]:
        """Pixels to a latent, in space and time, and the latents' channels: decode a few and see what comes out."""
        for part in self.source.parts:
            if not hasattr(_class_of(part), "decode"):
                continue
            try:
                run = run_decoder(self._model(part), Grid(1, _PROBED, _PROBED, 2, 1))
            except (HastenError, RuntimeError):
                continue
            shape, z = run.outputs[0], run.inputs["z"]
            frames = (shape[2] - 1) // (z[2] - 1) if len(z) == 5 else 1
            return (shape[-2] // _PROBED, max(1, frames)), z[1]
        return (_VAE_SCALE, 4), None

    def _use(self, scale: tuple[int, int]) -> Use:
        use, size, defaults = self.source.use, self.size, self._defaults
        sample = _sample_size(self.source.parts)
        height = size.height or use.height or defaults.get("height") or (sample[0] * scale[0] if sample else _SIDE)
        width = size.width or use.width or defaults.get("width") or (sample[1] * scale[0] if sample else _SIDE)
        for name, pixels in (("height", height), ("width", width)):
            if pixels % scale[0]:
                raise HastenError(f"{name} {pixels}: this model's latents are {scale[0]} pixels wide: take a multiple")
        frames = size.frames or use.frames or defaults.get("num_frames") or 1
        steps = size.steps or use.steps or defaults.get("num_inference_steps") or 1
        return Use(height, width, frames, self._text_tokens(), steps, size.passes or use.passes or self._passes())

    def _text_tokens(self) -> int:
        if self.size.text or self.source.use.text:
            return self.size.text or self.source.use.text or 0
        named = self._defaults.get("max_sequence_length")
        if named:
            self.notes.append(
                f"{named} text tokens, the most that {self.source.pipeline} reads; a prompt's own: --text"
            )
            return int(named)
        return _CLIP_TOKENS if any("UNet" in part.kind for part in self.source.parts) else _MOST_TOKENS

    def _passes(self) -> int:
        if any(part.config.get("guidance_embeds") for part in self.source.parts):
            return 1
        scale = self._defaults.get("guidance_scale") or 1.0
        return 2 if scale > 1 else 1

    # --- components

    def _component(self, part: Part, use: Use, scale: tuple[int, int], z: int | None) -> Component:
        model = self._model(part)
        role = _role(part, model)
        run, problem = self._run(part, model, role, use, scale, z)
        root = layers_of(model, run.watch.seen if run is not None else {}, self._times(part, run))
        if problem is not None:
            self.notes.append(f"{part.name}: {problem}")
        calls = {
            "denoiser": (use.steps or 1) * (use.passes or 1),
            "decoder": 1,
            "text": use.passes or 1,
            "other": 0,
        }
        return Component(
            name=part.name,
            kind=part.kind,
            library=part.library,
            role=role,
            root=root,
            stages=stages_of(root),
            skips=tuple(run.watch.skips) if run is not None else (),
            inputs=run.inputs if run is not None else {},
            outputs=run.outputs if run is not None else (),
            calls=calls[role],
            samples=self.size.batch if role == "denoiser" else 1,
            problem=problem,
        )

    def _times(self, part: Part, run: Run | None) -> dict[str, float] | None:
        if self.timed is None or run is None:
            return None
        device = resolve_device(self.timed.device)
        dtype = resolve_dtype(self.timed.dtype, device)
        return measure(load_part(part, device, dtype), run, device, dtype)

    def _run(
        self, part: Part, model: nn.Module, role: Role, use: Use, scale: tuple[int, int], z: int | None
    ) -> tuple[Run | None, str | None]:
        space, time = scale
        grid = Grid(
            batch=self.size.batch if role == "denoiser" else 1,
            height=(use.height or _SIDE) // space,
            width=(use.width or _SIDE) // space,
            frames=((use.frames or 1) - 1) // time + 1,
            text=use.text or 1,
            patch=_patch(part.config, z),
        )
        if role == "other":
            return None, "not run: it takes no part in making an image from text"
        try:
            if role == "decoder":
                return run_decoder(model, grid), None
            if role == "text":
                return run_text_encoder(model, _readable(grid, part)), None
            return run_denoiser(model, grid), None
        except NoInputsError as error:
            return None, str(error)


def _class_of(part: Part) -> Any:
    from hasten.inspect.building import find_class

    try:
        return find_class(part)
    except LoadError:
        return None


def _role(part: Part, model: nn.Module) -> Role:
    if hasattr(model, "decode") and part.library == "diffusers":
        return "decoder"
    names = set(inspect.signature(model.forward).parameters)
    if part.library == "transformers":
        return "text" if "input_ids" in names else "other"
    # What is called at every step is told the noise level, or is called as pipelines call it.
    is_denoiser = any(name in _TIMESTEP or name.endswith(_TIMESTEP_ENDS) for name in names)
    return "denoiser" if is_denoiser or part.name in _DENOISERS else "other"


def _sample_size(parts: Sequence[Part]) -> tuple[int, int] | None:
    """A denoiser's own size in latents, where its configuration names one."""
    for part in parts:
        if hasattr(_class_of(part), "decode"):
            continue
        size = part.config.get("sample_size", (part.config.get("sample_height"), part.config.get("sample_width")))
        if isinstance(size, int):
            return size, size
        if isinstance(size, list | tuple) and len(size) == 2 and all(isinstance(side, int) for side in size):
            return int(size[0]), int(size[1])
    return None


def _patch(config: dict[str, Any], z: int | None) -> int:
    """How many latents in a row a pipeline packs into one token: told by the channels that come of it."""
    channels = config.get("in_channels")
    per_latent = z or config.get("out_channels") or (channels // 4 if isinstance(channels, int) else None)
    if not isinstance(channels, int) or not isinstance(per_latent, int) or channels % per_latent:
        return 1
    return math.isqrt(channels // per_latent)


def _readable(grid: Grid, part: Part) -> Grid:
    """No more tokens than a text encoder reads, or has positions for."""
    most = part.config.get("max_position_embeddings")
    tokens = part.tokens or (min(grid.text, most) if isinstance(most, int) else grid.text)
    return replace(grid, text=tokens)


def _pipeline_defaults(pipeline: str | None) -> dict[str, Any]:
    """The defaults of a pipeline's call."""
    import diffusers

    kind = getattr(diffusers, pipeline, None) if pipeline else None
    if kind is None:
        return {}
    return {
        name: parameter.default
        for name, parameter in inspect.signature(kind.__call__).parameters.items()
        if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool)
    }
