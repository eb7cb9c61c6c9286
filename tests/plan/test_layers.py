"""A list of cache sections: layers on top of each other."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from hasten import load_plan
from hasten.caching.methods import METHODS
from hasten.errors import PlanError
from hasten.plan import Cache, Plan
from hasten.plan.resolved import resolved_dict, resolved_yaml

TWO = [{"method": "reuse", "site": "output", "interval": 5}, {"site": "residual", "interval": 3}]
FILE = """\
cache:
  - method: reuse
    site: output
    interval: 5
  - taylorseer
seed: 3
"""


def test_a_list_of_sections_is_a_plan() -> None:
    plan = load_plan({"cache": TWO})
    assert (
        plan.cache
        == plan.caches
        == (Cache(method="reuse", site="output", interval=5), Cache(site="residual", interval=3))
    )
    assert plan.method == "reuse+taylorseer"
    assert load_plan("reuse").caches == (Cache(method="reuse"),)
    assert load_plan("none").caches == ()
    assert load_plan("none").method is None
    assert Plan(cache=TWO) == plan  # type: ignore[arg-type]


def test_a_name_stands_for_a_section_in_a_list_too(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(FILE)
    plan = load_plan(file)
    assert plan.caches == (Cache(method="reuse", site="output", interval=5), Cache(method="taylorseer"))
    assert plan.seed == 3


def test_a_plan_with_layers_survives_yaml_and_being_a_base() -> None:
    plan = load_plan({"cache": TWO})
    text = plan.to_yaml()
    assert "- method: reuse\n" in text
    assert load_plan(yaml.safe_load(text)) == plan
    assert load_plan(plan, seed=0).cache == plan.cache
    assert load_plan(load_plan(yaml.safe_load(resolved_yaml(plan)))) == load_plan(resolved_dict(plan))
    assert [section["first_enhance"] for section in resolved_dict(plan)["cache"]] == [3, 3]


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if not method.layers])
@pytest.mark.parametrize("wishes", [True, False])
def test_every_methods_defaults_written_out_are_a_plan_again(name: str, wishes: bool) -> None:
    written = resolved_dict(load_plan({"cache": name}), wishes=wishes)
    again = resolved_dict(load_plan(written), wishes=wishes)
    assert again == written


def test_one_section_of_a_list_is_addressed_by_its_number() -> None:
    plan = load_plan({"cache": TWO}, ["cache.1.interval=7"], cache__0__order=0)
    assert [section.interval for section in plan.caches] == [5, 7]
    assert plan.caches[0].order == 0


def test_another_section_or_list_replaces_a_list() -> None:
    assert load_plan({"cache": TWO}, ["cache=reuse"]).cache == Cache(method="reuse")
    assert load_plan({"cache": TWO}, cache=None).cache is None
    assert load_plan("taylorseer", cache=TWO).caches == load_plan({"cache": TWO}).caches


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (
            ["cache.interval=2"],
            "--set cache.interval=2: cache is a list of 2 sections: name one of them, "
            "cache.0.interval or cache.1.interval",
        ),
        (["cache.2.interval=2"], "cache is a list of 2 sections"),
        (["cache.0=reuse"], "cache is a list of 2 sections"),
        (["cache.1.intervall=2"], "--set cache.1.intervall=2: unknown key; did you mean 'interval'?"),
        (["cache.1.interval=0"], "--set cache.1.interval=0: must be a whole number of at least 1, not 0"),
        (["cache.0.mask=[0, 4]"], "cache.0.interval: cache.0.mask already says which steps"),
    ],
)
def test_what_is_wrong_is_said_of_the_section_it_is_in(sets: list[str], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan({"cache": TWO}, sets)
    assert message in str(caught.value)


def test_a_number_for_a_section_that_is_no_list_is_refused() -> None:
    with pytest.raises(PlanError, match="leave the number out"):
        load_plan("reuse", ["cache.0.interval=2"])


def test_a_file_is_told_its_lines(tmp_path: Path) -> None:
    file = tmp_path / "two.yaml"
    file.write_text(FILE.replace("interval", "intervall") + "cache_size: 3\n")
    with pytest.raises(PlanError) as caught:
        load_plan(file)
    assert "two.yaml:4: cache.0.intervall: unknown key; did you mean 'interval'?" in str(caught.value)
    file.write_text(FILE.replace("taylorseer", "[1, 2]"))
    with pytest.raises(PlanError, match=r"two.yaml:5: cache.1: must be a mapping of settings"):
        load_plan(file)
    file.write_text("cache: []\n")
    with pytest.raises(PlanError, match=r"two.yaml:1: cache"):
        load_plan(file)
