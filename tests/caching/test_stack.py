"""Layers on top of each other: one clock, one name for each branch, a report of each."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from hasten import accelerate
from hasten.errors import PlanError
from hasten.handle import Handle

STACK: list[dict[str, Any]] = [
    {"method": "reuse", "site": "residual", "interval": 2, "first_enhance": 1},
    {"method": "reuse", "site": "output", "interval": 3, "first_enhance": 1},
]


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.qwen(blocks=2)


def run(pipe: Any, steps: int = 8) -> Tensor:
    return pipe(**tiny.qwen_call(steps), return_dict=False)[0]


def kinds(report: Any) -> str:
    return "".join("C" if step.computed else "s" for step in report.steps)


def test_each_layer_keeps_its_own_schedule_and_the_outer_one_is_asked_first(pipe: Any) -> None:
    with accelerate(pipe, cache=STACK) as handle:
        run(pipe)
    report = handle.report()
    outer, inner = report.layers
    assert (outer.site, inner.site) == ("output", "residual")  # however the plan lists them
    assert kinds(outer) == "CssCssCC"
    # It is only asked where the outer layer computes: steps 0, 3, 6 and 7.
    assert [step.index for step in inner.steps] == [0, 3, 6, 7]
    assert kinds(inner) == "CsCC"
    assert kinds(report) == "CsssssCC"


def test_the_whole_counts_a_step_as_computed_where_nothing_was_left_out(pipe: Any) -> None:
    with accelerate(pipe, cache=STACK) as handle:
        run(pipe)
    report = handle.report()
    assert (report.method, report.site, report.predictor) == ("reuse", "output, residual", "reuse")
    assert report.computed_steps + report.skipped_steps == 8
    assert report.steps[3].reason == "residual left out"
    assert report.steps[6].reason == "nothing left out"
    assert {(row.branch, row.computed, row.skipped) for row in report.branches} == {("cond", 3, 5), ("uncond", 3, 5)}
    assert report.snapshot_bytes >= max(layer.snapshot_bytes for layer in report.layers)
    text = str(report)
    assert "output: transformer, cond: 4 computed" in text
    assert "residual: transformer, uncond: 3 computed" in text
    data = json.loads(json.dumps(report.to_dict()))
    assert [layer["site"] for layer in data["layers"]] == ["output", "residual"]


def test_one_layer_in_a_list_reports_as_one_that_is_no_list(pipe: Any) -> None:
    reports = []
    for cache in (STACK[0], STACK[:1]):
        with accelerate(pipe, cache=cache) as handle:
            run(pipe)
        reports.append(handle.report())
    assert reports[0].layers == reports[1].layers == ()
    assert reports[0].to_dict().keys() == reports[1].to_dict().keys()
    assert "layers" not in reports[0].to_dict()
    assert reports[0].branches == reports[1].branches


@pytest.mark.parametrize("options", [{"interval": 1}, {"mask": list(range(8))}], ids=str)
def test_layers_that_skip_nothing_change_nothing(pipe: Any, options: dict[str, Any]) -> None:
    plain = run(pipe)
    with accelerate(pipe, cache=[{"site": "output", **options}, {"site": "residual", **options}]) as handle:
        assert torch.equal(run(pipe), plain)
    assert handle.report().skipped == 0
    assert torch.equal(run(pipe), plain)


def test_a_stack_is_taken_off_whole(pipe: Any) -> None:
    before = {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()}
    handle = accelerate(pipe, cache=STACK)
    run(pipe)
    handle.remove()
    assert {name: dict(vars(module)) for name, module in pipe.transformer.named_modules()} == before


def test_a_stack_that_skips_nothing_says_so_once(pipe: Any) -> None:
    with accelerate(pipe, cache=STACK):
        with pytest.warns(UserWarning, match="skipped nothing"):
            run(pipe, steps=2)
        run(pipe, steps=2)  # a warning would be an error here


def test_snapshots_of_all_layers_are_freed_when_the_run_is_over(pipe: Any) -> None:
    handle: Handle
    with accelerate(pipe, cache=STACK) as handle:
        run(pipe)
        assert not any(layer.nbytes() for layer in handle._stack.layers)


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        (("output", "output"), "sections 0 and 1 both cache site output"),
        (("span", "residual"), "sections 0 and 1 leave out the same modules"),
    ],
)
def test_two_layers_for_the_same_work_are_refused(pipe: Any, sites: tuple[str, str], reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        accelerate(pipe, cache=[{"site": site} for site in sites])
