"""A UNet: down on the left, up on the right, each skip branch a rung between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby

from hasten.inspect.diagram.canvas import Canvas
from hasten.inspect.diagram.units import HEIGHT, Whole, draw_unit, edge_text, largest, units_of
from hasten.inspect.inspection import Component
from hasten.inspect.layers import Layer
from hasten.inspect.watching import Shape, Skip
from hasten.inspect.words import shape_text

_UNIT, _GAP, _ROW, _BAND, _INDENT, _RUNG = 178.0, 14.0, 82.0, 30.0, 30.0, 170.0
_ABOVE = 34.0  # room for what all blocks are told


@dataclass
class _Row:
    """One rung: what makes the skipped tensor, and what takes it."""

    skip: Skip
    left: list[Layer] = field(default_factory=list)
    right: list[Layer] = field(default_factory=list)
    band: int = 0
    y: float = 0.0


def has_ladder(component: Component) -> bool:
    """Whether a model has skip branches that are taken back in the order of a UNet: the last one first."""
    skips = component.skips
    if len(skips) < 2:
        return False
    order = {layer.path: layer.first for layer in component.root.walk()}
    sources = [order.get(skip.source) or 0 for skip in skips]
    return sources == sorted(sources, reverse=True) and all(skip.target for skip in skips)


def draw_ladder(canvas: Canvas, component: Component, whole: Whole, top: float) -> None:
    """Draw a UNet below `top`."""
    rows, before, middle, after = _arranged(component)
    above, top = top, top + _ABOVE
    bands = max(row.band for row in rows) + 1
    wide = max(len(row.left) for row in rows) * (_UNIT + _GAP)
    left_end = 60 + wide + (bands - 1) * _INDENT
    right_begin = left_end + _RUNG
    full = max(right_begin + 40 + (bands - 1 - row.band) * _INDENT + len(row.right) * (_UNIT + _GAP) for row in rows)
    y = top + 76
    for band, group in groupby(rows, key=lambda row: row.band):
        members = list(group)
        shape = members[-1].skip.shape
        height = len(members) * _ROW + 8
        canvas.box(20, y - 24, full, height + 22, "level", radius=12)
        canvas.text(32, y - 8, "×".join(map(str, shape[2:])) or shape_text(shape), "band")
        for row in members:
            row.y = y
            y += _ROW
        y += _BAND
        del band
    _draw_left(canvas, rows, whole, component)
    _draw_conditions(canvas, component, before, whole, (left_end - _GAP, right_begin), above)
    _draw_right(canvas, rows, whole, component, after, right_begin, top)
    _draw_middle(canvas, rows, whole, middle, right_begin, y)


def _arranged(component: Component) -> tuple[list[_Row], list[Layer], list[Layer], list[Layer]]:
    """Rows from the first skip to the last; what comes before them, at the bottom, and at the end."""
    ends = {_home(component.root, end) for skip in component.skips for end in (skip.source, skip.target)}
    units = [unit for unit in units_of(component.root, ends) if unit.first is not None]
    units.sort(key=lambda unit: unit.first or 0)
    at = {unit.path: index for index, unit in enumerate(units)}
    rows = [_Row(skip) for skip in reversed(component.skips)]
    sources = [_index(at, row.skip.source) for row in rows]
    targets = [_index(at, row.skip.target) for row in rows]
    begin = next((i for i, unit in enumerate(units[: sources[0] + 1]) if _is_image(unit)), sources[0])
    for row, start, end in zip(rows, [begin - 1, *sources], sources, strict=False):
        row.left = units[start + 1 : end + 1]
    # On the way up, each target begins what is drawn beside its rung; the next one below ends it.
    last = _tail(units, targets[0])
    for row, start, end in zip(rows, targets, [last, *targets], strict=False):
        row.right = units[start:end]
    middle = units[sources[-1] + 1 : targets[-1]]
    band, size = 0, rows[0].skip.shape[2:]
    for row in rows:
        if row.skip.shape[2:] != size:
            band, size = band + 1, row.skip.shape[2:]
        row.band = band
    return rows, units[:begin], middle, units[last:]


def _tail(units: Sequence[Layer], begin: int) -> int:
    """Where the last rung's part ends: with the list that its target lies in."""
    home = units[begin].path.split(".")[0]
    return next((i for i in range(begin, len(units)) if units[i].path.split(".")[0] != home), len(units))


