"""A transformer: its streams side by side, repeated blocks once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from hasten.inspect.diagram.canvas import Canvas
from hasten.inspect.diagram.units import HEIGHT, Whole, draw_unit, edge_text
from hasten.inspect.inspection import Component
from hasten.inspect.layers import Layer
from hasten.inspect.watching import Shape
from hasten.inspect.words import count_text, macs_text, shape_text

Ends = dict[str, tuple[float, Shape | None]]
"""Where each lane's line goes on, and with which shape."""

_LANES = ("condition", "image", "text")
_WIDTH = {"condition": 236.0, "image": 300.0, "text": 300.0}
_GAP, _MARGIN, _ROW = 22.0, 44.0, 72.0


@dataclass
class _Box:
    """A part in the lanes that it works on."""

    layer: Layer
    lanes: tuple[str, ...]
    count: int = 1
    crossed: str | None = None  # what its attention reads from another stream


@dataclass
class _Card:
    """Blocks that repeat, or parts that stand for themselves."""

    title: str
    figures: str
    rows: list[list[_Box]] = field(default_factory=list)
    count: int = 1
    layer: Layer | None = None


def draw_lanes(canvas: Canvas, component: Component, whole: Whole, text_tokens: int, top: float) -> None:
    """Draw a transformer below `top`."""
    lanes = _Lanes(component, text_tokens)
    cards = list(_cards(component.root, lanes))
    used = [
        lane
        for lane in _LANES
        if lane == "image" or any(lane in box.lanes for card in cards for row in card.rows for box in row)
    ]
    places: dict[str, float] = {}
    x = _MARGIN
    for lane in used:
        places[lane] = x
        x += _WIDTH[lane] + _GAP
    right = x - _GAP
    y = top + 8
    ends = _inputs(canvas, component, lanes, places, y)
    y += 60
    for card in cards:
        y = _draw_card(canvas, card, places, right, y, whole, ends)
    _outputs(canvas, component, places, y, ends)


class _Lanes:
    """Which lane a part works on, told by how many tokens it is given."""

    def __init__(self, component: Component, text_tokens: int) -> None:
        self.text = text_tokens
        counts = {shape[-2] for layer in component.root.walk() for shape in layer.inputs.values() if len(shape) == 3}
        most = max(counts, default=1)
        joined = most - text_tokens in counts and any(
            found.kind == "joint" for layer in component.root.walk() for found in layer.attentions
        )
        self.image = most - text_tokens if joined else most

    def of(self, layer: Layer) -> tuple[str, ...]:
        shapes = [shape for shape in layer.inputs.values() if len(shape) > 2 and shape[-2] > 1]
        found = {self._lane(shape) for shape in shapes}
        if not found or all(len(shape) < 3 for shape in layer.outputs):
            return ("condition",)
        if any(len(shape) == 3 and shape[-2] == self.image + self.text for shape in shapes):
            return ("image", "text")
        if any(attention.kind == "joint" for attention in layer.attentions) or found >= {"image", "text"}:
            joint = any(attention.kind == "joint" for inner in layer.walk() for attention in inner.attentions)
            if joint or len(layer.outputs) > 1:
                return ("image", "text")
            return ("image",)
        return (next(lane for lane in ("image", "text") if lane in found),)

    def _lane(self, shape: Shape) -> str:
        if len(shape) > 3:
            return "image"
        return "text" if shape[-2] == self.text and self.text != self.image else "image"


def _cards(root: Layer, lanes: _Lanes) -> Iterator[_Card]:
    """The model's parts in the order of their calls; lists of alike blocks are one card each."""
    loose: list[_Box] = []
    children = [child for child in root.children if child.first is not None]
    for child in sorted(children, key=lambda child: child.first or 0):
        if child.kind == "ModuleList" and child.children:
            if loose:
                yield _Card("", "", _rows(loose))
                loose = []
            for _, group in groupby(child.children, key=_signature):
                yield _block_card(list(group), child, lanes)
        elif child.parameters or child.macs:
            loose.append(_box(child, lanes))
    if loose:
        yield _Card("", "", _rows(loose))


def _signature(layer: Layer) -> tuple[object, ...]:
    return layer.kind, layer.parameters, tuple(layer.inputs.values()), layer.calls > 0


def _block_card(blocks: list[Layer], home: Layer, lanes: _Lanes) -> _Card:
    first = blocks[0]
    names = f"{home.path}.{first.name}" + (f"…{blocks[-1].name}" if len(blocks) > 1 else "")
    parameters, macs = sum(block.parameters for block in blocks), sum(block.macs for block in blocks)
    boxes = [_box(layer, lanes) for layer in _inner(first)]
    return _Card(
        f"{names}  ·  {first.kind}",
        f"{count_text(parameters)} parameters · {macs_text(macs)} MACs",
        _rows(boxes),
        len(blocks),
        first,
    )


def _inner(block: Layer) -> Iterator[Layer]:
    """The parts of a block that have weights or attend."""
    for child in sorted(block.children, key=lambda child: (child.first is None, child.first or 0)):
        if child.kind == "ModuleList":
            yield from _inner(child)
        elif child.calls and (child.macs or any(inner.attentions for inner in child.walk())):
            yield child


def _box(layer: Layer, lanes: _Lanes) -> _Box:
    crossed = [found for inner in layer.walk() for found in inner.attentions if found.kind == "cross"]
    reads = f"k, v ← {' + '.join(crossed[0].k.streams)} ×{crossed[0].k.tokens}" if crossed else None
    return _Box(layer, lanes.of(layer), crossed=reads)


