"""`hasten plan`: check, show, list."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from hasten.cli.main import app
from hasten.plan import load_plan, preset_names

run = CliRunner().invoke


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_check_says_fine_and_exits_with_0(here: Path) -> None:
    (here / "good.yaml").write_text("cache: taylorseer\n")
    result = run(app, ["plan", "check", "good.yaml", "reuse"])
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "good.yaml: fine\nreuse: fine\n"


def test_check_prints_every_problem_of_every_file_and_exits_with_2(here: Path) -> None:
    (here / "bad.yaml").write_text("cache:\n  intervall: 4\n  order: many\n")
    (here / "good.yaml").write_text("seed: 1\n")
    result = run(app, ["plan", "check", "bad.yaml", "good.yaml", "gone.yaml"])
    assert result.exit_code == 2
    lines = result.stdout.splitlines()
    assert lines[0].startswith("bad.yaml:2: cache.intervall: unknown key; did you mean 'interval'? (allowed: ")
    assert lines[1] == "bad.yaml:3: cache.order: must be a whole number from 0 to 8, not 'many'"
    assert lines[2].startswith("gone.yaml: no such file; did you mean 'good.yaml'?")
    assert result.stderr == "good.yaml: fine\n"


def test_check_takes_sets(here: Path) -> None:
    (here / "good.yaml").write_text("cache: taylorseer\n")
    result = run(app, ["plan", "check", "good.yaml", "--set", "cache.interval=0"])
    assert result.exit_code == 2
    assert result.stdout.startswith("--set cache.interval=0: must be a whole number of at least 1")


@pytest.mark.parametrize("how", ["--resolved", "--as-written"])
def test_show_prints_a_plan_that_loads_again(here: Path, how: str) -> None:
    result = run(app, ["plan", "show", "taylorseer", "--set", "cache.interval=3", "--set", "seed=7", how])
    assert result.exit_code == 0, result.output
    (here / "shown.yaml").write_text(result.stdout)
    shown = load_plan("shown.yaml")
    assert shown.seed == 7
    assert shown.cache is not None
    assert shown.cache.interval == 3
    if how == "--as-written":
        assert shown == load_plan("taylorseer", interval=3, seed=7)
    else:
        assert shown.cache.order is not None
        assert shown.cache.site is not None


@pytest.mark.parametrize("preset", preset_names())
def test_a_resolved_preset_resolves_to_itself(here: Path, preset: str) -> None:
    once = run(app, ["plan", "show", preset]).stdout
    (here / "shown.yaml").write_text(once)
    assert run(app, ["plan", "show", "shown.yaml"]).stdout == once


def test_show_of_a_mask_leaves_out_what_the_mask_replaces(here: Path) -> None:
    result = run(app, ["plan", "show", "taylorseer", "--set", "cache.mask=[0, 1, 2, 9, 30]"])
    assert result.exit_code == 0, result.output
    assert "  mask: [0, 1, 2, 9, 30]\n" in result.stdout
    assert "interval" not in result.stdout


def test_show_without_a_source_shows_the_defaults() -> None:
    result = run(app, ["plan", "show"])
    assert result.exit_code == 0
    assert "cache: null\n" in result.stdout


def test_show_of_a_wrong_plan_is_an_error() -> None:
    result = run(app, ["plan", "show", "taylorseer", "--set", "cache.intervall=4"])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --set cache.intervall=4: unknown key; did you mean 'interval'?")


def test_list_names_each_preset_with_its_purpose() -> None:
    result = run(app, ["plan", "list"])
    assert result.exit_code == 0
    for name in preset_names():
        assert name in result.stdout
    assert "nothing is skipped" in result.stdout
