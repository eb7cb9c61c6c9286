"""Every denoiser class of the installed diffusers can be looked into: its inputs are found, not listed by class."""

from __future__ import annotations

import pytest

from denoisers import CASES
from hasten.inspect.inspection import Component, Size, inspect_model
from hasten.inspect.sources import Part, Source

# Where a class fixes the size, or needs more than one frame: pixels of the small configurations.
SIZES: dict[str, Size] = {}


def look(name: str) -> Component:
    part = Part("transformer", "diffusers", name, CASES[name].config)
    fixed = {"sample_size", "sample_height"} & CASES[name].config.keys()
    size = SIZES.get(name) or Size(frames=5, text=5, **({} if fixed else {"width": 64, "height": 64}))
    return inspect_model(Source(name, None, (part,)), size).components[0]


@pytest.mark.parametrize("name", CASES)
def test_a_denoiser_is_looked_into(name: str) -> None:
    component = look(name)
    assert component.problem is None
    assert component.role == "denoiser"
    assert component.root.macs > 0
    blocks = [layer for layer in component.root.walk() if layer.parameters and not layer.children]
    # Branches for sound, cameras or pictures to start from are not called from text alone.
    assert sum(layer.calls > 0 for layer in blocks) > 0.3 * len(blocks)
