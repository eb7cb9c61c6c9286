"""Combinations that cannot be are refused, and everything else is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hasten.errors import PlanError
from hasten.plan import Cache, build_plan, load_plan


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"order": 2, "snapshots": 1}, "cache.snapshots: order 2 needs 3 snapshots, not 1"),
        ({"first_enhance": 51}, "cache.first_enhance: a warm-up of 51 steps is longer than the run's 50 steps"),
        ({"cooldown": 51}, "cache.cooldown: a cool-down of 51 steps is longer than the run's 50 steps"),
        (
            {"first_enhance": 26, "cooldown": 25},
            "cache.cooldown: a warm-up of 26 and a cool-down of 25 steps are together longer than the run's 50 steps",
        ),
        ({"mask": [0, 50]}, "cache.mask: step 50 is not in a run of 50 steps, which are numbered 0 to 49"),
        ({"mask": [0, 50, 51]}, "cache.mask: steps 50, 51 are not in a run of 50 steps, which are numbered 0 to 49"),
        ({"mask": [1, 2]}, "cache.mask: step 0 has to be computed: there is nothing yet to predict it from"),
        ({"mask": [0], "interval": 4}, "cache.interval: cache.mask already says which steps are computed"),
        ({"mask": [0], "first_enhance": 4}, "cache.first_enhance: cache.mask already says"),
        ({"policy": "mask"}, "cache.policy: policy 'mask' needs cache.mask"),
        (
            {"policy": "interval", "mask": [0]},
            "cache.mask: has no effect with policy 'interval'; it needs policy: mask or",
        ),
        ({"policy": "geometric"}, "cache: policy 'geometric' needs cache.budget"),
        ({"policy": "bins"}, "cache: policy 'bins' needs cache.bins"),
        ({"bins": "slow", "interval": 3}, "cache.interval: cache.bins already says which steps are computed"),
        ({"bins": "slow", "mask": [0]}, "cache.bins: cache.mask already says which steps are computed"),
        ({"budget": 9, "first_enhance": 3}, "cache.first_enhance: cache.budget already says"),
        (
            {"growth": 2},
            "cache.growth: has no effect with policy 'interval' of method 'taylorseer'; it needs policy: window",
        ),
        (
            {"policy": "window", "budget": 9},
            "cache.budget: has no effect with policy 'window'; it needs policy: geometric",
        ),
        ({"method": "easycache", "budget": 9}, "cache.budget: has no effect with policy 'accumulate' of method"),
        ({"power": 1.5}, "cache.power: needs cache.center beside it"),
        ({"threshold": 0.1}, "cache.threshold: has no effect with policy 'interval' of method 'taylorseer'"),
        (
            {"policy": "compare", "signal": "input", "threshold": 0.1, "interval": 4},
            "cache.interval: has no effect with policy 'compare'; it needs policy: interval",
        ),
        ({"method": "easycache", "max_drift": 1}, "cache.max_drift: has no effect with policy 'accumulate' of method"),
        ({"policy": "compare", "signal": "input"}, "cache: policy 'compare' needs cache.threshold"),
        ({"policy": "accumulate", "threshold": 1}, "cache: policy 'accumulate' needs cache.signal"),
        ({"calibration": "a.json"}, "cache.calibration: has no effect with policy 'interval' of method 'taylorseer'"),
        (
            {"method": "magcache", "ratios": [1, 1], "calibration": "a.json"},
            "cache.ratios: cache.calibration already says where this is",
        ),
        (
            {"method": "fbcache", "site": "unet_branch", "signal": "input", "probe": 2},
            "cache.probe: has no effect with",
        ),
        ({"method": "easycache", "order": 1}, "cache.order: has no effect with method 'easycache'"),
        ({"span": [1, 1]}, "cache.span: has no effect with site 'residual' of method 'taylorseer'; it needs"),
        ({"span": [1, 1], "site": "output"}, "cache.span: has no effect with site 'output'; it needs site: span"),
        ({"predictor": "reuse", "order": 1}, "cache.order: has no effect with predictor 'reuse'"),
        ({"method": "reuse", "damping": 0.5}, "cache.damping: has no effect with method 'reuse'"),
        ({"method": "reuse", "coordinate": "sigma"}, "cache.coordinate: has no effect with method 'reuse'"),
        ({"method": "reuse", "max_amplification": 3}, "cache.max_amplification: has no effect with method 'reuse'"),
        (
            {"predictor": "taylor", "max_amplification": 2},
            "cache.max_amplification: has no effect with predictor 'taylor'",
        ),
        ({"method": "taylorseer", "snapshots": 1}, "cache: order 2 needs 3 snapshots, not 1"),
        ({"predictor": "foca", "order": 3}, "cache.order: has no effect with predictor 'foca', which has the order 2"),
        ({"method": "ab-cache", "ridge": 0.1}, "cache.ridge: has no effect with method 'ab-cache'"),
        ({"sigma_scale": 0.3}, "cache.sigma_scale: has no effect with method 'taylorseer'"),
        ({"cut": 0.2}, "cache.cut: has no effect without low_order"),
        ({"method": "hicache", "coordinate": "sigma"}, "cache.coordinate: method 'hicache' counts steps"),
        (
            {"predictor": "foca", "low_order": 1},
            "cache.low_order: predictor 'foca' has one order; allowed beside it: 0",
        ),
        ({"method": "reuse", "trust": 0.5}, "cache.trust: has no effect with method 'reuse'"),
        ({"low_order": 2, "order": 1, "snapshots": 2}, "cache: order 2 needs 3 snapshots, not 2"),
        ({"predictor": "dmd", "snapshots": 3}, "cache: predictor 'dmd' needs 4 snapshots, not 3"),
        ({"method": "spectrum", "snapshots": 1}, "cache: predictor 'chebyshev' needs 2 snapshots, not 1"),
        (
            {"predictor": "taylor", "coordinate": "sigma"},
            "cache.coordinate: predictor 'taylor' counts steps; sigma is for poly, ab2, foca",
        ),
    ],
)
def test_an_impossible_combination_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan({"cache": settings})
    assert len(caught.value.problems) == 1
    assert caught.value.problems[0].startswith(message)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"order": 2, "snapshots": 3},
        {"first_enhance": 25, "cooldown": 25},
        {"first_enhance": 50},
        {"mask": [0, 49]},
        {"mask": [0, 9], "cooldown": 0},
        {"span": [1, 1], "site": "span"},
        {"site": "span"},
        {"method": "reuse", "order": 0},
        {"method": "reuse", "predictor": "poly", "order": 1, "damping": 0.5},
        {"predictor": "taylor", "coordinate": "index", "order": 2},
        {"interval": 1},
        {"predictor": "foca", "order": 2, "low_order": 0, "cut": 0.2, "coordinate": "sigma"},
        {"method": "freqca", "cut": 0.2, "sigma_scale": 0.3, "coordinate": "index"},
        {"method": "spectrum", "snapshots": 3, "order": 4, "ridge": 0.01, "blend": 1},
        {"method": "dmd", "trust": 0.25, "damping": 0.9},
        {"low_order": 0, "order": 2},
        {"policy": "mask", "mask": [0, 3]},
        {"policy": "geometric", "budget": 9},
        {"budget": 9, "power": 2.5},
        {"bins": "ultra"},
        {"method": "easycache", "bins": "slow"},
        {"policy": "window", "window": 3, "growth": 1, "first_enhance": 4},
        {"policy": "compare", "signal": "input", "threshold": 0.1, "max_drift": 0.3, "order": 2},
        {"method": "easycache", "mask": [0, 3], "max_skips": 2},
        {"method": "easycache", "policy": "interval", "interval": 3},
        {"method": "magcache", "ratios": [1, 0.9], "retention": 0},
        {"method": "magcache"},
        {"method": "teacache", "calibration": Path("a.json"), "threshold": 0.1},
        {"method": "fbcache", "span": [2, 1]},
    ],
)
def test_what_is_possible_is_taken(settings: dict[str, Any]) -> None:
    assert load_plan({"cache": settings}).cache == Cache(**settings)


def test_a_conflict_points_at_the_line_of_the_key_that_was_given(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    file.write_text("cache:\n  first_enhance: 30\n", encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file, ["generation.num_inference_steps=20"])
    assert caught.value.problems[0].startswith(f"{file}:2: cache.first_enhance: a warm-up of 30 steps")
    file.write_text("seed: 1\ngeneration:\n  num_inference_steps: 20\n", encoding="utf-8")
    with pytest.raises(PlanError) as caught:
        load_plan(file, cache__first_enhance=30)
    assert caught.value.problems[0].startswith("load_plan(..., cache__first_enhance=30): a warm-up of 30 steps")


def test_nothing_is_concluded_from_a_value_that_was_refused() -> None:
    with pytest.raises(PlanError) as caught:
        load_plan({"cache": {"order": 2, "snapshots": "one", "mask": [4]}})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["cache.snapshots", "cache.mask"]
    with pytest.raises(PlanError) as caught:
        load_plan({"cache": {"first_enhance": 60}, "generation": {"num_inference_steps": "x"}})
    assert len(caught.value.problems) == 1


def test_steps_that_the_caller_decides_are_not_guessed() -> None:
    plan = build_plan("taylorseer", (), {"first_enhance": 60}, caller="accelerate", own_steps=True)
    assert plan.cache == Cache(first_enhance=60)
    with pytest.raises(PlanError, match="longer than the run's 20 steps"):
        build_plan(
            {"generation": {"num_inference_steps": 20}}, (), {"first_enhance": 60}, caller="accelerate", own_steps=True
        )
