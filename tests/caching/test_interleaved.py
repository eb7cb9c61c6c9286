"""Stacks that are no plain row of blocks are found by following a call operation by operation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten.caching.interleaved import StackTracer
from hasten.caching.sites import MisfitError, UnfitError
from hasten.caching.spans import SpanSite
from hasten.caching.tracing import UntraceableError, follow

X = tiny.noise(1, 6, 8)


class Block(nn.Module):
    """One stream, and whatever hint there is."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, hint: Tensor | None = None) -> Tensor:
        x = x + torch.tanh(self.linear(x))
        return x if hint is None else x + hint


class Model(nn.Module):
    """`way` is what it does with its blocks."""

    def __init__(self, way: Callable[[Any, Tensor], Tensor], blocks: int = 4) -> None:
        super().__init__()
        self.before, self.after, self.guide = nn.Linear(8, 8), nn.Linear(8, 8), Block()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.way = way
        tiny.random_(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.way(self, self.before(x)))


def hinted(model: Any, x: Tensor) -> Tensor:
    """A hint is added between blocks, as a ControlNet or a face adapter does; making it is work, too."""
    hint = model.guide(torch.ones_like(x))
    first, *rest = model.blocks
    x = first(x)
    for block in rest:
        x = block(x + 0.1 * hint)
    return x


def laid_out_anew(model: Any, x: Tensor) -> Tensor:
    """Attention over space and over time by turns."""
    for number, block in enumerate(model.blocks):
        x = block(x) if number % 2 == 0 else block(x.reshape(3, 2, 8)).reshape(1, 6, 8)
    return x


def joined_on_the_way(model: Any, x: Tensor) -> Tensor:
    """Another stream is appended after half of the blocks: two stacks."""
    for block in model.blocks[:2]:
        x = block(x)
    x = torch.cat([x, X[:, :2]], dim=1)
    for block in model.blocks[2:]:
        x = block(x)
    return x[:, :6]


def exact(values: tuple[Tensor, ...]) -> Callable[[int, Tensor | None, torch.dtype], Tensor]:
    return lambda slot, base, dtype: values[slot].clone() if base is None else base + values[slot]


def ran(model: Any) -> list[int]:
    modules = [*model.blocks, *([model.guide] if hasattr(model, "guide") else [])]
    counts = [0] * len(modules)
    for number, block in enumerate(modules):
        block.register_forward_hook(lambda *_, number=number: counts.__setitem__(number, counts[number] + 1))
    return counts


@pytest.mark.parametrize(
    ("way", "streams", "runs"),
    [
        (hinted, 1, [0, 0, 0, 0, 0]),
        (laid_out_anew, 2, [0, 0, 0, 0, 0]),  # the first block is laid out otherwise than the last: a stack of its own
        (joined_on_the_way, 2, [0, 0, 0, 0, 0]),
    ],
)
def test_what_only_serves_the_stack_is_left_out(way: Any, streams: int, runs: list[int]) -> None:
    model = Model(way)
    if way is not hinted:
        del model.guide
        runs = runs[:-1]
    site, blanks = SpanSite(model), {}
    with torch.no_grad():
        result, values = site.compute(model, (X,), {}, blanks, None, keep=True)
        assert torch.equal(result, model(X))
        assert len(values) == streams
        counts = ran(model)
        again = site.skip(model, (X,), {}, blanks, exact(values))
        assert torch.allclose(again, result, atol=1e-6)
        assert counts == runs
        # What enters at the skipped step still counts.
        assert not torch.allclose(site.skip(model, (2 * X,), {}, blanks, exact(values)), result, atol=1e-3)
        _, same = site.compute(model, (X,), {}, blanks, None, keep=True)
    assert all(torch.equal(one, other) for one, other in zip(same, values, strict=True))
    site.detach()
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


def test_blocks_at_both_ends_can_keep_running() -> None:
    model = Model(hinted, blocks=8)
    site, blanks = SpanSite(model, 1, 1), {}
    _, values = site.compute(model, (X,), {}, blanks, None, keep=True)
    counts = ran(model)
    site.skip(model, (X,), {}, blanks, exact(values))
    assert counts == [1, 0, 0, 0, 0, 0, 0, 1, 1]  # the last one needs the hint


def needed_elsewhere(model: Any, x: Tensor) -> Tensor:
    middle = []
    for block in model.blocks:
        x = block(x) * 1.0
        middle.append(x)
    return x + sum(middle)


def wild(model: Any, x: Tensor) -> Tensor:
    """Code that does not bear to be followed."""
    if torch.overrides._get_current_function_mode() is not None:
        raise RuntimeError("no modes, please")
    for block in model.blocks:
        x = block(x)
    return x


@pytest.mark.parametrize(
    ("way", "reason"),
    [(needed_elsewhere, "left out together|needed elsewhere")],
)
def test_where_there_is_no_such_stack_the_step_is_computed_and_the_reason_told(way: Any, reason: str) -> None:
    model = Model(way)
    site = SpanSite(model)
    with torch.no_grad():
        with pytest.raises(MisfitError, match=reason) as caught:
            site.compute(model, (X,), {}, {}, None, keep=True)
        assert torch.equal(caught.value.result, model(X))
        with pytest.raises(UnfitError, match=reason):
            site.compute(model, (X,), {}, {}, None, keep=True)


def test_a_model_that_cannot_be_followed_says_so() -> None:
    model = Model(wild)
    with pytest.raises(UntraceableError, match="RuntimeError"):
        follow(StackTracer(model), model, (X,), {})
    assert model(X).isfinite().all()
    assert not any("_compiled_call_impl" in vars(module) for module in model.modules())


def test_arguments_that_a_model_empties_are_there_when_it_is_called_again() -> None:
    class Takes(Model):
        def forward(self, x: Tensor, hints: list[Tensor]) -> Tensor:  # type: ignore[override]
            for block in self.blocks:
                x = block(x) + hints.pop(0)
            return self.after(x)

    model = Takes(hinted)
    hints = [tiny.noise(1, 6, 8, seed=k) for k in range(4)]
    expected = model(X, list(hints))
    site, blanks = SpanSite(model), {}
    result, values = site.compute(model, (X, list(hints)), {}, blanks, None, keep=True)
    assert torch.equal(result, expected)
    assert torch.allclose(site.skip(model, (X, list(hints)), {}, blanks, exact(values)), expected, atol=1e-6)
