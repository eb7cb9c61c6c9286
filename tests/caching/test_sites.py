"""Sites: what is left out, what is put in, and what happens when a model does not keep to what was learned."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.caching.sites import MisfitError, OutputSite, UnfitError
from hasten.caching.spans import SpanSite
from hasten.caching.trees import Meta, replace, tensors


class Block(nn.Module):
    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)
        self.calls = 0

    def forward(self, x: Tensor, t: float = 1.0) -> Tensor:
        self.calls += 1
        return x + t * torch.tanh(self.linear(x))


class Model(nn.Module):
    """Blocks in a row; `way` decides which of them are called."""

    def __init__(self, blocks: int = 4, way: Callable[[Any, Tensor, float], Tensor] | None = None) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        self.out = nn.Linear(8, 8)
        self.way = way
        self.left_out: set[int] = set()
        tiny.random_(self, 0)

    def forward(self, x: Tensor, t: float = 1.0) -> Tensor:
        if self.way is not None:
            return self.way(self, x, t)
        for index, block in enumerate(self.blocks):
            if index not in self.left_out:
                x = block(x, t)
        return self.out(x)


X = tiny.noise(2, 3, 8)


def newest(values: tuple[Tensor, ...]) -> Callable[[int, Tensor | None, torch.dtype], Tensor]:
    def predict(slot: int, base: Tensor | None, dtype: torch.dtype) -> Tensor:
        return values[slot] if base is None else base + values[slot]

    return predict


@pytest.mark.parametrize(("first", "last", "runs"), [(0, 0, 0), (1, 0, 1), (1, 1, 2)])
def test_a_skipped_call_runs_only_the_blocks_that_are_kept(first: int, last: int, runs: int) -> None:
    model = Model()
    site = SpanSite(model, first, last)
    blanks: dict[int, Any] = {}
    for _ in range(2):  # watched, then known
        result, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
        for block in model.blocks:
            block.calls = 0
        again = site.skip(model, (X, 0.5), {}, blanks, newest(values))
        assert torch.allclose(again, result, atol=1e-6)
        assert sum(block.calls for block in model.blocks) == runs
    site.detach()
    assert all("_compiled_call_impl" not in vars(block) for block in model.blocks)


def test_what_enters_at_the_skipped_step_still_counts() -> None:
    model = Model()
    site = SpanSite(model)
    blanks: dict[int, Any] = {}
    _, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
    (change,) = values
    skipped = site.skip(model, (2 * X, 0.1), {}, blanks, newest(values))
    assert torch.allclose(skipped, model.out(2 * X + change), atol=1e-6)


def test_blocks_that_are_not_called_any_more_are_noticed() -> None:
    model = Model()
    site = SpanSite(model)
    blanks: dict[int, Any] = {}
    _, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
    model.left_out = {1}
    with pytest.raises(UnfitError, match="other blocks"):
        site.skip(model, (X, 0.5), {}, blanks, newest(values))
    # A computed call that goes another way is right, gives no values, and is watched anew the next time.
    expected = model(X, 0.5)
    result, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
    assert torch.equal(result, expected)
    assert values == ()
    _, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
    assert torch.allclose(site.skip(model, (X, 0.5), {}, blanks, newest(values)), expected, atol=1e-6)


def test_blocks_left_out_at_the_end_are_noticed_too() -> None:
    model = Model()
    site = SpanSite(model)
    blanks: dict[int, Any] = {}
    _, values = site.compute(model, (X, 0.5), {}, blanks, None, keep=True)
    model.left_out = {3}
    with pytest.raises(UnfitError, match="other blocks"):
        site.skip(model, (X, 0.5), {}, blanks, newest(values))


def test_a_layer_that_is_skipped_at_some_steps_costs_a_computed_step_and_not_the_image() -> None:
    # Skip-layer guidance leaves a block out in one of its passes.
    model = Model()
    with accelerate(model, interval=3, first_enhance=1) as handle, torch.no_grad():
        for k in range(9):
            model.left_out = {2} if k >= 4 else set()
            out = model(X, 1 - k / 9)
            if k == 4:
                exact = model.out(model.blocks[3](model.blocks[1](model.blocks[0](X, 5 / 9), 5 / 9), 5 / 9))
                assert torch.allclose(out, exact, atol=1e-6)
    assert handle.report().steps[4].computed
    assert handle.report().steps[4].reason.startswith("other blocks")


def sneaks(model: Any, x: Tensor, t: float) -> Tensor:
    """Reads what a block returned where no watcher sees it: through numpy's view of the memory."""
    middle = None
    for index, block in enumerate(model.blocks):
        x = block(x, t)
        if index == 1:
            with torch._C.DisableTorchFunction():
                middle = x + 0
    return model.out(x) + middle


