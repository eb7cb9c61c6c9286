"""What is drawn as one box: a part of a model, with its words and its share of weights and work."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass

from hasten.inspect.diagram.canvas import Canvas
from hasten.inspect.layers import Layer
from hasten.inspect.watching import Shape
from hasten.inspect.words import count_text, macs_text, shape_text

HEIGHT = 52.0


@dataclass(frozen=True)
class Whole:
    """What shares are of.

    Attributes:
        parameters, macs: of the component.
        touched: paths of the modules that a plan leaves out.
    """

    parameters: int
    macs: int
    touched: Collection[str] = ()

    def touch(self, layer: Layer) -> str | None:
        """`touched` where all of a layer is left out, `partly` where something in it is, None otherwise."""
        path = layer.path
        if any(path == one or one == "" or path.startswith(f"{one}.") for one in self.touched):
            return "touched"
        return "partly" if any(one.startswith(f"{path}.") for one in self.touched) else None


def units_of(layer: Layer, ends: Collection[str]) -> Iterator[Layer]:
    """The largest parts of a layer that have none of these paths inside, in the order of their calls."""
    for child in sorted(layer.children, key=lambda child: (child.first is None, child.first)):
        if not child.calls and not child.children:
            continue
        inside = any(end.startswith(f"{child.path}.") for end in ends)
        if inside or child.kind == "ModuleList":
            yield from units_of(child, ends)
        elif child.calls and (child.parameters or child.macs or child.attentions):
            yield child


def draw_unit(canvas: Canvas, layer: Layer, x: float, y: float, width: float, whole: Whole, count: int = 1) -> None:
    """A box: what it is, what it does, and two bars: its share of the work and of the weights."""
    times = f" ×{count}" if count > 1 else ""
    title = (
        f"{layer.path}\n{layer.kind}{times}\n{count_text(layer.parameters)} parameters, {macs_text(layer.macs)} MACs\n"
        + "\n".join(f"{name} {shape_text(shape)}" for name, shape in layer.inputs.items())
        + f"\n→ {', '.join(map(shape_text, layer.outputs))}\n{layer.place or 'torch'}"
    )
    canvas.box(x, y, width, HEIGHT, style_of(layer), title)
    touch = whole.touch(layer)
    if touch:
        canvas.box(x, y, width, HEIGHT, touch, title)
    figure = macs_text(layer.macs) if layer.macs else ""
    canvas.text(x + 9, y + 17, f"{short_kind(layer)}{times}", "name", room=width - 22 - 6.6 * len(figure))
    canvas.text(x + width - 9, y + 17, figure, "figure", "end")
    canvas.text(x + 9, y + 32, words_of(layer), "what", room=width - 18)
    length = width - 18
    for row, (kind, part, all_) in enumerate(
        (("work", layer.macs, whole.macs), ("weights", layer.parameters, whole.parameters))
    ):
        canvas.bar(x + 9, y + 38.5 + 5 * row, length, 3, "track")
        canvas.bar(x + 9, y + 38.5 + 5 * row, length * (part / all_ if all_ else 0) ** 0.5, 3, kind)


def style_of(layer: Layer) -> str:
    """The colour: by what is inside, not by its name."""
    if any(inner.attentions for inner in layer.walk()):
        return "attention"
    if layer.pooled or (not layer.pooled and _is_pooled(layer)):
        return "condition"
    before, after = _space(next(iter(layer.inputs.values()), ())), _space(layer.outputs[0] if layer.outputs else ())
    if before and after and before != after:
        return "sampling"
    if any("kernel_size" in inner.facts for inner in layer.walk()):
        return "convolution"
    if sum("in_features" in inner.facts for inner in layer.walk()) > 1:
        return "feed"
    return "other"


def _is_pooled(layer: Layer) -> bool:
    weighted = [inner for inner in layer.walk() if inner.own_parameters and not inner.children]
    return bool(weighted) and all(inner.pooled for inner in weighted)


def _space(shape: Shape) -> Shape:
    return shape[2:] if len(shape) > 3 else ()


def short_kind(layer: Layer) -> str:
    """`ResnetBlock2D` → `Resnet 2D`; a single torch layer with its name."""
    if not layer.children or layer.kind == "Sequential":
        return layer.name if layer.name and not layer.name.isdecimal() else layer.kind
    kind = re.sub(r"(Block|Layer|Model|Module)(?=\dD|$)", "", layer.kind) or layer.kind
    name = layer.name if not layer.name.isdecimal() else ""
    return f"{name} · {kind}" if name and len(name) + len(kind) < 26 else name or kind


def words_of(layer: Layer) -> str:
    """What it does in a few words: attention and its heads, or channels, or features."""
    attentions = [found for inner in layer.walk() for found in inner.attentions]
    if attentions:
        kinds = Counter(found.kind for found in attentions)
        heads = " ".join(dict.fromkeys(f"{found.heads}×{found.head_dim}" for found in attentions))
        count = min(kinds.values())
        return f"{f'{count} × ' if count > 1 else ''}{' + '.join(kinds)} {heads}"
    linear = [inner.facts for inner in layer.walk() if "in_features" in inner.facts]
    kernels = [inner.facts for inner in layer.walk() if {"kernel_size", "in_channels"} <= inner.facts.keys()]
    if kernels:
        first, last = kernels[0], kernels[-1] if len(kernels) < 3 else kernels[0]
        side = first["kernel_size"]
        size = "×".join(map(str, side)) if isinstance(side, tuple) else f"{side}×{side}"
        step = first.get("stride", 1)
        stride = f" /{'×'.join(map(str, step)) if isinstance(step, tuple) else step}" if step != 1 else ""
        return f"{size}{stride}, {first['in_channels']} → {last['out_channels']}"
    if linear:
        sizes = [linear[0]["in_features"], linear[0]["out_features"]]
        if len(linear) > 1:
            sizes.append(linear[-1]["out_features"])
        return " → ".join(map(str, sizes))
    return ", ".join(f"{name} {value}" for name, value in list(layer.facts.items())[:2] if name != "eps")


def edge_text(shape: Shape | None) -> str:
    """`320 × 64×64` for a picture, `4096 × 320` for tokens."""
    if not shape:
        return ""
    if len(shape) > 3:
        return f"{shape[1]} × {'×'.join(map(str, shape[2:]))}"
    return " × ".join(map(str, shape[1:])) if len(shape) > 1 else str(shape[0])


def largest(layer: Layer) -> Shape | None:
    """The largest result of a layer."""
    sizes = [(shape, _size(shape)) for shape in layer.outputs]
    return max(sizes, key=lambda pair: pair[1])[0] if sizes else None


def _size(shape: Shape) -> int:
    product = 1
    for side in shape:
        product *= side
    return product
