"""Example inputs of a model, from the signature of its `forward` and the arguments' names; widths are found by trying.

An argument's name tells what it is (`timestep`, `img_ids`, `pooled_projections`: diffusers' vocabulary, in
`vocabulary.py`). How wide the embeddings have to be stands in no common place, so they are made absurdly wide first:
the layer that refuses them shows what it wants.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from hasten.inspect.ingredients import pooled
from hasten.inspect.known import known
from hasten.inspect.layouts import IMAGE, PATCHES, POSITIONS, TIMES, Attempt, Grid, Layout, layouts_of, texts_of
from hasten.inspect.trails import Trail, mark
from hasten.inspect.vocabulary import VOCABULARY
from hasten.inspect.widths import UNKNOWN, Widths

# What is denoised, where it is not the first argument.
_STREAMS = ("hidden_states", "sample", "x", "vision_tokens", "decoder_input_tokens", "bb_ca")
_IN_SPACE = "bb_ca"  # places of atoms
# What configurations call its channels.
CHANNELS = (
    *("in_channels", "in_visual_dim", "audio_acoustic_hidden_dim", "latent_channel", "io_channels", "latent_dim"),
    *("embedding_dim", "input_dims", "out_dim", "latent_channels"),
)


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


class Maker:
    """Makes the arguments of a model's `forward`.

    Args:
        model: on the meta device, with its `config`.
        grid: the size of the call.
        attempt: the way in which they are laid out.
        widths: what is known of the widths so far.
    """

    config: dict[str, Any]
    grid: Grid
    attempt: Attempt
    widths: Widths
    parameters: dict[str, inspect.Parameter]

    def __init__(self, model: nn.Module, grid: Grid, attempt: Attempt, widths: Widths) -> None:
        self.model = model
        self.config = dict(getattr(model, "config", {}))
        self.grid = grid
        self.attempt = attempt
        self.widths = widths
        self.parameters = dict(_parameters(model))

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for a call."""
        made: dict[str, Any] = {}
        stream = stream_of(self.model)
        for name, parameter in self.parameters.items():
            if name == stream:
                made[name] = self.beside(name, self.channels)
                continue
            value = self.make(name, required=parameter.default is parameter.empty)
            if value is not None:
                made[name] = value
        return made

    def make(self, name: str, *, required: bool = False) -> Any:
        """An argument by its name; None to leave it out."""
        for pattern, when, make in VOCABULARY:
            if re.fullmatch(pattern, name):
                wanted = required or {
                    "always": True,
                    "optional": self.attempt.optional,
                    "others": self.attempt.others,
                    "required": False,
                }.get(when, False)
                return make(self, name) if wanted else None
        return None

    # --- sizes

    @property
    def channels(self) -> int | None:
        """Of what is denoised, where the configuration tells."""
        if stream_of(self.model) == _IN_SPACE:
            return 3
        value = self.config.get(self.attempt.channels) if self.attempt.channels else None
        return value if isinstance(value, int) else None

    @property
    def patches(self) -> tuple[int, int, int]:
        """Frames, rows and columns of tokens, once they are made."""
        grid = self.grid
        if self.attempt.layout.packed:
            return grid.frames, grid.height // grid.patch, grid.width // grid.patch
        size = self.config.get("patch_size", self.config.get("latent_patch_size", 1))
        sizes = tuple(size) if isinstance(size, list | tuple) else (size,) if isinstance(size, int) else (1,)
        time = self.config.get("patch_size_t") or (sizes[0] if len(sizes) == 3 else 1)
        space = 2 if self.attempt.layout is PATCHES else sizes[-1]
        frames = 1 if self.attempt.layout is IMAGE else grid.frames // time
        return frames, grid.height // space, grid.width // space

    @property
    def tokens(self) -> int:
        """Of what is denoised, once they are made."""
        return math.prod(self.patches)

    @property
    def sound(self) -> int:
        """Of what goes with a film."""
        return max(1, self.grid.frames)

    def text_tokens(self, name: str) -> int:
        """Of one of the prompts: some classes take a fixed number of each."""
        if self.attempt.text == "aligned":
            return self.attempt.layout.shape(1, self.grid)[-1]
        if self.attempt.text == "joined":
            return self.grid.text + self.tokens
        fixed = self.config.get("text_len_t5" if name.endswith("_t5") else "text_len")
        fixed = fixed or (self.config.get("num_embeddings") if "proj_embedding" in self.parameters else None)
        return fixed if isinstance(fixed, int) else self.grid.text

    @property
    def sequence(self) -> int:
        """Text, image and sound, where a class is told of the whole of it."""
        sound = self.sound if "audio_hidden_states" in self.parameters else 0
        step = 1 if self.attempt.positions == "B×S" else 0  # the timestep as a token
        return self.grid.text + step + self.tokens + sound

    # --- tensors

    def floats(self, name: str, *shape: int, length: int | None = None) -> Tensor:
        """Numbers that are not known, whose tokens come from this argument."""
        tensor = torch.empty(shape)
        mark(tensor, Trail(((name, length or (shape[1] if len(shape) > 1 else 1)),)))
        return tensor

    def beside(self, name: str, channels: int | None = None) -> Any:
        """Laid out as what is denoised, with its own channels."""
        layout, grid = self.attempt.layout, self.grid
        if layout.codes:
            codes = torch.zeros(layout.shape(1, grid), dtype=torch.long, device="cpu")
            tensor = known(codes)
            mark(tensor, Trail(((name, codes[0].numel()),)))
            return tensor
        shape = layout.shape(channels or self.widths[name], grid)
        if layout.listed:
            return [self.floats(name, *shape) for _ in range(grid.batch)]
        return self.floats(name, *shape)

    def asked(self, *keys: str) -> Asked:
        """Conditions that are made when they are asked for; `keys` already, for models that unpack without asking."""
        asked = Asked(lambda key: pooled(self, key) if key == "image_embeds" else self.make(key, required=True))
        for key in keys:
            asked[key] = asked[key]
        return asked

    def is_known(self, name: str) -> bool:
        """Whether an argument's width has been learned."""
        return self.widths[name] < UNKNOWN


