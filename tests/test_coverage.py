"""Every denoiser class of the installed diffusers: what holds on it, and that the page about it says so."""

from __future__ import annotations

from pathlib import Path

import diffusers
import pytest
from benchmarks.coverage import Row, check, page

from denoisers import CASES, NO_DENOISERS, classes

PAGE = Path(__file__).parent.parent / "docs" / "coverage.md"


@pytest.fixture(scope="module")
def rows() -> dict[str, Row]:
    return {}


def test_every_class_is_accounted_for() -> None:
    assert classes().keys() == CASES.keys() | NO_DENOISERS.keys()
    assert not CASES.keys() & NO_DENOISERS.keys()


@pytest.mark.parametrize("name", CASES)
def test_a_denoiser_is_accelerated_and_left_as_it_was(name: str, rows: dict[str, Row]) -> None:
    rows[name] = check(name)


def test_the_page_is_what_was_found(rows: dict[str, Row]) -> None:
    text = PAGE.read_text("utf-8")
    if f"diffusers {diffusers.__version__}" not in text:
        pytest.skip(f"the page is about another diffusers than {diffusers.__version__}")
    found = page([rows.get(name) or check(name) for name in CASES])
    assert found in text, "python -m benchmarks coverage --docs"
