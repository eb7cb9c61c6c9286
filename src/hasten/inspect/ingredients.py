"""What the arguments of denoisers are made of: texts, pictures, places, masks, figures."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.inspect.known import known
from hasten.inspect.layouts import VIDEO
from hasten.inspect.trails import Trail, mark

if TYPE_CHECKING:
    from hasten.inspect.inputs import Maker

_CPU = "cpu"
_SOME = 3  # of a picture's features, or of history that is shown


# --- what is said of the prompt


def text(maker: Maker, name: str) -> Any:
    """Embeddings of a prompt's tokens."""
    batch, tokens, width = maker.grid.batch, maker.text_tokens(name), maker.widths[name]
    match maker.attempt.text:
        case "stacked":
            return maker.floats(name, batch, _stack(maker), tokens, width, length=tokens)
        case "by token":
            return maker.floats(name, batch, tokens, _stack(maker), width)
        case "single":
            return maker.floats(name, batch, 1, tokens, width, length=tokens)
        case "by frame":
            return maker.floats(name, batch * maker.grid.frames, tokens, width)
        case "listed":
            return [maker.floats(name, tokens, width, length=tokens) for _ in range(batch)]
        case _:
            return maker.floats(name, batch, tokens, width)


def _stack(maker: Maker) -> int:
    """From how many layers of the text encoder embeddings are taken."""
    injected = maker.config.get("injection_layer_ids")
    return int(maker.config.get("num_text_layers") or (len(injected) + 1 if injected else _SOME))


def listed_text(maker: Maker, name: str) -> list[Tensor]:
    tokens, width = maker.text_tokens(name), maker.widths[name]
    return [maker.floats(name, tokens, width, length=tokens) for _ in range(maker.grid.batch)]


def layers_of_text(maker: Maker, name: str) -> list[Tensor]:
    """Embeddings from as many layers of the text encoder as there are blocks."""
    count = sum(int(maker.config.get(key) or 0) for key in ("num_layers", "num_single_layers"))
    return [
        maker.floats(name, maker.grid.batch, maker.text_tokens(name), maker.widths[name]) for _ in range(max(1, count))
    ]


def stacked_text(maker: Maker, name: str) -> Tensor:
    """Embeddings from all layers that the configuration names, one after the other."""
    layers = maker.config.get("llama_layers") or (0,)
    tokens = maker.text_tokens(name)
    return maker.floats(name, max(layers) + 1, maker.grid.batch, tokens, maker.widths[name], length=tokens)


def encoded(maker: Maker, name: str) -> list[tuple[Tensor, Tensor]]:
    """Embeddings and their mask."""
    return [(text(maker, name), text_mask(maker, name))]


def pooled(maker: Maker, name: str) -> Tensor:
    """One embedding of the whole prompt."""
    if maker.attempt.widened:
        return maker.floats(name, maker.grid.batch, 1, maker.widths[name])
    return maker.floats(name, maker.grid.batch, maker.widths[name])


def text_mask(maker: Maker, name: str) -> Tensor:
    kind = torch.bool if "bool" in _note(maker, name).lower() else None
    return ones(maker.grid.batch, maker.text_tokens(name), dtype=kind)


def text_lengths(maker: Maker, name: str) -> Tensor:
    return known(torch.full((maker.grid.batch,), maker.grid.text, device=_CPU))


# --- what is said of a picture


def no_image(maker: Maker, name: str) -> Tensor:
    """Zeros: what a pipeline gives that starts from text alone."""
    width = maker.widths[name]
    if not maker.is_known(name):
        return maker.floats(name, maker.grid.batch, maker.grid.text, width)
    tensor = known(torch.zeros(maker.grid.batch, maker.grid.text, width, device=_CPU))
    mark(tensor, Trail(((name, maker.grid.text),)))
    return tensor


def image_features(maker: Maker, name: str) -> Tensor:
    return maker.floats(name, maker.grid.batch, _SOME, maker.widths[name])


def face_features(maker: Maker, name: str) -> list[Tensor]:
    count = int(maker.config.get("LFE_num_scale", 5))
    return [maker.floats(name, maker.grid.batch, _SOME, maker.widths[name]) for _ in range(count)]


def face_pixels(maker: Maker, name: str) -> Tensor:
    side = int(maker.config.get("motion_encoder_size", 512))
    return maker.floats(name, maker.grid.batch, 3, 4 * (maker.grid.frames - 2) + 1, side, side)