def _home(root: Layer, path: str) -> str:
    """The module that a single layer is all of: a downsampler rather than its convolution."""
    layers = {layer.path: layer for layer in root.walk()}
    while (parent := layers.get(path.rpartition(".")[0])) is not None and parent.path:
        if parent.kind == "ModuleList" or len(parent.children) != 1:
            break
        path = parent.path
    return path


def _index(at: dict[str, int], path: str) -> int:
    while path not in at and "." in path:
        path = path.rpartition(".")[0]
    return at.get(path, 0)


def _is_image(unit: Layer) -> bool:
    return any(len(shape) > 3 for shape in unit.inputs.values())


def _draw_conditions(
    canvas: Canvas, component: Component, before: list[Layer], whole: Whole, between: tuple[float, float], top: float
) -> None:
    """What all blocks are told beside the picture: the noise level, and the prompt."""
    middle = (between[0] + between[1]) / 2
    prompts = [name for name, shape in component.inputs.items() if len(shape) == 3 and "mask" not in name]
    x = middle - (len(before) * (_UNIT + _GAP) + (240 if prompts else 0)) / 2
    for unit in before:
        draw_unit(canvas, unit, x, top - 20, _UNIT, whole)
        x += _UNIT + _GAP
    if prompts:
        shape = component.inputs[prompts[0]]
        _pill(canvas, x + 120, top - 7, f"{prompts[0]}  {shape_text(shape)}")


def _draw_left(canvas: Canvas, rows: Sequence[_Row], whole: Whole, component: Component) -> None:
    first = rows[0]
    x = 60 + _UNIT / 2
    stream, shape = next(iter(component.inputs.items()))
    _pill(canvas, x, first.y - 62, f"{stream}  {shape_text(shape)}")
    canvas.line([(x, first.y - 36), (x, first.y)], "flow")
    canvas.text(x + 8, first.y - 10, edge_text(shape), "edge halo")
    last: tuple[float, float, Shape | None] | None = None
    for row in rows:
        x = 60 + row.band * _INDENT
        if last is not None:
            lx, ly, out = last
            _elbow(canvas, (lx, ly), (x + _UNIT / 2, row.y), out, "start")
        for index, unit in enumerate(row.left):
            at = x + index * (_UNIT + _GAP)
            draw_unit(canvas, unit, at, row.y, _UNIT, whole)
            if index:
                canvas.line([(at - _GAP, row.y + HEIGHT / 2), (at, row.y + HEIGHT / 2)], "flow")
        end = x + (len(row.left) - 1) * (_UNIT + _GAP)
        last = (end + _UNIT / 2, row.y + HEIGHT, row.skip.shape)


