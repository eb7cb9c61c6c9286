"""A little of SVG: boxes, words, arrows."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

STYLE = """
text { font-family: "Inter", "Segoe UI", "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif; fill: #0f172a; }
.head { font-size: 22px; font-weight: 700; }
.sub { font-size: 13px; fill: #475569; }
.name { font-size: 12.5px; font-weight: 600; }
.what { font-size: 11px; fill: #334155; }
.figure { font-size: 10.5px; fill: #475569; }
.edge { font-size: 10.5px; fill: #334155; font-variant-numeric: tabular-nums; }
.skipped { font-size: 10.5px; fill: #0369a1; font-variant-numeric: tabular-nums; }
.band { font-size: 13px; font-weight: 700; fill: #64748b; }
.path { font-size: 11px; font-weight: 600; fill: #64748b; }
.halo { paint-order: stroke; stroke: #ffffff; stroke-width: 4px; stroke-linejoin: round; }
.box { stroke-width: 1.4; }
.convolution { fill: #e0edff; stroke: #5b8def; }
.attention { fill: #ede7fe; stroke: #8f6df2; }
.feed { fill: #dcf5ec; stroke: #2fae85; }
.sampling { fill: #d9f3f5; stroke: #24a3b0; }
.condition { fill: #fff3d6; stroke: #e0a321; }
.other { fill: #f1f5f9; stroke: #94a3b8; }
.pill { fill: #0f172a; stroke: none; }
.pilltext { font-size: 11.5px; font-weight: 600; fill: #ffffff; }
.level { fill: #f8fafc; stroke: #e2e8f0; }
.card { fill: #ffffff; stroke: #cbd5e1; stroke-width: 1.4; }
.stack { fill: #f8fafc; stroke: #cbd5e1; }
.flow { fill: none; stroke: #475569; stroke-width: 1.5; }
.skip { fill: none; stroke: #0ea5e9; stroke-width: 1.6; }
.cross { fill: none; stroke: #8f6df2; stroke-width: 1.5; stroke-dasharray: 5 3; }
.work { fill: #f97316; }
.weights { fill: #0f766e; }
.track { fill: #ffffff; fill-opacity: 0.75; }
.touched { fill: url(#hatch); stroke: #dc2626; stroke-width: 2.4; }
.partly { fill: none; stroke: #dc2626; stroke-width: 2; stroke-dasharray: 6 4; }
"""

_DEFINITIONS = """<defs>
<marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0.5 L7.5 4 L0 7.5 z" fill="#475569"/></marker>
<marker id="skiparrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0.5 L7.5 4 L0 7.5 z" fill="#0ea5e9"/></marker>
<marker id="crossarrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">
<path d="M0 0.5 L7.5 4 L0 7.5 z" fill="#8f6df2"/></marker>
<pattern id="hatch" width="7" height="7" patternUnits="userSpaceOnUse" patternTransform="rotate(45)">
<rect width="2.4" height="7" fill="#dc2626" fill-opacity="0.28"/></pattern>
</defs>"""
_ARROWS = {"flow": "arrow", "skip": "skiparrow", "cross": "crossarrow"}


class Canvas:
    """Collects what is drawn, and knows how far it reaches.

    Attributes:
        width, height: of all that was drawn.
    """

    def __init__(self) -> None:
        self.width = self.height = 0.0
        self._parts: list[str] = []

    def box(self, x: float, y: float, w: float, h: float, kind: str, title: str = "", radius: float = 7) -> None:
        """A rectangle; `title` is shown where the pointer rests on it."""
        self._reach(x + w, y + h)
        inner = f"<title>{escape(title)}</title>" if title else ""
        self._parts.append(
            f'<rect class="box {kind}" x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" rx="{radius}">'
            f"{inner}</rect>"
        )

    def bar(self, x: float, y: float, w: float, h: float, kind: str) -> None:
        """A plain filled strip."""
        self._parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="{max(w, 0):.1f}" height="{h:.1f}"/>')

    def text(self, x: float, y: float, words: str, kind: str, anchor: str = "start", room: float | None = None) -> None:
        """Words on a baseline, cut where they have no room."""
        words = fitting(words, room, size_of(kind)) if room is not None else words
        length = len(words) * size_of(kind) * 0.6
        self._reach(x + {"start": length, "middle": length / 2, "end": 0}[anchor], y + 4)
        self._parts.append(
            f'<text class="{kind}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(words)}</text>'
        )

    def line(self, points: Sequence[tuple[float, float]], kind: str, arrow: bool = True) -> None:
        """A path of straight parts with rounded corners."""
        for x, y in points:
            self._reach(x, y)
        marker = f' marker-end="url(#{_ARROWS[kind]})"' if arrow else ""
        self._parts.append(f'<path class="{kind}" d="{_rounded(points)}"{marker}/>')

    def dot(self, x: float, y: float, radius: float, kind: str) -> None:
        """A filled circle."""
        self._parts.append(f'<circle class="box {kind}" cx="{x:.1f}" cy="{y:.1f}" r="{radius}"/>')

    def to_svg(self, title: str, margin: float = 28) -> str:
        """The whole as one SVG document that asks for nothing from elsewhere."""
        width, height = self.width + margin, self.height + margin
        return "\n".join(
            [
                f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" '
                f'width="{width:.0f}" height="{height:.0f}" role="img">',
                f"<title>{escape(title)}</title>",
                f"<style>{STYLE}</style>",
                _DEFINITIONS,
                f'<rect width="{width:.0f}" height="{height:.0f}" fill="#ffffff"/>',
                *self._parts,
                "</svg>",
            ]
        )

    def _reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)


def size_of(kind: str) -> float:
    """Of the letters of a style, in pixels."""
    sizes = {"head": 22, "sub": 13, "name": 12.5, "what": 11, "band": 13, "path": 11, "pilltext": 11.5}
    return sizes.get(kind.split()[0], 10.5)


def fitting(words: str, room: float, size: float) -> str:
    """Words cut to a width in pixels, with … where something is missing."""
    most = max(1, int(room / (0.6 * size)))
    return words if len(words) <= most else f"{words[: most - 1].rstrip()}…"


def _rounded(points: Sequence[tuple[float, float]], radius: float = 6) -> str:
    path = f"M{points[0][0]:.1f} {points[0][1]:.1f}"
    for before, at, after in zip(points, points[1:], points[2:], strict=False):
        enter, leave = _towards(at, before, radius), _towards(at, after, radius)
        path += f" L{enter[0]:.1f} {enter[1]:.1f} Q{at[0]:.1f} {at[1]:.1f} {leave[0]:.1f} {leave[1]:.1f}"
    return f"{path} L{points[-1][0]:.1f} {points[-1][1]:.1f}"


def _towards(start: tuple[float, float], end: tuple[float, float], length: float) -> tuple[float, float]:
    dx, dy = end[0] - start[0], end[1] - start[1]
    distance = max((dx * dx + dy * dy) ** 0.5, 1e-9)
    share = min(length, distance / 2) / distance
    return start[0] + dx * share, start[1] + dy * share