def remembers(model: Any, x: Tensor, t: float) -> Tensor:
    """Blocks that do more than return."""
    before = sum(block.calls for block in model.blocks)
    for block in model.blocks:
        x = block(x, t)
    return model.out(x) + sum(block.calls for block in model.blocks) - before


@pytest.mark.parametrize("way", [sneaks, remembers])
def test_what_watching_cannot_see_is_found_by_trying(way: Any) -> None:
    model = Model(way=way)
    site = SpanSite(model)
    expected = Model(way=way)(X, 0.5)
    with pytest.raises(MisfitError) as caught:
        site.compute(model, (X, 0.5), {}, {}, None, keep=True)
    assert torch.equal(caught.value.result, expected)
    with pytest.raises(UnfitError, match="does not leave the rest"):
        site.compute(model, (X, 0.5), {}, {}, None, keep=True)
    site.detach()


def test_another_sort_of_call_is_learned_apart() -> None:
    def way(model: Any, x: Tensor, t: float | None) -> Tensor:
        seen = []
        for block in model.blocks:
            x = block(x, 1.0 if t is None else t)
            seen.append(x)
        return model.out(x if t is None else sum(seen))

    model = Model(way=way)
    site = SpanSite(model)
    blanks: dict[int, Any] = {}
    _, values = site.compute(model, (X, None), {}, blanks, None, keep=True)
    assert len(values) == 1
    with pytest.raises(UnfitError):
        site.skip(model, (X, 0.5), {}, blanks, newest(values))
    with pytest.raises(MisfitError):
        site.compute(model, (X, 0.5), {}, {}, None, keep=True)
    assert site.skip(model, (X, None), {}, blanks, newest(values)).isfinite().all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float32])
def test_values_are_stored_in_the_format_asked_for(dtype: torch.dtype | None) -> None:
    model = Model().to(torch.bfloat16)
    for site in (SpanSite(model), OutputSite()):
        for _ in range(2):
            _, values = site.compute(model, (X.bfloat16(), 0.5), {}, {}, dtype, keep=True)
            assert [value.dtype for value in values] == [dtype or torch.bfloat16]


def test_a_change_is_taken_in_the_wider_format() -> None:
    class Nudge(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.amount = nn.Parameter(torch.tensor(2.0, dtype=torch.bfloat16))

        def forward(self, x: Tensor, t: float) -> Tensor:
            return x + self.amount

    model = Model(blocks=2)
    model.blocks = nn.ModuleList([Nudge(), Nudge()])
    model.to(torch.bfloat16)
    x = torch.full((1, 8), 256.0, dtype=torch.bfloat16)
    site = SpanSite(model)
    _, (value,) = site.compute(model, (x, 0.5), {}, {}, torch.float32, keep=True)
    assert torch.equal(value, torch.full((1, 8), 4.0))


@dataclass
class Output(OrderedDict):  # as diffusers' outputs are: a dataclass and a mapping
    sample: Tensor
    extra: Any = None


Point = namedtuple("Point", ["x", "y"])


@pytest.mark.parametrize(
    "wrap",
    [
        lambda t: t,
        lambda t: (t,),
        lambda t: [t, None, 3, "text"],
        lambda t: {"a": t, "b": {"c": (t + 1,)}},
        lambda t: Output(t, extra=(t * 2,)),
        lambda t: Point(t, 1.0),
    ],
    ids=["tensor", "tuple", "list", "mapping", "dataclass", "namedtuple"],
)
def test_a_skipped_denoiser_returns_what_a_computed_one_does(wrap: Any) -> None:
    site = OutputSite()
    blanks: dict[int, Any] = {}
    result, values = site.compute(lambda: wrap(X), (), {}, blanks, None, keep=True)
    again = site.skip(lambda: None, (), {}, blanks, lambda slot, base, dtype: values[slot].clone())
    assert type(again) is type(result)
    assert len(list(tensors(again))) == len(list(tensors(result)))
    assert all(torch.equal(one, other) for one, other in zip(tensors(again), tensors(result), strict=True))
    assert all(value.data_ptr() != X.data_ptr() for value in values)


def test_what_cannot_be_built_again_is_refused_with_its_name() -> None:
    class Odd:
        pass

    with pytest.raises(MisfitError, match="Odd"):
        OutputSite().compute(lambda: (X, Odd()), (), {}, {}, None, keep=True)
    with pytest.raises(TypeError, match="Odd"):
        replace((X, Odd()), lambda tensor: tensor)


def test_blanks_take_no_memory_and_hold_no_numbers() -> None:
    blank = Meta.of(torch.randn(64, 64)).blank()
    assert blank.shape == (64, 64)
    assert blank.untyped_storage().nbytes() == 4
    assert blank.isnan().all()
    assert Meta.of(torch.arange(3)).blank().tolist() == [0, 0, 0]
