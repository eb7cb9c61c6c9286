"""Every denoiser class of the installed diffusers can be looked into: its inputs are found, not listed by class."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from denoisers import CASES
from hasten.inspect.diagram import draw
from hasten.inspect.inspection import Inspection, Size, inspect_model
from hasten.inspect.sources import Part, Source


def look(name: str) -> Inspection:
    part = Part("transformer", "diffusers", name, CASES[name].config)
    fixed = {"sample_size", "sample_height"} & CASES[name].config.keys()
    size = Size(frames=5, text=5, **({} if fixed else {"width": 64, "height": 64}))
    return inspect_model(Source(name, None, (part,)), size)


@pytest.mark.parametrize("name", CASES)
def test_a_denoiser_is_looked_into_and_drawn(name: str) -> None:
    found = look(name)
    component = found.components[0]
    assert component.problem is None
    assert component.role == "denoiser"
    assert component.root.macs > 0
    blocks = [layer for layer in component.root.walk() if layer.parameters and not layer.children]
    # Branches for sound, cameras or pictures to start from are not called from text alone.
    assert sum(layer.calls > 0 for layer in blocks) > 0.3 * len(blocks)
    assert ElementTree.fromstring(draw(found, component)).tag.endswith("svg")
