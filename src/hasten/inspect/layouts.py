"""How big one call of a denoiser is, and the ways in which diffusers' classes lay out what they are given."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from torch import nn

Text = Literal["plain", "stacked", "by token", "single", "by frame", "listed", "joined", "aligned"]
Time = Literal["sample", "whole", "one", "frame", "channel and frame", "token"]
Positions = Literal["S×3", "B×S×3", "3×S", "B×S"]


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
        packed: the pipeline makes the tokens; elsewhere the model does, from patches.
        codes: whole numbers, entries of a codebook.
        channels: which dimension they are.
    """

    name: str
    shape: Callable[[int, Grid], tuple[int, ...]] = field(repr=False)
    listed: bool = False
    packed: bool = False
    codes: bool = False


IMAGE = Layout("B×C×H×W", lambda c, g: (g.batch, c, g.height, g.width))
VIDEO = Layout("B×C×F×H×W", lambda c, g: (g.batch, c, g.frames, g.height, g.width))
FRAMES = Layout("B×F×C×H×W", lambda c, g: (g.batch, g.frames, c, g.height, g.width))
LAST = Layout("B×F×H×W×C", lambda c, g: (g.batch, g.frames, g.height, g.width, c))
TOKENS = Layout("B×tokens×C", lambda c, g: (g.batch, g.tokens, c), packed=True)
JOINED = Layout("B×(text + tokens)×C", lambda c, g: (g.batch, g.text + g.tokens, c), packed=True)
SOUND = Layout("B×C×length", lambda c, g: (g.batch, c, g.height * g.width))
VECTOR = Layout("B×C", lambda c, g: (g.batch, c))
PATCHES = Layout(
    "B×patches×C×1×p×p",
    lambda c, g: (g.batch, g.frames * (g.height // 2) * (g.width // 2), c, 1, 2, 2),
)
LISTED = Layout("list of C×F×H×W", lambda c, g: (c, g.frames, g.height, g.width), listed=True)
LISTED_VIDEO = Layout("list of 1×C×F×H×W", lambda c, g: (1, c, g.frames, g.height, g.width), listed=True)
CODES = Layout("B×codes", lambda c, g: (g.batch, g.height * g.width), codes=True)
CODE_MAP = Layout("B×H×W codes", lambda c, g: (g.batch, g.height, g.width), codes=True)
TIMES: tuple[Time, ...] = ("sample", "whole", "one", "frame", "channel and frame", "token")
POSITIONS: tuple[Positions, ...] = ("S×3", "B×S×3", "3×S", "B×S")


@dataclass(frozen=True)
class Attempt:
    """One way to call a model.

    Attributes:
        layout: of what is denoised.
        optional: whether masks and other optional inputs are given, too.
        channels: the configuration's name for its channels; None to learn them.
        text: how the prompt's embeddings are laid out.
        others: whether embeddings of further text encoders are given where they may be left out.
        time: how the noise level is told.
        positions: how the places of all tokens are told.
        widened: whether embeddings of a whole prompt have a dimension for its one token.
    """

    layout: Layout
    optional: bool = False
    channels: str | None = "in_channels"
    text: Text = "plain"
    others: bool = True
    time: Time = "sample"
    positions: Positions = "S×3"
    widened: bool = False


def layouts_of(model: nn.Module, stream: str) -> tuple[Layout, ...]:
    """The layouts that a class may take, told by its annotations, its other arguments and its convolutions."""
    parameters = inspect.signature(model.forward).parameters
    if "list" in str(parameters[stream].annotation).lower():
        return LISTED, LISTED_VIDEO
    if "shape_list" in parameters:
        return (PATCHES,)
    if {"indicator", "segment_ids"} & parameters.keys():
        return (JOINED,)
    kinds = {type(module) for module in model.modules()}
    found = []
    if any(issubclass(kind, nn.Conv2d | nn.Conv3d) for kind in kinds):
        found += [IMAGE, VIDEO, FRAMES]
    found.append(TOKENS)
    if any(issubclass(kind, nn.Conv1d) for kind in kinds):
        found.append(SOUND)
    if len(found) == 1:  # no convolutions at all: patches are made by hand
        found += [VIDEO, LAST, IMAGE, VECTOR, SOUND]
    if any(issubclass(kind, nn.Embedding) for kind in kinds):
        found += [CODES, CODE_MAP]
    return tuple(found)


def texts_of(model: nn.Module) -> tuple[Text, ...]:
    """The layouts that a prompt's embeddings may have."""
    annotation = inspect.signature(model.forward).parameters.get("encoder_hidden_states")
    if annotation is not None and "list" in str(annotation.annotation).lower():
        return ("listed",)
    config = getattr(model, "config", {})
    layered: tuple[Text, ...] = ("stacked", "by token") if _LAYERED & config.keys() else ()
    return ("plain", *layered, "single", "by frame", "joined", "aligned")


_LAYERED = {"num_text_layers", "injection_layer_ids"}
