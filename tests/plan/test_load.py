"""All ways to a plan: they end in the same object, and their mistakes are told all at once, each in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from hasten.caching.vocabulary import SiteName
from hasten.errors import HastenError, PlanError
from hasten.plan import Cache, Generation, Plan, build_plan, load_plan, preset_names
from hasten.plan.messages import ALSO_KNOWN_AS, dotted_keys
from hasten.plan.overlay import methods

METHODS = ", ".join(map(repr, methods()))
SITES = ", ".join(map(repr, get_args(SiteName)))


def problems(*args: Any, **kwargs: Any) -> list[str]:
    with pytest.raises(PlanError) as caught:
        load_plan(*args, **kwargs)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return list(caught.value.problems)


def write(folder: Path, text: str, name: str = "plan.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return name


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, so that messages show short names."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# -- ways to the same plan


def test_file_preset_mapping_sets_and_keywords_end_in_the_same_plan(here: Path) -> None:
    write(here, "cache:\n  method: taylorseer\n  interval: 4\nseed: 3\n")
    wanted = Plan(cache=Cache(method="taylorseer", interval=4), seed=3)
    assert load_plan("plan.yaml") == wanted
    assert load_plan(here / "plan.yaml") == wanted
    assert load_plan("taylorseer", ["cache.interval=4", "seed=3"]) == wanted
    assert load_plan("taylorseer", cache__interval=4, seed=3) == wanted
    assert load_plan("taylorseer", interval=4, seed=3) == wanted
    assert load_plan({"cache": "taylorseer", "seed": 3}, cache={"interval": 4}) == wanted
    assert load_plan(cache=Cache(interval=4), seed=3) == wanted
    assert load_plan(wanted) == wanted


def test_nothing_given_skips_nothing() -> None:
    assert load_plan() == Plan()
    assert load_plan().cache is None


def test_later_sources_win() -> None:
    plan = load_plan({"cache": {"interval": 2, "order": 1}}, ["cache.interval=3", "cache.interval=4"], interval=5)
    assert plan.cache == Cache(interval=5, order=1)


def test_a_keyword_may_stand_alone_where_only_one_section_has_it() -> None:
    plan = load_plan(num_inference_steps=20, dtype="bf16", shift=3, width=256, out="there", damping=0.5)
    assert plan.generation.num_inference_steps == 20
    assert plan.precision.dtype == "bf16"
    assert plan.sampler.shift == 3.0
    assert plan.generation.width == 256
    assert plan.io.out == Path("there")
    assert plan.cache == Cache(damping=0.5)


@pytest.mark.parametrize("written", ["null", "none", "off", "no", "false", "~", "NONE"])
def test_the_cache_is_turned_off_in_every_usual_spelling(written: str) -> None:
    assert load_plan("taylorseer", [f"cache={written}"]).cache is None
    assert load_plan({"cache": "taylorseer"}, cache=None).cache is None


def test_a_sections_short_form_begins_it_anew_and_a_mapping_is_merged() -> None:
    base = {"cache": {"method": "taylorseer", "order": 2}}
    assert load_plan(base, ["cache=reuse"]).cache == Cache(method="reuse")
    assert load_plan(base, cache={"interval": 3}).cache == Cache(order=2, interval=3)
    assert load_plan(base, ["cache.method=reuse", "cache.order=0"]).cache == Cache(method="reuse", order=0)
    assert load_plan({"precision": "bf16", "sampler": "flow-heun"}).sampler.name == "flow-heun"


def test_a_set_after_the_cache_was_turned_off_turns_it_on_again() -> None:
    assert load_plan("none", interval=4).cache == Cache(interval=4)


@pytest.mark.parametrize(
    ("given_", "key", "value"),
    [
        ({"cache": {"interval": "4"}}, "cache.interval", 4),
        ({"cache": {"interval": 4.0}}, "cache.interval", 4),
        ({"cache": {"method": "TaylorSeer"}}, "cache.method", "taylorseer"),
        ({"cache": {"mask": (0, 9, 4, 4)}}, "cache.mask", [0, 4, 9]),
        ({"cache": {"mask": range(0, 9, 4)}}, "cache.mask", [0, 4, 8]),
        ({"precision": {"dtype": "torch.bfloat16"}}, "precision.dtype", "bf16"),
        ({"precision": "float16"}, "precision.dtype", "fp16"),
        ({"device": "CUDA:1"}, "device", "cuda:1"),
        ({"io": {"grid": "yes"}}, "io.grid", True),
        ({"model": 7}, "model", "7"),
        ({"generation": None}, "generation", Generation()),
        ({"generation": {"negative_prompt": None}}, "generation.negative_prompt", None),
    ],
)
def test_harmless_spellings_are_understood(given_: dict[str, Any], key: str, value: object) -> None:
    found: Any = load_plan(given_)
    for part in key.split("."):
        found = getattr(found, part)
    assert found == value


def test_a_negative_prompt_may_be_the_word_no(here: Path) -> None:
    write(here, "generation:\n  negative_prompt: no\n")
    assert load_plan("plan.yaml").generation.negative_prompt == "no"


def test_an_empty_file_is_the_defaults_and_a_byte_order_mark_is_no_matter(here: Path) -> None:
    assert load_plan(write(here, "# nothing yet\n")) == Plan()
    assert load_plan(write(here, "\ufeffseed: 4\n")).seed == 4


def test_every_preset_loads_and_says_first_what_it_is_for() -> None:
    from hasten.plan import read_preset

    assert {"taylorseer", "reuse", "none"} <= set(preset_names())
    for name in preset_names():
        assert load_plan(name).version == 1
        assert read_preset(name).startswith("# ")
    assert load_plan("none").cache is None


# -- mistakes


def test_all_mistakes_of_a_file_are_told_at_once_with_their_lines(here: Path) -> None:
    write(
        here,
        "version: 1\n"
        "device: gpu\n"
        "cache:\n"
        "  method: taylorser\n"
        "  interval: four\n"
        "  first_enhance: 40\n"
        "  treshold: 0.1\n"
        "  intervall: 3\n"
        "  order: 2\n"
        "  snapshots: 1\n"
        "  order: 1\n"
        "generation:\n"
        "  num_inference_steps: 20\n"
        "modell: x\n",
    )
    found = problems("plan.yaml")
    assert [line.split(": ")[:2] for line in found] == [
        ["plan.yaml:2", "device"],
        ["plan.yaml:4", "cache.method"],
        ["plan.yaml:5", "cache.interval"],
        ["plan.yaml:6", "cache.first_enhance"],
        ["plan.yaml:7", "cache.treshold"],
        ["plan.yaml:8", "cache.intervall"],
        ["plan.yaml:10", "cache.snapshots"],
        ["plan.yaml:11", "cache.order"],
        ["plan.yaml:14", "modell"],
    ]
    assert "did you mean 'cuda'?" in found[0]
    assert found[1].endswith("not 'taylorser'; did you mean 'taylorseer'?")
    assert found[2] == "plan.yaml:5: cache.interval: must be a whole number of at least 1, not 'four'"
    assert "a warm-up of 40 steps is longer than the run's 20 steps" in found[3]
    assert found[4].startswith("plan.yaml:7: cache.treshold: unknown key; did you mean 'threshold'? (allowed: ")
    assert found[5].startswith("plan.yaml:8: cache.intervall: unknown key; did you mean 'interval'? (allowed: method, ")
    assert found[6].endswith("order 2 needs 3 snapshots, not 1")
    assert found[7].endswith("given twice (first in line 9)")
    assert "did you mean 'model'?" in found[8]


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("cache.interval", 0, "must be a whole number of at least 1, not 0"),
        ("cache.interval", True, "must be a whole number of at least 1, not true"),
        ("cache.interval", 2.5, "must be a whole number of at least 1, not 2.5"),
        ("cache.interval", [4], "must be a whole number of at least 1, not [4]"),
        ("cache.interval", {"a": 1}, "must be a whole number of at least 1, not a mapping"),
        ("cache.damping", 1.5, "must be a number from 0 to 1, not 1.5"),
        ("cache.damping", float("nan"), "must be a number from 0 to 1, not nan"),
        ("cache.size", 0, "must be a number above 0, not 0"),
        ("cache.span", [1], "must be a list of two whole numbers of at least 0, such as [1, 1], not [1]"),
        ("cache.mask", [], "must be a list of whole numbers of at least 0 (not empty), not []"),
        ("cache.mask", [0, -3], "must be a list of whole numbers of at least 0 (not empty), not [0, -3]"),
        ("cache.site", "outptu", f"must be one of {SITES}, not 'outptu'; did you mean 'output'?"),
        ("cache.site", 3, f"must be one of {SITES}, not 3"),
        ("cache", 5, f"must be a mapping of settings, or one of {METHODS}, not 5"),
        ("cache", True, f"must be a mapping of settings, or one of {METHODS}, not true"),
        ("generation", [1], "must be a mapping of settings, not [1]"),
        ("io.grid", "maybe", "must be true or false, not 'maybe'"),
        ("io.out", 5, "must be a path, not 5"),
        ("model", "", "must be text (not empty), not ''"),
        ("model", True, "must be text (not empty), not true"),
        ("model", None, "must be text (not empty), not null"),
        ("version", 2, "must be 1, not 2"),
        ("seed", -1, "must be a whole number from 0 to 9223372036854775807, not -1"),
        ("seed", "x" * 300, "must be a whole number"),
        ("device", "cuda:x", "must be one of auto, cpu, cuda"),
        ("device", "{gpu}", "must be one of auto, cpu, cuda"),
        ("device", None, "must be one of auto, cpu, cuda"),
        ("precision.dtype", "float17", "must be one of 'auto', 'fp32', 'fp16', 'bf16', not 'float17'"),
    ],
)
def test_a_wrong_value_is_answered_in_plain_words(key: str, value: object, message: str) -> None:
    section, _, name = key.partition(".")
    found = problems({section: {name: value} if name else value})
    assert len(found) == 1
    assert message in found[0]
    assert found[0].startswith(f"{key}: ")
    assert len(found[0].replace(METHODS, "")) < 280


def test_sets_and_keywords_say_which_of_them_is_wrong() -> None:
    assert problems("taylorseer", ["cache.intervall=4"])[0].startswith(
        "--set cache.intervall=4: unknown key; did you mean 'interval'? (allowed: method, "
    )
    assert problems("taylorseer", ["cache.interval=four"]) == [
        "--set cache.interval=four: must be a whole number of at least 1, not 'four'"
    ]
    assert problems("taylorseer", intervall=4)[0].startswith(
        "load_plan(..., intervall=4): unknown keyword; did you mean 'cache__interval'? (allowed: version, "
    )
    assert problems(cache__intervall=4)[0].startswith(
        "load_plan(..., cache__intervall=4): unknown key; did you mean 'interval'? (allowed: method, "
    )
    with pytest.raises(PlanError) as caught:
        build_plan("taylorseer", (), {"intervall": 4, "order": "x"}, caller="accelerate")
    assert caught.value.problems[0].startswith(
        "accelerate(..., intervall=4): unknown keyword; did you mean 'interval'? (allowed: method, interval, "
    )
    assert caught.value.problems[1] == "accelerate(..., order='x'): must be a whole number from 0 to 8, not 'x'"


@pytest.mark.parametrize("text", ["cache.interval", "=4", "cache..interval=4", ".=1", ""])
def test_a_set_that_is_no_setting_shows_what_one_looks_like(text: str) -> None:
    (problem,) = problems(None, [text])
    assert problem == f"--set {text}: must look like key=value, such as cache.interval=4"


def test_a_set_below_a_single_value_is_refused() -> None:
    assert problems(None, ["seed.x=1"]) == ["--set seed.x=1: 'seed' has no settings of its own; it is one value"]
    assert problems(None, ["cache.interval.x=1"]) == [
        "--set cache.interval.x=1: must be a whole number of at least 1, not a mapping"
    ]


def test_a_set_may_write_hyphens_and_lists() -> None:
    assert load_plan(None, ["cache.first-enhance=2", "cache.cooldown=1"]).cache == Cache(first_enhance=2, cooldown=1)
    assert load_plan(None, ["cache.mask=[0, 4, 8]"]).cache == Cache(mask=[0, 4, 8])
    assert load_plan(None, ["model=a=b"]).model == "a=b"


def test_an_unknown_section_is_told_once_per_key_that_it_was_given_with() -> None:
    found = problems(None, ["gen.steps=3"])
    assert len(found) == 1
    assert found[0].startswith("--set gen.steps=3: unknown key")


@pytest.mark.parametrize(("name", "meant"), sorted(ALSO_KNOWN_AS.items()))
def test_names_from_other_tools_lead_to_ours(name: str, meant: str) -> None:
    assert meant in dotted_keys(Plan)
    assert f"did you mean '{meant}'?" in problems({name: 1})[0]


def test_a_key_of_another_section_is_pointed_to() -> None:
    assert "did you mean 'cache.interval'?" in problems({"interval": 4})[0]
    assert "did you mean 'seed'?" in problems({"io": {"seed": 4}})[0]
    assert "did you mean 'order'?" in problems({"cache": {"taylor_order": 1}})[0]


def test_a_source_that_is_not_there_is_answered_with_what_is(here: Path) -> None:
    write(here, "seed: 1\n", "fast.yaml")
    assert problems("taylorser")[0] == (
        "'taylorser': there is no preset and no file of that name; did you mean 'taylorseer'? "
        f"(presets: {', '.join(sorted({*preset_names(), *methods()}))})"
    )
    assert problems("fsat.yaml")[0].startswith("fsat.yaml: no such file; did you mean 'fast.yaml'? (presets: ")
    assert problems("taylorseer.yaml")[0].startswith("taylorseer.yaml: no such file; did you mean 'taylorseer'?")
    assert problems("nowhere/at/all.yaml")[0].startswith("nowhere/at/all.yaml: no such file (presets: ")
    assert "is a folder, not a plan" in problems(here)[0]
    assert "a preset's name, a YAML file, a mapping or a Plan, not 4" in problems(4)[0]


def test_a_file_that_is_no_plan_is_refused(here: Path) -> None:
    assert problems(write(here, "- 1\n- 2\n")) == ["plan.yaml:1: must be a mapping of settings, not [1, 2]"]
    assert problems(write(here, "just words\n")) == ["plan.yaml:1: must be a mapping of settings, not 'just words'"]
    assert problems(write(here, "a: [\n"))[0].startswith("plan.yaml:2: not valid YAML: ")
    (here / "plan.yaml").write_bytes(b"\xff\xfe\x00")
    assert problems("plan.yaml")[0].startswith("plan.yaml: not a text file in UTF-8")
    (here / "plan.yaml").write_bytes(b"#" * 1_000_001)
    assert "larger than 1000 kB" in problems("plan.yaml")[0]


def test_a_plan_error_is_a_hasten_error_and_a_value_error() -> None:
    assert issubclass(PlanError, HastenError)
    assert issubclass(PlanError, ValueError)


def test_plans_are_frozen_and_hand_made_ones_are_checked_too() -> None:
    plan = Plan()
    with pytest.raises(ValidationError):
        plan.seed = 3  # type: ignore[misc]
    with pytest.raises(ValidationError, match="order 2 needs 3 snapshots"):
        Plan(cache=Cache(order=2, snapshots=1))
    with pytest.raises(ValidationError, match="warm-up of 30"):
        Plan(cache=Cache(first_enhance=30), generation=Generation(num_inference_steps=20))


# -- round trips


def _some(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


plans = st.builds(
    dict,
    model=st.text(min_size=1),
    device=st.sampled_from(["auto", "cpu", "cuda:1"]),
    precision=st.fixed_dictionaries({"dtype": st.sampled_from(["auto", "fp32", "bf16"])}),
    sampler=st.fixed_dictionaries({"shift": _some(st.floats(0.1, 20))}),
    cache=_some(
        st.fixed_dictionaries(
            {},
            optional={
                "interval": st.integers(1, 9),
                "first_enhance": st.integers(0, 3),
                "order": st.integers(0, 3),
                "damping": st.floats(0, 1),
                "size": st.floats(1e-3, 1e6),
            },
        )
    ),
    generation=st.fixed_dictionaries(
        {"negative_prompt": _some(st.text()), "num_inference_steps": st.integers(10, 99), "width": _some(st.just(64))}
    ),
    io=st.fixed_dictionaries({"out": st.just("some where"), "grid": st.booleans()}),
    seed=st.integers(0, 2**63 - 1),
)


@settings(max_examples=50)
@given(plans)
def test_a_plan_survives_yaml_and_plain_values(values: dict[str, Any]) -> None:
    plan = load_plan(values)
    from hasten.plan.reading import read_yaml

    assert load_plan(read_yaml(plan.to_yaml()).value) == plan
    assert load_plan(plan.to_dict()) == plan
    assert load_plan(plan) == plan


_junk: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=4,
)


@settings(max_examples=200)
@given(st.dictionaries(st.sampled_from(dotted_keys(Plan)) | st.text(max_size=6), _junk, max_size=4))
def test_no_values_bring_anything_but_a_plan_or_a_plan_error(values: dict[str, Any]) -> None:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        section, _, name = key.partition(".")
        if not name:
            nested[section] = value
        elif isinstance(nested.setdefault(section, {}), dict):
            nested[section][name] = value
    try:
        plan = load_plan(nested)
    except PlanError:
        return
    assert load_plan(plan.to_dict()) == plan


def test_keys_of_other_programs_that_mean_one_thing_are_taken_for_ours(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("model_id: someone/something\nunet_dtype: bf16\nvae_dtype: fp32\ntext_encoder_dtype: int8\n")
    plan = load_plan(file)
    assert plan.model == "someone/something"
    assert (plan.precision.unet, plan.precision.vae, plan.precision.text_encoder) == ("bf16", "fp32", "int8")
    assert load_plan(unet_dtype="bf16").precision.unet == "bf16"
    assert load_plan(None, ["vae_dtype=fp16"]).precision.vae == "fp16"
    file.write_text("seed: 1\nunet_dtype: bf17\n")
    with pytest.raises(PlanError, match=r"plan\.yaml:2: precision\.unet: must be one of"):
        load_plan(file)
