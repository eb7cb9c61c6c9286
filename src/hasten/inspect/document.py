"""An inspection as JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from hasten.inspect.folding import Row
from hasten.inspect.inspection import Component, Inspection
from hasten.inspect.tables import CONVENTION, image_macs, image_seconds
from hasten.inspect.watching import Attention

BYTES = {"fp32": 4, "bf16": 2, "int8": 1}


def to_document(found: Inspection, rows: Mapping[str, Sequence[Row]]) -> dict[str, Any]:
    """A structure for `json.dumps`.

    Args:
        found: what was found.
        rows: the layers to hold, by component.
    """
    return {
        "model": found.name,
        "pipeline": found.pipeline,
        "use": asdict(found.use),
        "batch": found.batch,
        "convention": CONVENTION,
        "components": [_component(component, rows.get(component.name, ())) for component in found.components],
        "notes": list(found.notes),
    }


def _component(component: Component, rows: Sequence[Row]) -> dict[str, Any]:
    root = component.root
    return {
        "name": component.name,
        "class": component.kind,
        "library": component.library,
        "role": component.role,
        "where": _text(root.place),
        "parameters": root.parameters,
        "bytes": {name: size * root.parameters for name, size in BYTES.items()},
        "macs": None if component.problem else root.macs,
        "attention_macs": None if component.problem else root.attention_macs,
        "seconds": root.seconds,
        "calls": component.calls,
        "image_macs": None if component.problem else image_macs(component),
        "image_seconds": None if root.seconds is None else image_seconds(component),
        "inputs": component.inputs,
        "outputs": component.outputs,
        "problem": component.problem,
        "stages": [asdict(stage) for stage in component.stages],
        "skips": [{**asdict(skip), "place": _text(skip.place)} for skip in component.skips],
        "layers": [_row(row) for row in rows],
    }


def _row(row: Row) -> dict[str, Any]:
    layer = row.layer
    return {
        "path": row.path,
        "class": layer.kind,
        "where": _text(layer.place),
        "count": row.count,
        "facts": layer.facts,
        "attention": [_attention(attention) for attention in layer.attentions],
        "inputs": layer.inputs,
        "outputs": layer.outputs,
        "calls": layer.calls,
        "parameters": row.parameters,
        "macs": row.macs,
        "seconds": row.seconds,
    }


def _attention(attention: Attention) -> dict[str, Any]:
    return {**asdict(attention), "place": _text(attention.place)}


def _text(place: object) -> str | None:
    return None if place is None else str(place)
