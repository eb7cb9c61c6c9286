"""What a plan will do is told before it is done."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

import tiny
from hasten import accelerate
from hasten.caching.patching import CALL
from hasten.cli.explain import ranges
from hasten.explain import Explanation, explain
from hasten.plan import load_plan

STEPS = 12


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.qwen()


def explained(pipe: Any, **section: Any) -> tuple[Explanation, ...]:
    return explain(pipe, load_plan({"cache": section}), lambda: pipe(**tiny.qwen_call(STEPS)))


def fates(layer: Explanation) -> str:
    return "".join({"computed": "C", "skipped": "s", "open": "?"}[step.fate] for step in layer.steps)


@pytest.mark.parametrize(
    "section",
    [
        {"method": "taylorseer"},
        {"mask": [0, 2, 5]},
        {"method": "magcache", "ratios": [1 + 0.02 * (-1) ** k * k for k in range(STEPS)], "retention": 0},
        {"method": "taylorseer-lite"},
    ],
)
def test_what_is_told_is_what_happens(pipe: Any, section: dict[str, Any]) -> None:
    (layer,) = explained(pipe, **section)
    with accelerate(pipe, {"cache": section}) as handle:
        pipe(**tiny.qwen_call(STEPS))
    report = handle.report()
    assert fates(layer) == "".join("C" if step.computed else "s" for step in report.steps)
    assert [step.sigma for step in layer.steps] == [step.sigma for step in report.steps]
    assert [step.reason for step in layer.steps if step.fate == "computed"] == [
        step.reason for step in report.steps if step.computed
    ]
    (part,) = layer.parts
    assert part.snapshot_bytes * len(part.branches) * layer.snapshots == report.snapshot_bytes
    assert (part.denoiser, part.branches, part.site) == ("transformer", ("cond", "uncond"), report.site)


def test_a_stack_of_blocks_is_named_with_its_share(pipe: Any) -> None:
    ((part,),) = (layer.parts for layer in explained(pipe, method="fbcache", span=[1, 1]))
    assert part.modules == ("transformer_blocks.1", "transformer_blocks.2")
    assert 0.3 < part.share < 0.6
    ((whole,),) = (layer.parts for layer in explained(pipe, site="output"))
    assert (whole.modules, whole.share) == ((), 1.0)


def test_what_the_run_decides_is_open(pipe: Any) -> None:
    (layer,) = explained(pipe, method="fbcache", cooldown=2)
    assert fates(layer) == "C?????????CC"
    assert layer.steps[3].reason == "probe"
    (layer,) = explained(pipe, method="speca")
    assert fates(layer) == "CCC????????C"


def test_a_method_of_several_layers_is_told_layer_by_layer(pipe: Any) -> None:
    layers = explained(pipe, method="fastercache")
    assert [part.site for layer in layers for part in layer.parts] == ["guidance", "attention"]


def test_explaining_leaves_nothing_behind(pipe: Any) -> None:
    reference = pipe(**tiny.qwen_call(STEPS)).images
    explained(pipe, method="dicache")
    assert all(CALL not in vars(module) for module in pipe.transformer.modules())
    assert torch.equal(pipe(**tiny.qwen_call(STEPS)).images, reference)


def test_an_explanation_is_plain_data(pipe: Any) -> None:
    (layer,) = explained(pipe)
    data = json.loads(json.dumps(layer.to_dict()))
    assert data["steps"][0] == {"index": 0, "sigma": 1.0, "fate": "computed", "reason": "warm-up"}


def test_names_that_differ_in_numbers_only_are_told_as_one() -> None:
    names = [f"{blocks}.{number}.attn" for blocks in ("double", "single") for number in range(12)]
    assert ranges(names) == ["double.0.attn to double.11.attn", "single.0.attn to single.11.attn"]
