"""The tables of an inspection as text, for the terminal, Markdown and CSV alike."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from typing import NamedTuple

from hasten.inspect.folding import Row
from hasten.inspect.inspection import Component, Inspection
from hasten.inspect.words import (
    NONE,
    bytes_text,
    count_text,
    macs_text,
    seconds_text,
    shape_text,
    share_text,
    what_text,
)

CONVENTION = (
    "MACs: multiply-accumulates of convolutions, matrix products and attention's two products, in full where a mask "
    "leaves some out; norms, softmax and other elementwise work are not counted. Published counts often leave "
    "attention's products out: they stand in a column of their own."
)
_BAR = 12
_DTYPES = (("fp32", 4), ("bf16", 2), ("int8", 1))


class Table(NamedTuple):
    """Rows of text below a head; the columns named in `left` are words, the others figures."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    left: frozenset[str]


def stages_table(found: Inspection, bars: bool = True) -> Table:
    """Parameters and work per stage, of one call and of a whole image."""
    components = found.components
    parameters = sum(component.root.parameters for component in components)
    work = sum(image_macs(component) for component in components)
    timed = any(component.root.seconds is not None for component in components)
    spent = sum(image_seconds(component) for component in components)
    rows = []
    for component in components:
        for stage in component.stages:
            whole = component.calls * stage.macs / component.samples
            row = [
                component.name,
                stage.name,
                stage.what,
                shape_text(stage.output),
                count_text(stage.parameters),
                _bar(stage.parameters, parameters, bars),
                macs_text(stage.macs),
                macs_text(whole),
                _bar(whole, work, bars),
            ]
            if timed:
                seconds = component.calls * (stage.seconds or 0.0) / component.samples
                row += [seconds_text(stage.seconds), _bar(seconds, spent, bars)]
            rows.append(tuple(row))
    head: tuple[str, ...] = (
        "component",
        "stage",
        "what",
        "output",
        "parameters",
        "share",
        "MACs, a call",
        "an image",
        "share of work",
    )
    head += ("time, a call", "share of time") if timed else ()
    left = frozenset({"component", "stage", "what", "output", "share", "share of work", "share of time"})
    return Table("Stages", head, tuple(rows), left)


def totals_table(found: Inspection) -> Table:
    """One row for each component."""
    rows = []
    for component in found.components:
        root = component.root
        known = component.problem is None
        rows.append(
            (
                component.name,
                component.kind,
                count_text(root.parameters),
                *(bytes_text(size * root.parameters) for _, size in _DTYPES),
                macs_text(root.macs) if known else NONE,
                macs_text(root.attention_macs) if known else NONE,
                str(component.calls),
                macs_text(image_macs(component)) if known else NONE,
            )
        )
    if len(rows) > 1:
        parameters = sum(component.root.parameters for component in found.components)
        work = sum(image_macs(component) for component in found.components)
        sizes = [bytes_text(size * parameters) for _, size in _DTYPES]
        rows.append(("all", "", count_text(parameters), *sizes, "", "", "", macs_text(work)))
    names = [name for name, _ in _DTYPES]
    head = ("component", "class", "parameters", *names, "MACs, a call", "in attention", "calls", "an image")
    return Table("Components", head, tuple(rows), frozenset({"component", "class"}))


def layers_table(component: Component, rows: Sequence[Row], *, indented: bool = True, places: bool = False) -> Table:
    """Layers with what they are made of, shapes and cost; figures are of all that a row stands for."""
    timed = any(row.seconds is not None for row in rows)
    lines = []
    for row in rows:
        layer = row.layer
        if not (row.parameters or row.macs or layer.attentions):
            continue  # an activation and the like: in the JSON
        line = [
            _label(component, row, indented),
            layer.kind,
            what_text(layer),
            ", ".join(f"{name} {shape_text(shape)}" for name, shape in layer.inputs.items()),
            ", ".join(map(shape_text, layer.outputs)),
            count_text(row.parameters) if row.parameters else NONE,
            macs_text(row.macs) if row.macs else NONE,
            share_text(row.macs, component.root.macs) if row.macs else NONE,
        ]
        if timed:
            line.append(seconds_text(row.seconds))
        if places:
            line.append(str(layer.place or "torch"))
        lines.append(tuple(line))
    head: tuple[str, ...] = ("layer", "class", "what", "inputs", "outputs", "parameters", "MACs", "share")
    head += ("time",) if timed else ()
    head += ("where",) if places else ()
    left = frozenset({"layer", "class", "what", "inputs", "outputs", "where"})
    return Table(f"{component.name}: {component.kind}", head, tuple(lines), left)


def skip_lines(component: Component) -> list[str]:
    """What is carried around other layers: `skip: INTO ← FROM (torch.cat) 1×640×32×32 at FILE:LINE`."""
    return [
        f"skip: {skip.target} ← {skip.source} ({skip.operation}) {shape_text(skip.shape)} at {skip.place or NONE}"
        for skip in component.skips
    ]


def classes_table(component: Component) -> Table:
    """Every class with its file and line, and the lines that call attention."""
    counts: dict[tuple[str, str], int] = {}
    for layer in component.root.walk():
        if layer.place is not None:
            key = (layer.kind, str(layer.place))
            counts[key] = counts.get(key, 0) + 1
        for attention in layer.attentions:
            if attention.place is not None:
                key = (f"  attention of {layer.kind}", str(attention.place))
                counts[key] = counts.get(key, 0) + 1
    rows = tuple((kind, f"×{count}", place) for (kind, place), count in counts.items())
    return Table(f"{component.name}: in the code", ("class", "", "where"), rows, frozenset({"class", "where"}))


def image_macs(component: Component) -> float:
    """Of all its calls for an image; the call that was watched may have held several samples."""
    return component.calls * component.root.macs / component.samples


def image_seconds(component: Component) -> float:
    """Measured, of all its calls for an image."""
    return component.calls * (component.root.seconds or 0.0) / component.samples


def to_markdown(table: Table) -> list[str]:
    """A table in GitHub's form."""
    align = ["---" if name in table.left else "---:" for name in table.head]
    lines = (" | ".join(cell.replace("|", "\\|") for cell in row) for row in (table.head, align, *table.rows))
    return [f"## {table.title}", "", *(f"| {line} |" for line in lines), ""]


def to_csv(table: Table) -> str:
    """A table with a head, commas and quotes where they are needed."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(table.head)
    writer.writerows([cell.strip() for cell in row] for row in table.rows)
    return text.getvalue()


def _label(component: Component, row: Row, indented: bool) -> str:
    name = "  " * (row.depth - 1) + row.name if indented and row.depth else row.path or component.name
    return f"{name} ×{row.count}" if row.count > 1 else name


def _bar(part: float, whole: float, drawn: bool) -> str:
    """A share as a bar of blocks and a figure."""
    if not drawn or not whole:
        return share_text(part, whole)
    eighths = round(8 * _BAR * part / whole)
    full, rest = divmod(eighths, 8)
    return f"{'█' * full}{' ▏▎▍▌▋▊▉'[rest] if rest else ''} {share_text(part, whole)}"