def _rows(boxes: Sequence[_Box]) -> list[list[_Box]]:
    """Boxes of different lanes share a row."""
    rows: list[list[_Box]] = []
    for box in boxes:
        taken = {lane for other in (rows[-1] if rows else []) for lane in other.lanes}
        if rows and not taken & set(box.lanes) and not _is_before(rows[-1], box):
            rows[-1].append(box)
        else:
            rows.append([box])
    return rows


def _is_before(row: Sequence[_Box], box: _Box) -> bool:
    """Whether a row ends what both streams have in common, after which they part."""
    return any(len(other.lanes) > 1 for other in row) and len(box.lanes) == 1


def _span(places: dict[str, float], lanes: tuple[str, ...]) -> tuple[float, float]:
    here = [lane for lane in lanes if lane in places] or ["image"]
    begin = min(places[lane] for lane in here)
    end = max(places[lane] + _WIDTH[lane] for lane in here)
    return begin, end - begin


def _centre(places: dict[str, float], lane: str) -> float:
    return places[lane] + _WIDTH[lane] / 2


def _inputs(canvas: Canvas, component: Component, lanes: _Lanes, places: dict[str, float], y: float) -> Ends:
    """The model's inputs above their lanes; where each lane's line begins."""
    named: dict[str, list[tuple[str, Shape]]] = {lane: [] for lane in _LANES}
    for index, (name, shape) in enumerate(component.inputs.items()):
        lane = "image" if not index else "text" if "encoder_hidden" in name or "cap_" in name else "condition"
        if len(shape) > 1 or "time" in name or "guidance" in name:
            named[lane].append((name, shape))
    ends: Ends = {}
    for lane in places:
        main = [pair for pair in named[lane] if "mask" not in pair[0] and "_ids" not in pair[0]]
        if not main:
            continue
        words = main[0][0] if lane != "condition" else ", ".join(name for name, _ in main[:3])
        shape = main[0][1]
        label = f"{words}  {shape_text(shape)}" if lane != "condition" else words
        width = min(_WIDTH[lane] + 16, 24 + 6.9 * len(label))
        x = _centre(places, lane)
        canvas.box(x - width / 2, y, width, 26, "pill", radius=13)
        canvas.text(x, y + 17, label, "pilltext", "middle", room=width - 12)
        ends[lane] = (y + 26, shape if lane != "condition" else None)
    del lanes
    return ends


def _draw_card(
    canvas: Canvas,
    card: _Card,
    places: dict[str, float],
    right: float,
    y: float,
    whole: Whole,
    ends: Ends,
) -> float:
    height = len(card.rows) * _ROW + (34 if card.title else -6)
    if card.title:
        for copy in range(min(3, card.count) - 1, 0, -1):
            canvas.box(_MARGIN - 16 + 5 * copy, y + 5 * copy, right - _MARGIN + 32, height, "stack", radius=12)
        canvas.box(_MARGIN - 16, y, right - _MARGIN + 32, height, "card", radius=12)
    row_y = y + (38 if card.title else 4)
    seen: set[str] = set()
    for row in card.rows:
        for box in row:
            begin, width = _span(places, box.lanes)
            for lane in box.lanes:
                if lane in ends and lane in places:
                    start, shape = ends[lane]
                    x = _centre(places, lane)
                    enters = card.title and lane not in seen
                    if enters:  # the head of a card is left free
                        canvas.line([(x, start), (x, y)], "flow", arrow=False)
                    canvas.line([(x, y + 27 if enters else start), (x, row_y)], "flow")
                    canvas.text(x + 8, y - 9 if enters else row_y - 7, edge_text(shape), "edge halo")
                    seen.add(lane)
            draw_unit(canvas, box.layer, begin, row_y, width, whole)
            if box.crossed and "text" in places and "text" not in box.lanes:
                edge = places["text"]
                middle = row_y + HEIGHT / 2
                canvas.line([(edge + 26, middle), (begin + width, middle)], "cross")
                canvas.text(edge + 32, middle + 4, box.crossed, "edge halo")
            for lane in box.lanes:
                if lane in places:
                    ends[lane] = (row_y + HEIGHT, _after(box, lane, ends.get(lane, (0, None))[1]))
        row_y += _ROW
    if card.title:  # over the lines that enter
        times = f"×{card.count}   " if card.count > 1 else ""
        canvas.text(_MARGIN - 2, y + 20, f"{times}{card.title}", "name halo", room=0.66 * (right - _MARGIN))
        canvas.text(right + 2, y + 20, card.figures, "figure halo", "end")
    return y + height + (34 if card.title else 22)


def _after(box: _Box, lane: str, before: Shape | None) -> Shape | None:
    """The shape that goes on in a lane: of a part that keeps the tokens, its result."""
    if lane == "condition":
        return None
    shapes = [shape for shape in box.layer.outputs if len(shape) > 2]
    if not shapes:
        return before
    if len(box.lanes) > 1 and len(shapes) > 1:
        ordered = sorted(shapes, key=lambda shape: shape[-2], reverse=True)
        return ordered[0] if lane == "image" else ordered[-1]
    return shapes[0]


def _outputs(
    canvas: Canvas,
    component: Component,
    places: dict[str, float],
    y: float,
    ends: Ends,
) -> None:
    shape = component.outputs[0] if component.outputs else None
    x = _centre(places, "image")
    label = f"output  {shape_text(shape)}"
    width = 24 + 6.9 * len(label)
    if "image" in ends:
        canvas.line([(x, ends["image"][0]), (x, y + 10)], "flow")
    canvas.box(x - width / 2, y + 10, width, 26, "pill", radius=13)
    canvas.text(x, y + 27, label, "pilltext", "middle")
