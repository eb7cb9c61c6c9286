"""The drawing with its title and legend, as SVG or as a page."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from xml.sax.saxutils import escape

from hasten.errors import HastenError
from hasten.inspect.diagram.canvas import Canvas
from hasten.inspect.diagram.ladder import draw_ladder, has_ladder
from hasten.inspect.diagram.lanes import draw_lanes
from hasten.inspect.diagram.units import Whole
from hasten.inspect.inspection import Component, Inspection
from hasten.inspect.words import count_text, macs_text

_LEGEND = (
    ("convolution", "convolution"),
    ("attention", "attention"),
    ("feed", "feed-forward"),
    ("sampling", "down- or upsampling"),
    ("condition", "one row per sample"),
    ("other", "others"),
)


@dataclass(frozen=True)
class Touched:
    """What a plan leaves out at a skipped step.

    Attributes:
        plan: its name.
        modules: paths in the component; "" is all of it.
        words: what it says of itself.
    """

    plan: str
    modules: Collection[str]
    words: str = ""


def draw(found: Inspection, component: Component, touched: Touched | None = None) -> str:
    """An SVG drawing of one component.

    Raises:
        HastenError: no call of it was watched, so that nothing is known of what follows what.
    """
    if component.problem is not None:
        raise HastenError(f"{component.name} cannot be drawn: {component.problem}")
    canvas = Canvas()
    root = component.root
    whole = Whole(root.parameters, root.macs, touched.modules if touched else ())
    title = f"{found.name}: {component.kind}"
    use = found.use
    film = f", {use.frames} frames" if use.frames and use.frames > 1 else ""
    canvas.text(28, 44, title, "head")
    canvas.text(
        28,
        66,
        f"{count_text(root.parameters)} parameters, {macs_text(root.macs)} multiply-accumulates a call at "
        f"{use.width}×{use.height} pixels{film}, {use.text} text tokens, batch {found.batch}",
        "sub",
    )
    _legend(canvas, 28, 84, touched)
    top = 84 + (52 if touched else 30) + 22
    if has_ladder(component):
        draw_ladder(canvas, component, whole, top)
    else:
        draw_lanes(canvas, component, whole, use.text or 1, top)
    return canvas.to_svg(title)


def to_html(svg: str, title: str) -> str:
    """The drawing as a page of its own."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f"<title>{escape(title)}</title>\n"
        '<link rel="icon" href="data:,">\n'
        "<style>body { margin: 0; background: #ffffff; } svg { max-width: 100%; height: auto; }</style>\n"
        f"</head>\n<body>\n{svg}\n</body>\n</html>\n"
    )


def _legend(canvas: Canvas, x: float, y: float, touched: Touched | None) -> None:
    for kind, words in _LEGEND:
        canvas.box(x, y, 16, 12, kind, radius=3)
        canvas.text(x + 22, y + 10.5, words, "figure")
        x += 40 + 6.1 * len(words)
    for kind, words in (("work", "√ share of the work"), ("weights", "√ share of the weights")):
        canvas.bar(x, y + 4, 18, 4, kind)
        canvas.text(x + 24, y + 10.5, words, "figure")
        x += 42 + 6.1 * len(words)
    if touched:
        canvas.box(28, y + 24, 16, 12, "touched", radius=3)
        words = f"left out at a skipped step by {touched.plan}"
        canvas.text(50, y + 34.5, f"{words}{': ' if touched.words else ''}{touched.words}", "figure")
