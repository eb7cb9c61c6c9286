"""Stages: the parts of a model that one would name, with the share of parameters and work that each has."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby

from hasten.inspect.layers import Layer
from hasten.inspect.watching import Shape

# Parts with less than this share of both parameters and work are put together.
_SMALL = 0.005
_WORTH_NAMING = 0.01


@dataclass(frozen=True)
class Stage:
    """A part of a component.

    Attributes:
        name: `down_blocks.1`, `transformer_blocks ×60`, `embedders`.
        what: the class of its blocks, or the names of what was put together in it.
        output: the largest shape that leaves it.
        parameters, macs, attention_macs: for one call of the component.
        seconds: measured for one call, None where nothing was.
    """

    name: str
    what: str
    output: Shape | None
    parameters: int
    macs: int
    attention_macs: int
    seconds: float | None = None


def stages_of(root: Layer) -> tuple[Stage, ...]:
    """The stages of a component, in the order of their definition.

    A list of repeated blocks is one stage where all have results of one shape, otherwise one for each level. What only
    works on one row per sample in these blocks (the scales and shifts that the timestep asks for) is a stage, too.
    """
    found = [stage for stage in _stages(root, "") if stage.parameters or stage.macs]
    if root.own_parameters:
        found.insert(0, Stage("(own)", root.kind, None, root.own_parameters, 0, 0))
    return tuple(_gathered(found, root))


def _stages(layer: Layer, prefix: str) -> Iterator[Stage]:
    lists = [child for child in layer.children if _is_list(child)]
    for child in layer.children:
        name = f"{prefix}{child.name}"
        if _is_list(child):
            yield from _list_stages(child, name)
        elif not lists and child.calls and _holds_lists(child):
            yield from _stages(child, f"{name}.")
            if child.own_parameters:
                yield _sum(name, f"{child.kind}'s own", [], child.own_parameters)
        else:
            yield _sum(name, child.kind if child.calls else f"{child.kind}, not called", [child])


def _list_stages(blocks: Layer, name: str) -> Iterator[Stage]:
    modulation: list[Layer] = []
    for _, group in groupby(blocks.children, key=lambda block: (block.kind, _largest(block))):
        members = list(group)
        pooled = [layer for block in members for layer in block.walk() if layer.pooled and not layer.children]
        modulates = sum(layer.parameters for layer in pooled) >= _WORTH_NAMING * sum(b.parameters for b in members)
        first, last = members[0].name, members[-1].name
        whole = len(members) == len(blocks.children)
        label = name if whole else f"{name}.{first}" if first == last else f"{name}.{first}…{last}"
        label += f" ×{len(members)}" if len(members) > 1 else ""
        stage = _sum(label, members[0].kind, members)
        if modulates and len(members) > 1:
            part = _sum("", "", pooled)
            stage = Stage(
                stage.name,
                stage.what,
                stage.output,
                stage.parameters - part.parameters,
                stage.macs - part.macs,
                stage.attention_macs,
                None if stage.seconds is None else stage.seconds - (part.seconds or 0.0),
            )
            modulation += pooled
        yield stage
    if modulation:
        yield _sum(f"modulation of {name}", "Linear, one row per sample", modulation)


def _sum(name: str, what: str, layers: Sequence[Layer], parameters: int = 0) -> Stage:
    times = [layer.seconds for layer in layers if layer.seconds is not None]
    return Stage(
        name,
        what,
        _largest(layers[-1]) if layers else None,
        parameters + sum(layer.parameters for layer in layers),
        sum(layer.macs for layer in layers),
        sum(layer.attention_macs for layer in layers),
        sum(times) if times else None,
    )


def _gathered(stages: list[Stage], root: Layer) -> Iterator[Stage]:
    """Small parts that follow one another become one."""
    small = [
        stage.parameters < _SMALL * root.parameters and stage.macs <= _SMALL * max(root.macs, 1) for stage in stages
    ]
    seen_large = False
    for is_small, group in groupby(zip(small, stages, strict=True), key=lambda pair: pair[0]):
        members = [stage for _, stage in group]
        if not is_small or len(members) == 1:
            yield from members
            seen_large = seen_large or not is_small
            continue
        times = [stage.seconds for stage in members if stage.seconds is not None]
        yield Stage(
            "others" if seen_large else "embedders",
            ", ".join(stage.name for stage in members),
            members[-1].output,
            sum(stage.parameters for stage in members),
            sum(stage.macs for stage in members),
            sum(stage.attention_macs for stage in members),
            sum(times) if times else None,
        )


def _is_list(layer: Layer) -> bool:
    return layer.kind == "ModuleList" and len(layer.children) > 1


def _holds_lists(layer: Layer) -> bool:
    return any(_is_list(inner) for inner in layer.walk())


def _largest(layer: Layer) -> Shape | None:
    """The largest of a layer's results; a list is never called: its last member's."""
    if not layer.outputs and layer.children:
        return _largest(layer.children[-1])
    return max(layer.outputs, key=_numbers, default=None)


def _numbers(shape: Shape) -> int:
    count = 1
    for size in shape:
        count *= size
    return count