def _draw_right(
    canvas: Canvas,
    rows: Sequence[_Row],
    whole: Whole,
    component: Component,
    after: list[Layer],
    begin: float,
    top: float,
) -> None:
    bands = rows[-1].band
    for number, row in enumerate(rows):
        x = begin + (bands - row.band) * _INDENT + 40
        middle = row.y + HEIGHT / 2
        joint = (x - 24, middle)
        left = 60 + row.band * _INDENT + len(row.left) * (_UNIT + _GAP) - _GAP
        canvas.line([(left, middle), (joint[0] - 9, middle)], "skip")
        label = f"{edge_text(row.skip.shape)}"
        canvas.text((left + joint[0]) / 2, middle - 6, label, "skipped halo", "middle")
        canvas.dot(*joint, 9, "other")
        canvas.text(joint[0], joint[1] + 3.5, "+" if row.skip.operation == "add" else "c", "figure", "middle")
        canvas.line([(joint[0] + 9, middle), (x, middle)], "flow")
        for index, unit in enumerate(row.right):
            at = x + index * (_UNIT + _GAP)
            draw_unit(canvas, unit, at, row.y, _UNIT, whole)
            if index:
                canvas.line([(at - _GAP, middle), (at, middle)], "flow")
        out = largest(row.right[-1]) if row.right else None
        end = x + (len(row.right) - 1) * (_UNIT + _GAP) + _UNIT / 2
        if number:
            above = rows[number - 1]
            target = begin + (bands - above.band) * _INDENT + 40 - 24
            turn = row.y - 16
            canvas.line([(end, row.y), (end, turn), (target, turn), (target, above.y + HEIGHT / 2 + 9)], "flow")
            canvas.text((end + target) / 2, turn - 4, edge_text(out), "edge halo", "middle")
        else:
            y = top + 8
            canvas.line([(end, row.y), (end, y + 26)], "flow")
            canvas.text(end + 8, row.y - 10, edge_text(out), "edge halo")
            names = " → ".join(unit.name for unit in after)
            shape = component.outputs[0] if component.outputs else None
            _pill(canvas, end, y, f"{names}  {shape_text(shape)}" if names else shape_text(shape))


def _draw_middle(
    canvas: Canvas, rows: Sequence[_Row], whole: Whole, middle: list[Layer], begin: float, y: float
) -> None:
    last, bands = rows[-1], rows[-1].band
    start = 60 + last.band * _INDENT + (len(last.left) - 1) * (_UNIT + _GAP) + _UNIT / 2
    end = begin + (bands - last.band) * _INDENT + 40 - 24
    inner = [part for unit in middle for part in (_parts(unit) or [unit])]
    width = len(inner) * (_UNIT + _GAP) - _GAP
    x = start - _UNIT / 2
    canvas.box(x - 16, y - 14, width + 32, HEIGHT + 46, "level", radius=12)
    canvas.text(x, y + HEIGHT + 22, ", ".join(dict.fromkeys(unit.path for unit in middle)), "band")
    canvas.line([(start, last.y + HEIGHT), (start, y)], "flow")
    canvas.text(start + 8, last.y + HEIGHT + 18, edge_text(last.skip.shape), "edge halo")
    for index, unit in enumerate(inner):
        at = x + index * (_UNIT + _GAP)
        draw_unit(canvas, unit, at, y, _UNIT, whole)
        if index:
            canvas.line([(at - _GAP, y + HEIGHT / 2), (at, y + HEIGHT / 2)], "flow")
    turn, leave = last.y + HEIGHT + 12, x + width - _UNIT / 2
    canvas.line([(leave, y), (leave, turn), (end, turn), (end, last.y + HEIGHT / 2 + 9)], "flow")
    canvas.text(leave + 8, y - 6, edge_text(largest(inner[-1]) if inner else None), "edge halo")


def _parts(unit: Layer) -> list[Layer]:
    """What a middle block consists of."""
    lists = [child for child in unit.children if child.kind == "ModuleList"]
    parts = [part for child in lists for part in child.children if part.calls]
    return sorted(parts, key=lambda part: part.first or 0) if len(parts) < 6 else []


def _elbow(
    canvas: Canvas, start: tuple[float, float], end: tuple[float, float], shape: Shape | None, anchor: str
) -> None:
    middle = start[1] + 14
    canvas.line([start, (start[0], middle), (end[0], middle), end], "flow")
    canvas.text(end[0] + 8, end[1] - 5, edge_text(shape), "edge halo", anchor)


def _pill(canvas: Canvas, x: float, y: float, words: str) -> None:
    width = 24 + 6.9 * len(words)
    canvas.box(x - width / 2, y, width, 26, "pill", radius=13)
    canvas.text(x, y + 17, words, "pilltext", "middle")
