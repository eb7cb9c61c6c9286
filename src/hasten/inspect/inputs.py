"""Example inputs of a model, from the signature of its `forward` and the arguments' names; widths are found by trying.

An argument's name tells what it is (`timestep`, `img_ids`, `pooled_projections`: diffusers' vocabulary). How wide the
embeddings have to be stands in no common place, so they are made absurdly wide first: the layer that refuses them
shows what it wants.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hasten.inspect.known import known
from hasten.inspect.trails import Trail, mark
from hasten.inspect.widths import UNKNOWN, Widths


@dataclass(frozen=True)
class Grid:
    """The size of one call.

    Attributes:
        batch: samples.
        height, width, frames: of the latents.
        text: tokens of a prompt.
        patch: latents in a row that a pipeline packs into one token, where it does that.
    """

    batch: int
    height: int
    width: int
    frames: int
    text: int
    patch: int = 2

    @property
    def tokens(self) -> int:
        return self.frames * (self.height // self.patch) * (self.width // self.patch)


@dataclass(frozen=True)
class Layout:
    """How the thing to denoise is laid out.

    Attributes:
        name: for errors.
        shape: from the number of channels and the grid.
        listed: a list with one tensor per sample.
    """

    name: str
    shape: Callable[[int, Grid], tuple[int, ...]]
    listed: bool = False


IMAGE = Layout("B×C×H×W", lambda c, g: (g.batch, c, g.height, g.width))
VIDEO = Layout("B×C×F×H×W", lambda c, g: (g.batch, c, g.frames, g.height, g.width))
FRAMES = Layout("B×F×C×H×W", lambda c, g: (g.batch, g.frames, c, g.height, g.width))
TOKENS = Layout("B×tokens×C", lambda c, g: (g.batch, g.tokens, c))
SOUND = Layout("B×C×length", lambda c, g: (g.batch, c, g.height * g.width))
VECTOR = Layout("B×C", lambda c, g: (g.batch, c))
LISTED = Layout("list of C×F×H×W", lambda c, g: (c, g.frames, g.height, g.width), listed=True)
LAYOUTS = (IMAGE, VIDEO, TOKENS, FRAMES, SOUND, LISTED, VECTOR)


class Asked(dict[str, Any]):
    """A dictionary of conditions that makes what it is asked for, where the name says what it is."""

    def __init__(self, make: Callable[[str], Any]) -> None:
        super().__init__()
        self._make = make

    def __missing__(self, key: str) -> Any:
        value = self._make(key)
        if value is None:
            raise KeyError(key)
        self[key] = value
        return value

    def __contains__(self, key: object) -> bool:
        return isinstance(key, str) and (dict.__contains__(self, key) or self._make(key) is not None)

    def get(self, key: str, default: Any = None) -> Any:
        try:
            return self[key]
        except KeyError:
            return default


@dataclass(frozen=True)
class Attempt:
    """One way to call a model.

    Attributes:
        layout: of what is denoised.
        optional: whether masks and other optional inputs are given, too.
    """

    layout: Layout
    optional: bool = False


class Maker:
    """Makes the arguments of a model's `forward`.

    Args:
        model: on the meta device, with its `config`.
        grid: the size of the call.
        widths: what is known of the widths so far.
    """

    def __init__(self, model: nn.Module, grid: Grid, widths: Widths) -> None:
        self.model = model
        self.config: dict[str, Any] = dict(getattr(model, "config", {}))
        self.grid = grid
        self.widths = widths
        self.parameters = {
            name: parameter
            for name, parameter in inspect.signature(model.forward).parameters.items()
            if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        }

    @property
    def stream(self) -> str:
        """The name of what is denoised: the first argument."""
        return next(iter(self.parameters))

    def arguments(self, attempt: Attempt) -> dict[str, Any]:
        """Keyword arguments for a call."""
        made: dict[str, Any] = {}
        for name, parameter in self.parameters.items():
            if name == self.stream:
                made[name] = self._denoised(name, attempt.layout)
                continue
            required = parameter.default is parameter.empty
            if name == "added_cond_kwargs":
                made[name] = self._asked("resolution", "aspect_ratio") if attempt.optional else self._asked()
                continue
            value = self.make(name, optional=attempt.optional or required, required=required)
            if value is not None:
                made[name] = value
        return made

    def _denoised(self, name: str, layout: Layout) -> Any:
        channels = self.config.get("in_channels")
        shape = layout.shape(channels if isinstance(channels, int) else self.widths[name], self.grid)
        if layout.listed:
            return [self._floats(name, *shape) for _ in range(self.grid.batch)]
        return self._floats(name, *shape)

    def _floats(self, name: str, *shape: int) -> Tensor:
        tensor = torch.empty(shape)
        mark(tensor, Trail(((name, shape[1] if len(shape) > 1 else 1),)))
        return tensor

    def make(self, name: str, *, optional: bool = False, required: bool = False) -> Any:
        """An argument by its name; None to leave it out."""
        for pattern, when, make in _VOCABULARY:
            if re.fullmatch(pattern, name):
                wanted = when == "always" or (when == "optional" and optional) or (when == "required" and required)
                return make(self, name) if wanted else None
        return None

    def _asked(self, *keys: str) -> Asked:
        """Conditions that are made when they are asked for; `keys` already, for models that unpack without asking."""
        asked = Asked(
            lambda key: self._pooled(key) if key == "image_embeds" else self.make(key, optional=True, required=True)
        )
        for key in keys:
            asked[key] = asked[key]
        return asked

    # --- what the vocabulary is made of

    def _text(self, name: str) -> Tensor:
        return self._floats(name, self.grid.batch, self.grid.text, self.widths[name])

    def _no_image(self, name: str) -> Tensor:
        """Zeros: what a pipeline gives that starts from text alone."""
        width = self.widths[name]
        if width >= UNKNOWN:  # not learned yet
            return self._text(name)
        tensor = known(torch.zeros(self.grid.batch, self.grid.text, width, device="cpu"))
        mark(tensor, Trail(((name, self.grid.text),)))
        return tensor

    def _pooled(self, name: str) -> Tensor:
        return self._floats(name, self.grid.batch, self.widths[name])

    def _time(self, name: str) -> Tensor:
        tensor = known(torch.full((self.grid.batch,), 500.0, device="cpu"))
        mark(tensor, Trail(((name, 1),)))
        return tensor

    def _guidance(self, name: str) -> Tensor | None:
        # Where a config says whether there is an embedding for it, giving it without one is an error.
        return self._time(name) if self.config.get("guidance_embeds", True) else None

    def _text_mask(self, name: str) -> Tensor:
        return known(torch.ones(self.grid.batch, self.grid.text, dtype=torch.long, device="cpu"))

    def _image_ids(self, name: str) -> Tensor:
        return known(torch.zeros(self.grid.tokens, self._axes(), device="cpu"))

    def _text_ids(self, name: str) -> Tensor:
        return known(torch.zeros(self.grid.text, self._axes(), device="cpu"))

    def _axes(self) -> int:
        axes = next(
            (self.config[key] for key in ("axes_dims_rope", "axes_dim", "axes_dims") if key in self.config), None
        )
        return len(axes) if axes else 3

    def _image_shapes(self, name: str) -> list[list[tuple[int, int, int]]]:
        grid = self.grid
        return [[(grid.frames, grid.height // grid.patch, grid.width // grid.patch)]] * grid.batch

    def _pairs(self, name: str) -> Tensor:
        return known(torch.full((self.grid.batch, 2), 1024.0, device="cpu"))

    def _six(self, name: str) -> Tensor:
        return known(torch.full((self.grid.batch, 6), 1024.0, device="cpu"))

    def _one(self, name: str) -> Tensor:
        return known(torch.ones(self.grid.batch, 1, device="cpu"))

    def _labels(self, name: str) -> Tensor | None:
        return known(torch.zeros(self.grid.batch, dtype=torch.long, device="cpu"))


_When = str
_Make = Callable[[Maker, str], Any]
# Names of arguments → when they are given and what they are; the first that fits counts.
_VOCABULARY: tuple[tuple[str, _When, _Make], ...] = (
    (r"return_dict", "always", lambda maker, name: False),
    (r"timesteps?|t|timestep_ratio", "always", Maker._time),
    (r"timestep_\w+|\w+_timestep|sigma", "required", Maker._time),
    (r"guidance", "always", Maker._guidance),
    (r"encoder_hidden_states_image", "required", Maker._text),
    (r"\w*encoder_hidden_states\w*(?<!mask)|prompt_embeds|text_hidden_states", "always", Maker._text),
    (r"pooled_projections|pooled_embeds|pooled_text_emb|clip_text_pooled|text_embeds", "always", Maker._pooled),
    (r"image_embeds", "optional", Maker._no_image),
    (r"image_embeddings|proj_embedding", "required", Maker._pooled),
    (
        r"encoder_(hidden_states|attention)_mask(_\w+)?|encoder_mask|text_embedding_mask\w*",
        "optional",
        Maker._text_mask,
    ),
    (r"img_ids", "always", Maker._image_ids),
    (r"txt_ids", "always", Maker._text_ids),
    (r"img_shapes", "always", Maker._image_shapes),
    (r"original_size|target_size|crop_coords|resolution", "always", Maker._pairs),
    (r"time_ids", "always", Maker._six),
    (r"aspect_ratio", "always", Maker._one),
    (r"num_frames", "always", lambda maker, name: maker.grid.frames),
    (r"height", "always", lambda maker, name: maker.grid.height // maker.grid.patch),
    (r"width", "always", lambda maker, name: maker.grid.width // maker.grid.patch),
    (r"class_labels", "optional", Maker._labels),
    (r"fps", "required", Maker._labels),
)