def pose(maker: Maker, name: str) -> Tensor:
    """Of all frames but the first, which is the picture itself."""
    grid = maker.grid
    return maker.floats(name, grid.batch, maker.widths[name], grid.frames - 1, grid.height, grid.width)


def history(maker: Maker, name: str) -> Tensor:
    """Frames that were made before."""
    grid = maker.grid
    return maker.floats(name, grid.batch, maker.widths[name], _history(name), grid.height, grid.width)


def _history(name: str) -> int:
    return int(name[-2]) if name.endswith("x") and name[-2].isdecimal() else 1


def frame_indices(maker: Maker, name: str) -> Tensor:
    frames = torch.arange(maker.grid.frames, device=_CPU)
    return known(frames[None] if name == "indices_hidden_states" else frames)


def history_indices(maker: Maker, name: str) -> Tensor:
    return known(torch.arange(_history(name), device=_CPU))


# --- where and when


def time(maker: Maker, name: str) -> Tensor:
    """The noise level."""
    grid = maker.grid
    shape: tuple[int, ...] = {
        "one": (),
        "frame": (grid.batch, grid.frames),
        "channel and frame": (grid.batch, 1, grid.frames),
        "token": (grid.batch, maker.tokens),
    }.get(maker.attempt.time, (grid.batch,))
    value = 500 if maker.attempt.time in ("whole", "one") else 500.0
    tensor = known(torch.full(shape, value, device=_CPU))
    mark(tensor, Trail(((name, 1),)))
    return tensor


def guidance(maker: Maker, name: str) -> Tensor | None:
    # Where a config says whether there is an embedding for it, giving it without one is an error.
    if not maker.config.get("guidance_embeds", True):
        return None
    return known(torch.full((maker.grid.batch,), 500.0, device=_CPU))


def image_ids(maker: Maker, name: str) -> Tensor:
    return known(torch.zeros(maker.grid.tokens, _axes(maker), device=_CPU))


def text_ids(maker: Maker, name: str) -> Tensor:
    return known(torch.zeros(maker.grid.text, _axes(maker), device=_CPU))


def _axes(maker: Maker) -> int:
    keys = ("axes_dims_rope", "axes_dim", "axes_dims")
    axes = next((maker.config[key] for key in keys if key in maker.config), None)
    return len(axes) if axes else 3


def image_shapes(maker: Maker, name: str) -> list[Any]:
    """Frames, rows and columns of tokens, of all images of each sample."""
    return [[maker.patches]] * maker.grid.batch


def positions(maker: Maker, name: str) -> Tensor:
    """The places of all tokens."""
    batch, count = maker.grid.batch, maker.sequence
    shape = {"B×S×3": (batch, count, 3), "3×S": (3, count), "B×S": (batch, count)}.get(
        maker.attempt.positions, (count, 3)
    )
    return known(torch.zeros(shape, dtype=torch.long, device=_CPU))


