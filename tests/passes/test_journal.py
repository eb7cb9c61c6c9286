"""The journal: whatever an operation does to a module is put back exactly."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from hasten.passes.journal import reversible


def model() -> nn.Module:
    made = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    return made.requires_grad_(False)


def state(module: nn.Module) -> list[Any]:
    """Every attribute of every module, dictionaries by their entries in order."""
    return [
        (name, key, list(value.items()) if isinstance(value, dict) else value)
        for name, one in module.named_modules()
        for key, value in vars(one).items()
    ]


def halve(module: nn.Module) -> None:
    module.half()


def exchange(module: nn.Module) -> None:
    module[0] = nn.Identity()  # type: ignore[operator]


def hook(module: nn.Module) -> None:
    module[2].register_forward_hook(lambda *_: None)  # type: ignore[index]
    module[2].forward = lambda x: x  # type: ignore[index]


def take_out(module: nn.Module) -> None:
    module[0].register_parameter("bias", None)  # type: ignore[index]
    del module._modules["1"]


@pytest.mark.parametrize("operation", [halve, exchange, hook, take_out])
def test_what_an_operation_did_is_undone_entry_by_entry(operation: Any) -> None:
    module = model()
    before, values = state(module), [p.clone() for p in module.parameters()]
    undo = reversible(module, lambda: operation(module), weights=operation is halve)
    assert str(state(module)) != str(before)
    undo()
    after = state(module)
    assert len(after) == len(before)
    for (*place, one), (*other_place, other) in zip(before, after, strict=True):
        assert place == other_place
        same = [k for k, _ in one] == [k for k, _ in other] if isinstance(one, list) else one is other
        assert same
        if isinstance(one, list):
            assert all(a is b for (_, a), (_, b) in zip(one, other, strict=True))
    assert all(torch.equal(one, other) for one, other in zip(values, module.parameters(), strict=True))


def test_an_operation_that_fails_halfway_leaves_nothing() -> None:
    module = model()

    def fail() -> None:
        module.half()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        reversible(module, fail, weights=True)
    assert {p.dtype for p in module.parameters()} == {torch.float32}


def test_what_somebody_else_changed_since_is_left_alone() -> None:
    module = model()
    undo = reversible(module, lambda: exchange(module))
    theirs = nn.Linear(1, 1)
    module[0] = theirs
    undo()
    assert module[0] is theirs


def test_tied_weights_stay_tied() -> None:
    module = model()
    module.tied = module[0].weight  # type: ignore[index]
    original = module.tied
    undo = reversible(module, lambda: halve(module), weights=True)
    assert module.tied is module[0].weight  # type: ignore[index]
    assert module.tied.dtype is torch.float16
    undo()
    assert module.tied is module[0].weight is original  # type: ignore[index]
