"""YAML with line numbers: what is understood, what is refused, and where."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from hasten.plan.reading import read_yaml


def test_every_key_has_the_line_it_stands_on() -> None:
    document = read_yaml("# a comment\nseed: 1\n\ncache:\n  interval: 4\n  mask: [0,\n    5]\n")
    assert document.value == {"seed": 1, "cache": {"interval": 4, "mask": [0, 5]}}
    keys = {("seed",): 2, ("cache",): 4, ("cache", "interval"): 5, ("cache", "mask"): 6}
    assert document.lines == keys | {("cache", "mask", "0"): 6, ("cache", "mask", "1"): 7}
    assert document.mistakes == []


def test_a_key_given_twice_names_both_lines_and_the_first_value_stays() -> None:
    document = read_yaml("cache:\n  interval: 4\n  order: 1\n  interval: 5\n")
    assert document.value == {"cache": {"interval": 4, "order": 1}}
    assert document.mistakes == [(4, "cache.interval", "given twice (first in line 2)")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("On", "On"),
        ("1:30", "1:30"),
        ("2026-01-01", "2026-01-01"),
        ("007", "007"),
        ("true", True),
        ("~", None),
        ("'4'", "4"),
        ("!!str 4x", "4x"),
        ("-4", -4),
        ("4.5", 4.5),
        (".5", 0.5),
        ("1.5e-3", 0.0015),
        ("1e-3", "1e-3"),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_a_scalar_means_what_it_looks_like(text: str, value: object) -> None:
    assert read_yaml(f"key: {text}\n").value == {"key": value}


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\n\tb: 2\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "not valid YAML: but found another document"),
        ("a: 1\nb: !!python/object/apply:os.system ['true']\n", 2, "tags such as 'tag:yaml.org,2002:python/object"),
        ("a: &x 1\nb: *x\n", 1, "anchors and aliases"),
        ("a: *x\n", 1, "not valid YAML: found undefined alias"),
        ("? [1, 2]\n: 3\n", 1, "a key must be one word"),
        ("a: \0\n", 1, "not a text file"),
        ("[" * 20_000, 1, "not a plan: nested too deeply"),
        ("a: \x1b\n", 1, "not valid YAML"),
    ],
)
def test_what_is_not_a_plan_is_refused_with_its_line(text: str, line: int, message: str) -> None:
    mistakes = read_yaml(text).mistakes
    assert [mistake.line for mistake in mistakes] == [line]
    assert mistakes[0].text.startswith(message)


def test_aliases_do_not_make_small_files_huge() -> None:
    bomb = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 60))
    document = read_yaml(bomb)
    assert "anchors and aliases" in document.mistakes[0].text
    assert len(str(document.value)) < 10_000


_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3), max_leaves=8
)


@given(st.dictionaries(st.text(), _trees, max_size=4))
def test_what_pyyaml_writes_is_read_back(values: dict[str, object]) -> None:
    document = read_yaml(yaml.safe_dump(values))
    assert document.mistakes == []
    assert document.value == values


@given(st.text())
def test_no_text_makes_the_reader_fail(text: str) -> None:
    document = read_yaml(text)
    assert all(mistake.line >= 1 and mistake.text for mistake in document.mistakes)
