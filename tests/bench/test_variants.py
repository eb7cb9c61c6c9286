"""Plans and sweeps as variants of one reference."""

from __future__ import annotations

from pathlib import Path

import pytest

from hasten.bench.variants import candidates, fewer_steps, parse_sweep, read_prompts
from hasten.errors import HastenError, PlanError
from hasten.plan import load_plan

BASE = load_plan(None, model="some/model", num_inference_steps=20, width=64, height=64, seed=3)


def test_a_plan_takes_the_benchmarks_settings_where_it_has_none() -> None:
    reference, variant = candidates(BASE, ["taylorseer"])
    assert (reference.name, reference.kind, reference.plan.cache) == ("reference", "reference", None)
    assert (variant.name, variant.kind, variant.differs) == ("taylorseer", "plan", ())
    assert variant.plan.cache == load_plan("taylorseer").cache
    assert (variant.plan.model, variant.plan.generation) == ("some/model", BASE.generation)


def test_what_a_plan_names_holds_and_makes_it_incomparable() -> None:
    own = {"cache": "reuse", "generation": {"num_inference_steps": 12, "width": 32}, "seed": 9, "model": "other"}
    variant = candidates(BASE, [own])[1]
    assert variant.differs == ("steps 12 instead of 20", "width 32 instead of 64")
    assert (variant.plan.model, variant.plan.seed) == ("some/model", 3)  # one for all


def test_another_dtype_is_a_way_of_being_fast_and_stays_comparable() -> None:
    variant = candidates(BASE, [{"cache": "reuse", "precision": "bf16"}])[1]
    assert variant.plan.precision.dtype == "bf16"
    assert variant.differs == ()


def test_sweeps_make_every_combination() -> None:
    found = candidates(
        BASE, ["taylorseer", "reuse"], ["cache.interval=2,3", "cache.span=[1, 0],[1, 1]", "cache.site=span"]
    )
    names = [one.name for one in found[1:]]
    assert len(names) == len(set(names)) == 8
    assert names[0] == "taylorseer interval=2 span=[1, 0] site=span"
    assert found[-1].plan.cache is not None
    assert (found[-1].plan.cache.interval, found[-1].plan.cache.span) == (3, (1, 1))


def test_files_are_named_by_their_stem_and_twins_are_numbered(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("cache: {method: reuse, interval: 5}\n")
    found = candidates(BASE, [tmp_path / "mine.yaml", "reuse", "reuse"])
    assert [one.name for one in found[1:]] == ["mine", "reuse", "reuse (2)"]
    assert found[1].plan.cache is not None
    assert found[1].plan.cache.interval == 5


def test_fewer_steps_are_plain_and_each_count_stands_once() -> None:
    found = fewer_steps(BASE, [7, 5, 7, 20, 0])
    assert [(one.name, one.plan.generation.num_inference_steps) for one in found] == [
        ("fewer-steps 5", 5),
        ("fewer-steps 7", 7),
    ]
    assert all(one.plan.cache is None and not one.differs for one in found)


@pytest.mark.parametrize(
    "text", ["cache.interval", "=2,3", "cache.interval=", "cache.interval=[2", "seed=1,2", "model=a,b"]
)
def test_a_sweep_that_cannot_be_is_refused_in_its_own_words(text: str) -> None:
    with pytest.raises(HastenError, match="--sweep"):
        parse_sweep(text)


def test_a_value_that_the_plan_refuses_names_its_variant() -> None:
    with pytest.raises(PlanError, match="taylorseer interval=0: "):
        candidates(BASE, ["taylorseer"], ["cache.interval=2,0"])
    with pytest.raises(PlanError, match="mask"):
        candidates(BASE, [{"cache": {"mask": [0, 1, 30]}}])


def test_prompts_come_from_a_file_or_are_built_in(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n 两个圆 \n")
    assert read_prompts(str(file)) == ["one", "两个圆"]
    assert len(set(read_prompts("builtin:4"))) == 4
    file.write_text("\n")
    for source in (str(file), "builtin:0", "builtin:x", str(tmp_path / "none.txt")):
        with pytest.raises(HastenError, match="--prompts"):
            read_prompts(source)
