"""Run a component once on the meta device, with inputs that fit it."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError
from hasten.inspect.inputs import IMAGE, LAYOUTS, TOKENS, VIDEO, Attempt, Grid, Layout, Maker
from hasten.inspect.known import known, tensors_in
from hasten.inspect.trails import Trail, mark
from hasten.inspect.watching import Shape, Watch, on_meta
from hasten.inspect.widths import WidthLearned, Widths

_MOST_WIDTHS = 8


class NoInputsError(HastenError):
    """A class whose inputs could not be derived."""


@dataclass(frozen=True)
class Run:
    """A forward pass that went through.

    Attributes:
        watch: what was seen.
        inputs: the shapes of what the model was given, by argument.
        outputs: the shapes of what it returned.
        method, arguments: what was called, and with what, on the meta device.
    """

    watch: Watch
    inputs: dict[str, Shape]
    outputs: tuple[Shape, ...]
    method: str
    arguments: dict[str, Any]


@dataclass(frozen=True)
class _Way:
    """A way to call a model.

    Attributes:
        method: of the model, to be called.
        arguments: makes its keyword arguments; called where tensors land on the meta device.
    """

    method: str
    arguments: Callable[[], dict[str, Any]]


def run_denoiser(model: nn.Module, grid: Grid) -> Run:
    """Call a denoiser on inputs of this size.

    Raises:
        NoInputsError: none of the tried inputs fits; with the reason of the attempt that came farthest.
    """
    widths = Widths()
    maker = Maker(model, grid, widths)
    ways = (_Way("forward", partial(maker.arguments, attempt)) for attempt in _attempts(model))
    return _first(model, ways, grid.batch, widths, maker.stream)


def run_decoder(model: nn.Module, grid: Grid) -> Run:
    """Decode latents of this size with an autoencoder.

    Raises:
        NoInputsError: it takes something else.
    """
    widths = Widths()

    def latents(layout: Layout) -> dict[str, Any]:
        z = torch.empty(layout.shape(widths["z"], grid))
        mark(z, Trail((("z", z.shape[1]),)))
        return {"z": z, "return_dict": False}

    layouts = (VIDEO, IMAGE) if _dimensions(model) == 3 else (IMAGE, VIDEO)
    ways = (_Way("decode", partial(latents, layout)) for layout in layouts)
    return _first(model, ways, grid.batch, widths, "z")


def run_text_encoder(model: nn.Module, grid: Grid) -> Run:
    """Read prompts of `grid.text` tokens with a text encoder.

    Raises:
        NoInputsError: it takes something else.
    """

    def tokens() -> dict[str, Any]:
        ones = torch.ones(grid.batch, grid.text, dtype=torch.long, device="cpu")
        ids, mask = known(ones), known(ones)
        mark(ids, Trail((("input_ids", grid.text),)))
        cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        return {"input_ids": ids, "attention_mask": mask, **cache}

    return _first(model, iter([_Way("forward", tokens)]), grid.batch, Widths(), None)


class _Refused(Exception):  # noqa: N818 - an outcome, not a failure of ours
    def __init__(self, calls: int, reason: Exception) -> None:
        super().__init__(str(reason))
        self.calls = calls
        self.reason = reason


def _first(model: nn.Module, ways: Iterator[_Way], batch: int, widths: Widths, stream: str | None) -> Run:
    """The first way that goes through."""
    farthest: tuple[int, Exception | None] = (-1, None)
    for way in ways:
        try:
            return _attempt(model, way, batch, widths, stream)
        except _Refused as refused:
            if refused.calls > farthest[0]:
                farthest = (refused.calls, refused.reason)
    reason = farthest[1]
    text = str(reason).strip().splitlines()[0] if str(reason).strip() else type(reason).__name__
    raise NoInputsError(f"{type(model).__name__}: no inputs were found that it takes ({text})") from reason


def _attempt(model: nn.Module, way: _Way, batch: int, widths: Widths, stream: str | None) -> Run:
    """One way, again for each width that it teaches."""
    for _ in range(_MOST_WIDTHS):
        watch = Watch(model, batch, stream, widths)
        try:
            with on_meta(watch):
                given = way.arguments()
                result = (model if way.method == "forward" else getattr(model, way.method))(**given)
        except WidthLearned:
            continue
        except Exception as error:
            raise _Refused(sum(seen.calls for seen in watch.seen.values()), error) from error
        inputs = {name: tuple(tensor.shape) for name, tensor in _tensors(given)}
        outputs = tuple(tuple(tensor.shape) for tensor in tensors_in(result))
        return Run(watch, inputs, outputs, way.method, given)
    raise _Refused(0, RuntimeError("the widths of its inputs cannot be learned"))


def _tensors(given: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if isinstance(inner, Tensor))
        elif isinstance(value, list):
            yield from ((f"{name}[{at}]", inner) for at, inner in enumerate(value) if isinstance(inner, Tensor))


def _attempts(model: nn.Module) -> Iterator[Attempt]:
    """Ways to call a denoiser, the likeliest first."""
    likely = _likely(model)
    layouts = [likely, *(layout for layout in LAYOUTS if layout is not likely)]
    for layout in layouts:
        yield Attempt(layout)
        yield Attempt(layout, optional=True)


def _likely(model: nn.Module) -> Layout:
    """Told by the first layer that takes as many channels as the model says it gets."""
    channels = getattr(model, "config", {}).get("in_channels")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == channels:
            return VIDEO if isinstance(module, nn.Conv3d) else IMAGE
        if isinstance(module, nn.Linear) and module.in_features == channels:
            return TOKENS
    return VIDEO if _dimensions(model) == 3 else IMAGE


def _dimensions(model: nn.Module) -> int:
    """Of the convolutions."""
    return 3 if any(isinstance(module, nn.Conv3d) for module in model.modules()) else 2