def stream_of(model: nn.Module) -> str:
    """The name of what is denoised."""
    names = [name for name, _ in _parameters(model)]
    return next((name for name in _STREAMS if name in names), names[0])


DIMENSIONS = 7


def first_attempt(model: nn.Module, likely: Layout) -> Attempt:
    """The likeliest way to call a class."""
    return Attempt(likely, channels=_channels(model)[0])


def attempts_around(model: nn.Module, best: Attempt, dimension: int) -> Iterator[Attempt]:
    """Attempts that differ from the best one so far in one respect, of `DIMENSIONS`."""
    match dimension:
        case 0:
            for layout in dict.fromkeys((best.layout, *layouts_of(model, stream_of(model)))):
                yield from (replace(best, layout=layout, optional=optional) for optional in (False, True))
        case 1:
            for layout in dict.fromkeys((best.layout, *layouts_of(model, stream_of(model)))):
                yield from (replace(best, layout=layout, channels=channels) for channels in _channels(model))
        case 2:
            yield from (replace(best, text=text) for text in texts_of(model))
        case 3:
            yield from (replace(best, time=time) for time in TIMES)
        case 4:
            if "position_ids" in dict(_parameters(model)):
                yield from (replace(best, positions=positions) for positions in POSITIONS)
        case 5:
            yield replace(best, others=not best.others)
            yield replace(best, widened=not best.widened)
        case _:  # where two of these are refused together
            for layout in layouts_of(model, stream_of(model)):
                yield from (replace(best, layout=layout, time=time) for time in TIMES)
                yield from (replace(best, layout=layout, text=text) for text in texts_of(model))


def _channels(model: nn.Module) -> list[str | None]:
    """What its configuration may call the channels; None, to learn them, at the end."""
    config = getattr(model, "config", {})
    return [*(key for key in CHANNELS if isinstance(config.get(key), int)), None]


def _parameters(model: nn.Module) -> Iterator[tuple[str, inspect.Parameter]]:
    for name, parameter in inspect.signature(model.forward).parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            yield name, parameter