def rotations(maker: Maker, name: str) -> Any:
    """Rotary angles that a pipeline makes: a pair of cosines and sines, or complex numbers for a table of places."""
    config = maker.config
    heads = int(config.get("num_attention_heads", 1))
    if "tuple" in _note(maker, name):
        width = heads * int(config.get("attention_head_dim", 1))
        return tuple(maker.floats(name, maker.grid.batch, maker.tokens, width) for _ in range(2))
    _, rows, columns = maker.patches
    side = max(rows, columns)
    return torch.empty(side, side, int(config.get("hidden_size", 1)) // heads // 2, dtype=torch.complex64)


def frame_axes(maker: Maker, name: str) -> list[Tensor]:
    return [known(torch.arange(count, device=_CPU)) for count in maker.patches]


# --- one sequence of everything


def text_places(maker: Maker, name: str) -> Tensor:
    return known(torch.arange(maker.grid.text, device=_CPU))


def image_places(maker: Maker, name: str) -> Tensor:
    return known(torch.arange(maker.grid.text, maker.grid.text + maker.tokens, device=_CPU))


def sound_places(maker: Maker, name: str) -> Tensor:
    begin = maker.grid.text + maker.tokens
    return known(torch.arange(begin, begin + maker.sound, device=_CPU))


def tags(maker: Maker, name: str) -> Tensor:
    """0 for film, 1 for text, 2 for sound."""
    counts = ((1, maker.grid.text), (0, maker.tokens), (2, maker.sound))
    return known(torch.tensor([tag for tag, count in counts for _ in range(count)], device=_CPU))


def roles(maker: Maker, name: str) -> Tensor:
    """3 for text and 2 for the image."""
    row = [3] * maker.grid.text + [2] * maker.tokens
    return known(torch.tensor([row] * maker.grid.batch, device=_CPU))


def image_slots(maker: Maker, name: str) -> Tensor:
    """Which places of the prompt stand for the image, four tokens each."""
    row = [False] * maker.grid.text + [True] * (maker.tokens // 4)
    return known(torch.tensor([row] * maker.grid.batch, device=_CPU))


def padding_mask(maker: Maker, name: str) -> Tensor:
    """Which tokens are there, or which pixels are padded."""
    grid, layout = maker.grid, maker.attempt.layout
    if layout is VIDEO:
        return known(torch.zeros(1, 1, grid.height, grid.width, device=_CPU))
    return ones(grid.batch, layout.shape(1, grid)[1], dtype=torch.bool)


def attention_mask(maker: Maker, name: str) -> Tensor | None:
    if "position_ids" in maker.parameters:
        return ones(maker.grid.batch, maker.sequence, maker.sequence)
    return None


def kept_keys(maker: Maker, name: str) -> Any:
    """An empty store of keys and values, of the class that the argument is annotated with."""
    kind = _annotated(maker.model, name)
    layers = next((maker.config[key] for key in ("num_layers", "depth") if key in maker.config), 0)
    return kind(layers) if kind is not None else None


def _annotated(model: nn.Module, name: str) -> Any:
    """The class that an argument is annotated with, where it is one of the model's own module."""
    annotation = inspect.signature(model.forward).parameters[name].annotation
    if isinstance(annotation, str):
        annotation = getattr(sys.modules[type(model).__module__], annotation, None)
    return annotation if isinstance(annotation, type) else None


# --- figures


def numbers(count: int) -> Callable[[Maker, str], Tensor]:
    def make(maker: Maker, name: str) -> Tensor:
        return known(torch.full((maker.grid.batch, count), 1024.0, device=_CPU))

    return make


def as_many(whole: str, each: str, otherwise: int) -> Callable[[Maker, str], Tensor]:
    """As many figures as embeddings of one width fit into another."""

    def make(maker: Maker, name: str) -> Tensor:
        width, part = maker.config.get(whole), maker.config.get(each)
        count = width // part if isinstance(width, int) and isinstance(part, int) and part else otherwise
        return known(torch.full((maker.grid.batch, count), 1024.0, device=_CPU))

    return make


def labels(maker: Maker, name: str) -> Tensor:
    return known(torch.zeros(maker.grid.batch, dtype=torch.long, device=_CPU))


def codes(maker: Maker, name: str) -> Tensor:
    """An entry of a codebook for each token."""
    return known(torch.zeros(maker.grid.batch, maker.tokens, dtype=torch.long, device=_CPU))


def dropped(maker: Maker, name: str) -> Tensor:
    return known(torch.zeros(maker.grid.batch, maker.tokens, dtype=torch.bool, device=_CPU))


def text_codes(maker: Maker, name: str) -> Tensor:
    """Tokens of a prompt, for a model that embeds them itself; one sample where all tokens are one sequence."""
    shape = (maker.grid.text,) if "sequence_length" in maker.parameters else (maker.grid.batch, maker.grid.text)
    tensor = known(torch.ones(shape, dtype=torch.long, device=_CPU))
    mark(tensor, Trail(((name, maker.grid.text),)))
    return tensor


def ones(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
    return known(torch.ones(shape, dtype=dtype or torch.long, device=_CPU))


def _note(maker: Maker, name: str) -> str:
    """An argument's annotation as it is written."""
    return str(maker.parameters[name].annotation) if name in maker.parameters else ""


def protein(maker: Maker, name: str) -> dict[str, Tensor]:
    """What is read of a protein's conditions in any case."""
    batch, tokens = maker.grid.batch, maker.attempt.layout.shape(3, maker.grid)[1]
    no = torch.zeros(batch, tokens, dtype=torch.bool, device=_CPU)
    return {"is_in_context_conditioning": known(no), "supports_local_latent": known(~no)}
