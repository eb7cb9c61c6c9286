"""Taps come off without a trace, whatever else was put over them."""

from __future__ import annotations

import copy
import inspect
from typing import Any

import torch
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module
from torch import nn

from hasten.caching.patching import CALL, Tap, is_tapped


class Scheduler:
    def step(self, output: float, timestep: float, eta: float = 0.0) -> float:
        return output + timestep


def through(inner: Any, args: Any, kwargs: Any) -> Any:
    return inner(*args, **kwargs)


def doubled(inner: Any, args: Any, kwargs: Any) -> Any:
    return 2 * inner(*args, **kwargs)


def test_a_tapped_method_keeps_its_signature() -> None:
    scheduler = Scheduler()
    tap = Tap(scheduler, "step", doubled)
    assert scheduler.step(1, 2) == 6
    assert list(inspect.signature(scheduler.step).parameters) == ["output", "timestep", "eta"]
    tap.remove()
    assert vars(scheduler) == {}
    assert scheduler.step(1, 2) == 3


def test_removing_in_any_order_restores() -> None:
    scheduler = Scheduler()
    first, second = Tap(scheduler, "step", doubled), Tap(scheduler, "step", doubled)
    assert scheduler.step(1, 2) == 12
    first.remove()
    assert scheduler.step(1, 2) == 6
    second.remove()
    assert vars(scheduler) == {}


def test_a_deep_copy_is_plain_and_works_on_its_own_object() -> None:
    scheduler = Scheduler()
    Tap(scheduler, "step", doubled)
    twin = copy.deepcopy(scheduler)
    assert twin.step(1, 2) == 3
    assert twin.step.__self__ is twin

    module = nn.Linear(2, 2)
    Tap(module, CALL, doubled)
    other = copy.deepcopy(module)
    assert not is_tapped(other, CALL)
    assert torch.equal(2 * other(torch.ones(2)), module(torch.ones(2)))


def test_calls_of_a_module_are_tapped_outside_of_its_hooks() -> None:
    module = nn.Linear(2, 2)
    seen: list[str] = []
    handle = module.register_forward_hook(lambda *_: seen.append("hook"))
    tap = Tap(module, CALL, lambda inner, args, kwargs: None)
    assert module(torch.ones(2)) is None
    assert seen == []
    tap.remove()
    module(torch.ones(2))
    assert seen == ["hook"]
    handle.remove()


def test_offloading_hooks_may_come_and_go_while_a_tap_is_on() -> None:
    module = nn.Linear(2, 2)
    plain = module(torch.ones(2))
    before = dict(vars(module))
    tap = Tap(module, CALL, doubled)
    add_hook_to_module(module, ModelHook())
    assert torch.equal(module(torch.ones(2)), 2 * plain)
    remove_hook_from_module(module)
    assert torch.equal(module(torch.ones(2)), 2 * plain)
    add_hook_to_module(module, ModelHook())
    tap.remove()
    assert torch.equal(module(torch.ones(2)), plain)
    remove_hook_from_module(module)
    vars(module).pop("forward")  # accelerate leaves the bound method on the instance
    assert vars(module) == before


def test_a_tap_with_something_over_it_becomes_transparent() -> None:
    module = nn.Linear(2, 2)
    plain = module(torch.ones(2))
    tap = Tap(module, CALL, doubled)
    compiled = vars(module)[CALL]
    vars(module)[CALL] = lambda *args: compiled(*args)
    tap.remove()
    assert torch.equal(module(torch.ones(2)), plain)


def test_a_compiled_call_stays_beneath() -> None:
    module = nn.Linear(2, 2)
    module.compile(backend="eager")
    compiled = vars(module)[CALL]
    tap = Tap(module, CALL, through)
    assert tap.inner is compiled
    tap.remove()
    assert vars(module)[CALL] is compiled
