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
from hasten.inspect.inputs import DIMENSIONS, Maker, attempts_around, first_attempt, stream_of
from hasten.inspect.known import known, tensors_in
from hasten.inspect.layouts import IMAGE, TOKENS, VIDEO, Attempt, Grid, Layout, layouts_of
from hasten.inspect.trails import Trail, mark
from hasten.inspect.watching import Shape, Watch, on_meta
from hasten.inspect.widths import WidthLearned, Widths

_MOST_WIDTHS = 16
_ROUNDS = 2


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
        stream: the name of the one that is denoised.
    """

    method: str
    arguments: Callable[[Widths], dict[str, Any]]
    stream: str | None = None


def run_denoiser(model: nn.Module, grid: Grid) -> Run:
    """Call a denoiser on inputs of this size.

    The likeliest way to call it is tried first. While none goes through, the one that came farthest is varied in one
    respect after the other.

    Raises:
        NoInputsError: none of the tried inputs fits; with the reason of the attempt that came farthest.
    """
    search = _Search(model, grid.batch)
    stream = stream_of(model)
    likely, possible = _likely(model), layouts_of(model, stream)
    best = first_attempt(model, likely if likely in possible else possible[0])
    tried: set[Attempt] = set()
    for _ in range(_ROUNDS):
        for dimension in range(DIMENSIONS):
            for attempt in attempts_around(model, best, dimension):
                if attempt in tried:
                    continue
                tried.add(attempt)
                run = search.run(_Way("forward", partial(_arguments, model, grid, attempt), stream))
                if run is not None:
                    return run
                if search.is_best:
                    best = attempt
    raise search.failed()


def _arguments(model: nn.Module, grid: Grid, attempt: Attempt, widths: Widths) -> dict[str, Any]:
    return Maker(model, grid, attempt, widths).arguments()


def run_decoder(model: nn.Module, grid: Grid) -> Run:
    """Decode latents of this size with an autoencoder.

    Raises:
        NoInputsError: it takes something else.
    """

    def latents(widths: Widths, layout: Layout) -> dict[str, Any]:
        z = torch.empty(layout.shape(widths["z"], grid))
        mark(z, Trail((("z", z.shape[1]),)))
        return {"z": z, "return_dict": False}

    layouts = (VIDEO, IMAGE) if _dimensions(model) == 3 else (IMAGE, VIDEO)
    search = _Search(model, grid.batch)
    for layout in layouts:
        run = search.run(_Way("decode", partial(latents, layout=layout), "z"))
        if run is not None:
            return run
    raise search.failed()


def run_text_encoder(model: nn.Module, grid: Grid) -> Run:
    """Read prompts of `grid.text` tokens with a text encoder.

    Raises:
        NoInputsError: it takes something else.
    """

    def tokens(widths: Widths) -> dict[str, Any]:
        ones = torch.ones(grid.batch, grid.text, dtype=torch.long, device="cpu")
        ids, mask = known(ones), known(ones)
        mark(ids, Trail((("input_ids", grid.text),)))
        cache = {"use_cache": False} if "use_cache" in inspect.signature(model.forward).parameters else {}
        return {"input_ids": ids, "attention_mask": mask, **cache}

    search = _Search(model, grid.batch)
    run = search.run(_Way("forward", tokens))
    if run is None:
        raise search.failed()
    return run


class _Search:
    """Tries ways to call a model, and remembers which came farthest.

    Attributes:
        is_best: whether the last one came farther than all before it.
    """

    def __init__(self, model: nn.Module, batch: int) -> None:
        self._model = model
        self._batch = batch
        self._farthest = -1
        self._reason: Exception | None = None
        self.is_best = False

    def run(self, way: _Way) -> Run | None:
        """One way, again for each width that it teaches; None where it does not go through."""
        widths = Widths()
        reason: Exception = RuntimeError("the widths of its inputs cannot be learned")
        farthest = 0
        for _ in range(_MOST_WIDTHS):
            watch = Watch(self._model, self._batch, way.stream, widths)
            try:
                with on_meta(watch):
                    given = way.arguments(widths)
                    watch.operations = 0
                    result = (self._model if way.method == "forward" else getattr(self._model, way.method))(**given)
            except WidthLearned:
                continue
            except Exception as error:
                reason, farthest = error, watch.operations
                break
            inputs = {name: tuple(tensor.shape) for name, tensor in _tensors(given)}
            outputs = tuple(tuple(tensor.shape) for tensor in tensors_in(result))
            return Run(watch, inputs, outputs, way.method, given)
        self.is_best = farthest > self._farthest
        if self.is_best:
            self._farthest, self._reason = farthest, reason
        return None

    def failed(self) -> NoInputsError:
        """Which class it was, and what stopped the way that came farthest."""
        text = str(self._reason).strip()
        first = text.splitlines()[0] if text else type(self._reason).__name__
        failure = NoInputsError(f"{type(self._model).__name__}: no inputs were found that it takes ({first})")
        failure.__cause__ = self._reason
        return failure


def _tensors(given: dict[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in given.items():
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            yield from ((f"{name}.{key}", inner) for key, inner in value.items() if isinstance(inner, Tensor))
        elif isinstance(value, list):
            yield from ((f"{name}[{at}]", inner) for at, inner in enumerate(value) if isinstance(inner, Tensor))


def _likely(model: nn.Module) -> Layout:
    """Told by the first layer that takes as many channels as the model says it gets."""
    channels = getattr(model, "config", {}).get("in_channels")
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d) and module.in_channels == channels:
            return VIDEO if isinstance(module, nn.Conv3d) else IMAGE
        if isinstance(module, nn.Linear) and module.in_features == channels:
            return TOKENS
    if not any(isinstance(module, nn.modules.conv._ConvNd) for module in model.modules()):
        return TOKENS
    return VIDEO if _dimensions(model) == 3 else IMAGE


def _dimensions(model: nn.Module) -> int:
    """Of the convolutions."""
    return 3 if any(isinstance(module, nn.Conv3d) for module in model.modules()) else 2
