"""One drawing of a model: a UNet with its skip branches, a transformer with its streams."""

from __future__ import annotations

from hasten.inspect.diagram.page import Touched, draw, to_html

__all__ = ["Touched", "draw", "to_html"]
