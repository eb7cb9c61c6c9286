"""Scores of another program, in the forms that such programs write."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.errors import HastenError
from hasten.metrics import read_scores


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '{"a.png": 0.5, "b.png": -1}'),
        ("a.json", '[{"file": "a.png", "score": 0.5}, {"image": "b.png", "reward": "-1"}]'),
        ("a.jsonl", '{"name": "a.png", "value": 0.5}\n\n{"name": "b.png", "value": -1}\n'),
        ("a.csv", "a.png,0.5\nb.png,-1\n"),
        ("a.csv", "\ufeffPrompt,File,Score\nx,a.png,0.5\ny,b.png,-1\n"),
        ("a.tsv", "a.png\t0.5\nb.png\t-1\n"),
    ],
)
def test_every_form_says_the_same(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    assert read_scores(tmp_path / name) == {"a.png": 0.5, "b.png": -1.0}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.json", '{"a.png": NaN}', "no finite number"),
        ("a.json", '{"a.png": "good"}', "'good', no finite number"),
        ("a.json", "[1, 2]", "no picture is named in 1"),
        ("a.json", "3", "not a int"),
        ("a.json", "{", "is no JSON"),
        ("a.csv", "a.png,1\na.png,2\n", "has two scores"),
        ("a.csv", "a.png,1,x\n", "every line is a name and a score"),
        ("a.csv", "", "holds no scores"),
        ("a.yaml", "", "come as .json"),
    ],
)
def test_a_file_that_is_not_understood_is_refused(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(HastenError, match=message):
        read_scores(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match=r"none\.json: cannot be read: No such file"):
        read_scores(tmp_path / "none.json")
