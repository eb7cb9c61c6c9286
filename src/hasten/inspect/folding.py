"""Folding: layers that repeat are one row with a count."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Literal

from hasten.inspect.layers import Layer

SortKey = Literal["parameters", "macs", "time"]


@dataclass(frozen=True)
class Row:
    """A layer, or several alike.

    Attributes:
        path: `transformer_blocks.0…59.attn`.
        name: the path below that of the row that holds it.
        layer: the first of them.
        count: how many there are.
        depth: 0 for the component itself.
        parameters, macs, seconds: of all of them together.
    """

    path: str
    name: str
    layer: Layer
    count: int
    depth: int
    parameters: int
    macs: int
    seconds: float | None


def rows_of(root: Layer, depth: int | None = None, fold: bool = True) -> list[Row]:
    """The layers of a component, parents before their children, repeated ones folded.

    Args:
        root: the component.
        depth: levels below the root; a list and its number count as one. None for all.
        fold: show alike neighbours as one row.
    """
    return list(_rows([root], "", "", 0, 1, depth, fold))


def matching(rows: Sequence[Row], pattern: str) -> list[Row]:
    """Rows whose path or class a regular expression finds.

    Raises:
        re.error: the pattern is none.
    """
    found = re.compile(pattern, re.IGNORECASE)
    return [row for row in rows if found.search(row.path) or found.search(row.layer.kind)]


def ends(rows: Sequence[Row]) -> list[Row]:
    """Rows without those that only hold other rows."""
    kept = []
    for row, after in zip(rows, [*rows[1:], None], strict=True):
        if after is None or after.depth <= row.depth:
            kept.append(row)
    return kept


def sorted_by(rows: Sequence[Row], key: SortKey) -> list[Row]:
    """The largest first."""
    values = {"parameters": lambda r: r.parameters, "macs": lambda r: r.macs, "time": lambda r: r.seconds or 0.0}
    return sorted(rows, key=values[key], reverse=True)


def _rows(
    alike: list[Layer], path: str, name: str, depth: int, repeats: int, deepest: int | None, fold: bool
) -> Iterator[Row]:
    layer = alike[0]
    count = repeats * len(alike)
    times = [other.seconds for other in alike if other.seconds is not None]
    yield Row(
        path=path,
        name=name,
        layer=layer,
        count=count,
        depth=depth,
        parameters=repeats * sum(other.parameters for other in alike),
        macs=repeats * sum(other.macs for other in alike),
        seconds=repeats * sum(times) if times else None,
    )
    if deepest is None or depth < deepest:
        for members, inner in _inside(layer, "", fold):
            below = f"{path}.{inner}" if path else inner
            yield from _rows(members, below, inner, depth + 1, count, deepest, fold)


def _inside(layer: Layer, prefix: str, fold: bool) -> Iterator[tuple[list[Layer], str]]:
    """The layers in a layer, alike neighbours together, with their names; a list is replaced by its members."""
    numbered = layer.kind in _LISTS and fold
    for _, group in groupby(layer.children, key=lambda child: _signature(child) if numbered else id(child)):
        members = list(group)
        first, last = members[0].name, members[-1].name
        name = f"{prefix}{first}" if first == last else f"{prefix}{first}…{last}"
        if members[0].kind in _LISTS and len(members) == 1:
            yield from _inside(members[0], f"{name}.", fold)
        else:
            yield members, name


_LISTS = ("ModuleList", "ModuleDict")


def _signature(layer: Layer) -> tuple[object, ...]:
    """What layers have to share to be alike."""
    heads = tuple((a.kind, a.heads, a.kv_heads, a.head_dim, a.q.streams, a.k.streams) for a in layer.attentions)
    return (
        layer.kind,
        tuple(layer.facts.items()),
        tuple(layer.inputs.items()),
        layer.outputs,
        layer.calls,
        layer.parameters,
        layer.macs,
        heads,
        tuple(_signature(child) for child in layer.children),
    )
