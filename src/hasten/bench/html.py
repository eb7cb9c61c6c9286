"""`report.html`: one file with everything in it, which a person would send around."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from hasten.bench.schema import BenchReport, Sample, Variant
from hasten.bench.svg import Point, scatter, timeline
from hasten.bench.tables import all_tables, facts, find, mark, notes
from hasten.bench.variants import REFERENCE
from hasten.errors import HastenError
from hasten.images import difference

MAX_PROMPTS = 6
MAX_SIDE = 256
GAIN = 10


@dataclass(frozen=True)
class Shown:
    """One image of the grid: data URIs of the image and of its difference from the reference."""

    name: str
    mark: str
    image: str
    difference: str | None
    figures: str


@dataclass(frozen=True)
class Row:
    prompt: str
    seed: int
    shown: tuple[Shown, ...]


@dataclass(frozen=True)
class Strip:
    """The timeline of one variant."""

    name: str
    svg: str
    caption: str


def to_html(report: BenchReport, folder: Path | None = None) -> str:
    """The report as a page that loads nothing.

    Args:
        folder: where the report's images are; without it the page has none.

    Raises:
        HastenError: Jinja2 is not installed.
    """
    plot = plot_of(report)
    page: str = (
        environment()
        .get_template("report.html.j2")
        .render(
            report=report,
            facts=facts(report),
            tables=all_tables(report),
            plot=markup(plot) if plot else None,
            strips=[Strip(s.name, markup(s.svg), s.caption) for s in strips(report)],
            rows=image_rows(report, folder) if folder is not None else [],
            prompts=len(report.settings.prompts),
            gain=GAIN,
            notes=notes(report),
        )
    )
    return page


def environment() -> Any:
    """Jinja2's, for the pages of hasten.

    Raises:
        HastenError: Jinja2 is not installed.
    """
    try:
        import jinja2
    except ImportError as error:
        raise HastenError("report.html needs Jinja2: pip install 'hasten[bench]'") from error
    return jinja2.Environment(
        loader=jinja2.PackageLoader("hasten.bench"), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def markup(text: str) -> Any:
    """A text that is HTML already."""
    from markupsafe import Markup

    return Markup(text)


def plot_of(report: BenchReport) -> str:
    """Speed-up against PSNR of every comparable variant that is not its reference's twin."""
    points = []
    for variant in report.variants:
        summary = find(report, variant.name)
        if summary is None or summary.speedup is None or summary.psnr is None or not variant.comparable:
            continue
        points.append(
            Point(summary.speedup, summary.psnr, variant.name, mark(variant), summary.speedup_low, summary.speedup_high)
        )
    return scatter(points, "speed-up (×)", "PSNR against the reference (dB)")


def strips(report: BenchReport) -> list[Strip]:
    """Computed and skipped steps of every variant whose warm-up told them."""
    return [
        Strip(variant.name, timeline(variant.steps), _caption(variant)) for variant in report.variants if variant.steps
    ]


def image_rows(report: BenchReport, folder: Path) -> list[Row]:
    """Reference, variants and differences of the first prompts; the first seed stands for the others."""
    seed = report.settings.seeds[0]
    rows = []
    for number, prompt in enumerate(report.settings.prompts[:MAX_PROMPTS]):
        here = {s.variant: s for s in report.samples if (s.prompt, s.seed) == (number, seed) and s.image is not None}
        reference = _open(folder, here[REFERENCE]) if REFERENCE in here else None
        shown = []
        for variant in report.variants:
            image = _open(folder, here[variant.name]) if variant.name in here else None
            if image is None:
                continue
            compared = variant.name != REFERENCE and reference is not None and reference.size == image.size
            shown.append(
                Shown(
                    variant.name,
                    mark(variant),
                    data_uri(image),
                    data_uri(difference(image, reference, GAIN)) if compared and reference is not None else None,
                    _figures(variant, here[variant.name]),
                )
            )
        if shown:
            rows.append(Row(prompt, seed, tuple(shown)))
    return rows


def data_uri(image: Image.Image) -> str:
    """An image as text, lossless; large ones are made smaller, since a report is to be sent around."""
    image = image.convert("RGB")
    if max(image.size) > MAX_SIDE:
        image.thumbnail((MAX_SIDE, MAX_SIDE))
    stream = io.BytesIO()
    image.save(stream, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _open(folder: Path, sample: Sample) -> Image.Image | None:
    """An image of the report; None where it was deleted, or where a report from elsewhere points out of its folder."""
    path = (folder / (sample.image or "")).resolve()
    if not path.is_relative_to(folder.resolve()) or not path.is_file():
        return None
    with Image.open(path) as image:
        image.load()
        return image


def _figures(variant: Variant, sample: Sample) -> str:
    parts = [] if sample.computed is None else [f"{sample.computed} computed"]
    if variant.work is not None:
        parts = [f"≈ {variant.work:.1f} steps"]
    if sample.quality is not None:
        ratio = sample.quality.psnr
        parts.append("identical" if sample.quality.identical else f"{ratio if ratio is not None else math.nan:.1f} dB")
    if sample.adherence is not None:
        parts.append("right" if sample.adherence.right else "wrong")
    return ", ".join(parts)


def _caption(variant: Variant) -> str:
    if variant.computed is None:
        return "" if variant.work is None else f"arithmetic of {variant.work:.1f} whole steps"
    parts = [f"{variant.computed} computed, {variant.skipped} skipped"]
    parts += [part for part in (variant.site, variant.predictor) if part]
    return ", ".join(parts)
