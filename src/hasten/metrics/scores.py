"""Scores that another program gave to pictures (image reward, human preference, an aesthetic model), from a file."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from hasten.errors import HastenError

_NAMES, _VALUES = ("file", "name", "image", "path"), ("score", "reward", "value")


def read_scores(file: str | Path) -> dict[str, float]:
    """Scores by picture.

    Args:
        file: .json, {"a.png": 0.4} or [{"file": "a.png", "score": 0.4}]; .jsonl, one such object a line; .csv or .tsv,
            name and score, a heading allowed. The name may be called file, name, image or path, the score score,
            reward or value.

    Raises:
        HastenError: the file is missing, not of these forms, names a picture twice, or a score is no finite number.
    """
    path = Path(file)
    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise HastenError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from error
    scores: dict[str, float] = {}
    for name, value in _rows(path, text):
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise HastenError(f"{path}: the score of {name!r} is {value!r}, no finite number")
        if scores.setdefault(name, number) != number:
            raise HastenError(f"{path}: {name!r} has two scores")
    if not scores:
        raise HastenError(f"{path} holds no scores")
    return scores


def _rows(path: Path, text: str) -> Iterable[tuple[str, Any]]:
    if path.suffix in (".json", ".jsonl"):
        try:
            lines = text.splitlines()
            content = (
                json.loads(text) if path.suffix == ".json" else [json.loads(line) for line in lines if line.strip()]
            )
        except ValueError as error:
            raise HastenError(f"{path} is no JSON: {error}") from error
        if isinstance(content, dict):
            return content.items()
        if isinstance(content, list):
            return [_named(path, entry) for entry in content]
        raise HastenError(f"{path}: scores are an object or a list of objects, not a {type(content).__name__}")
    if path.suffix in (".csv", ".tsv"):
        rows = list(csv.reader(text.splitlines(), delimiter="\t" if path.suffix == ".tsv" else ","))
        rows = [[cell.strip() for cell in row] for row in rows if any(row)]
        heading = [cell.lower() for cell in rows[0]] if rows else []
        if any(cell in _VALUES for cell in heading):
            return [_named(path, dict(zip(heading, row, strict=False))) for row in rows[1:]]
        if any(len(row) != 2 for row in rows):
            raise HastenError(f"{path}: without a heading, every line is a name and a score")
        return [(row[0], row[1]) for row in rows]
    raise HastenError(f"{path}: scores come as .json, .jsonl, .csv or .tsv")


def _named(path: Path, entry: Any) -> tuple[str, Any]:
    if isinstance(entry, dict):
        name = next((entry[key] for key in _NAMES if key in entry), None)
        value = next((entry[key] for key in _VALUES if key in entry), None)
        if name is not None:
            return str(name), value
    raise HastenError(f"{path}: no picture is named in {entry!r}: call it one of {', '.join(_NAMES)}")
