"""`hasten compare`: two reports of `hasten bench`, the newer against the older."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hasten.bench.compare import Comparison
    from hasten.bench.statistics import Interval

app = typer.Typer()


@app.command()
def compare(
    old: Annotated[Path, typer.Argument(metavar="A", help="The older report.json, or its folder.")],
    new: Annotated[Path, typer.Argument(metavar="B", help="The newer one.")],
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON document, nothing else.")] = False,
) -> None:
    """Show what became faster, slower, better or worse; exit with 3 where something regressed by more than noise.

    Example: hasten compare before/report.json after/report.json
    """
    import json

    from hasten.bench.compare import compare_reports
    from hasten.bench.schema import read_report

    comparison = compare_reports(read_report(old), read_report(new))
    if json_output:
        typer.echo(json.dumps(comparison.to_dict(), ensure_ascii=False, indent=2))
    else:
        _show(comparison)
    if comparison.regressions:
        raise typer.Exit(3)  # 1 is a fault of hasten's own


def _show(comparison: Comparison) -> None:
    from rich.table import Table
    from rich.text import Text

    from hasten.cli.console import err, out

    table = Table(box=None)
    table.add_column("variant")
    for name in ("time B/A (95 %)", "speed-up B/A (95 %)", "PSNR B−A (95 %)", "steps computed"):
        table.add_column(name, justify="right")
    table.add_column("")
    for change in comparison.changes:
        counts = change.computed or (None,)
        steps = "–" if None in counts else " → ".join(map(str, dict.fromkeys(counts)))
        verdict = Text(", ".join(change.verdicts), style="bold red" if change.regressed else "green")
        table.add_row(
            Text(change.variant),
            _shown(change.time, ".2f", "×"),
            _shown(change.speedup, ".2f", "×"),
            _shown(change.psnr, "+.2f", " dB"),
            steps,
            verdict,
        )
    out.print(table)
    for note in comparison.notes:
        err.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    count = len(comparison.regressions)
    out.print(
        f"{count} variant(s) regressed beyond noise" if count else "nothing regressed beyond noise", highlight=False
    )


def _shown(interval: Interval | None, form: str, unit: str) -> str:
    if interval is None:
        return "–"
    text = f"{interval.value:{form}}{unit}"
    if interval.low is None or interval.high is None:
        return text
    return f"{text} ({interval.low:{form}} to {interval.high:{form}})"
