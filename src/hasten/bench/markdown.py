"""`report.md`: the tables for a repository or an issue."""

from __future__ import annotations

from collections.abc import Sequence

from hasten.bench.schema import BenchReport
from hasten.bench.tables import Table, all_tables, facts, notes


def to_markdown(report: BenchReport) -> str:
    """The whole report without its pictures."""
    lines = [f"# hasten bench: {_safe(report.settings.model)}", ""]
    lines += [f"- **{name}**: {_code(text) if name == 'command' else _safe(text)}" for name, text in facts(report)]
    lines += ["", f"> {report.statement}", ""]
    for table in all_tables(report):
        lines += [f"## {table.title}", "", *table_lines(table), ""]
        if table.caption:
            lines += [_safe(table.caption), ""]
    if told := notes(report):
        lines += ["## Notes", "", *(f"- {_safe(note)}" for note in told), ""]
    return "\n".join(lines)


def table_lines(table: Table) -> list[str]:
    """A table in GitHub's form: words left, figures right."""
    align = ["---", *["---" if table.words else "---:"] * (len(table.head) - 1)]
    return [_row(table.head), _row(align), *(_row(row) for row in table.rows)]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(map(_safe, cells))} |"


def _safe(text: str) -> str:
    """Names and prompts are other people's text: nothing in them may end a cell or begin markup."""
    for mark in "\\`*_[]<>|#":
        text = text.replace(mark, f"\\{mark}")
    return " ".join(text.split())


def _code(text: str) -> str:
    fence = (
        "`" * (max((len(run) for run in text.replace("`", "\0`").split("\0")), default=0) + 1) if "`" in text else "`"
    )
    return f"{fence} {text} {fence}" if "`" in text else f"{fence}{text}{fence}"
