"""Wiring is learned from one call, with no knowledge of the model's class."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten.caching.wiring import Span, Stream, Watcher, Wiring, repeated_blocks


class Block(nn.Module):
    """One stream."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * torch.tanh(self.linear(x))


class Pair(nn.Module):
    """Two streams, given by keyword, returned in another order."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return text + self.linear(text), image + self.linear(image) + text.mean(1, keepdim=True)


class Writes(nn.Module):
    """Changes its input in place."""

    def __init__(self, dim: int = 8) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x += self.linear(x)
        return x


class Model(nn.Module):
    """Its forward is the test's."""

    def __init__(self, run: Callable[[Any, Tensor], Tensor], *blocks: nn.Module, **more: nn.Module) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)
        self.out = nn.Linear(8, 8)
        for name, module in more.items():
            setattr(self, name, module)
        self.run = run

    def forward(self, x: Tensor) -> Tensor:
        return self.run(self, x)


def chain(model: Any, x: Tensor) -> Tensor:
    for block in model.blocks:
        x = block(x)
        assert x.shape[-1] == 8  # looking at a shape reads no values
        assert x.dtype == torch.float32
    return model.out(x)


@torch.no_grad()
def learn(model: nn.Module, *args: Any, first: int = 0, last: int = 0, **kwargs: Any) -> Wiring:
    watcher = Watcher(repeated_blocks(model), first, last)
    before = [dict(vars(module)) for module in model.modules()]
    with watcher:
        result = model(*args, **kwargs)
    watcher.returned(result)
    assert before == [dict(vars(module)) for module in model.modules()]
    return watcher.wiring


def test_an_unbroken_chain_is_one_span() -> None:
    wiring = learn(Model(chain, *(Block() for _ in range(5))), tiny.noise(2, 3, 8))
    assert wiring.spans == (Span(0, 4, (Stream(0, 0),)),)


def test_first_and_last_blocks_can_be_kept() -> None:
    wiring = learn(Model(chain, *(Block() for _ in range(5))), tiny.noise(2, 3, 8), first=1, last=2)
    assert wiring.spans == (Span(1, 2, (Stream(0, 0),)),)


@pytest.mark.parametrize("used", ["both", "image"])
def test_only_streams_that_are_read_after_the_span_belong_to_it(used: str) -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        image, text = x, x[:, :2]
        for block in model.blocks:
            text, image = block(image=image, text=text)
        return model.out(image if used == "image" else torch.cat([text, image], 1))

    streams = learn(Model(run, *(Pair() for _ in range(4))), tiny.noise(2, 5, 8)).spans[0].streams
    image, text = Stream(1, "image"), Stream(0, "text")
    assert streams == ((image,) if used == "image" else (text, image))


def test_with_last_blocks_kept_both_streams_are_needed() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        image, text = x, x[:, :2]
        for block in model.blocks:
            text, image = block(image=image, text=text)
        return model.out(image)

    wiring = learn(Model(run, *(Pair() for _ in range(4))), tiny.noise(2, 5, 8), last=1)
    assert wiring.spans == (Span(0, 2, (Stream(0, "text"), Stream(1, "image"))),)


def test_the_span_ends_where_something_is_added_between_blocks() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        for index, block in enumerate(model.blocks):
            x = block(x)
            if index == 2:
                x = x + 1
        return model.out(x)

    wiring = learn(Model(run, *(Block() for _ in range(6))), tiny.noise(2, 3, 8))
    assert [(span.first, span.last) for span in wiring.spans] == [(0, 2), (3, 5)]


def test_the_span_ends_where_a_skip_connection_branches_off() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        for index, block in enumerate(model.blocks):
            x = block(x)
            if index == 1:
                kept = x
        return model.out(x + kept)

    wiring = learn(Model(run, *(Block() for _ in range(6))), tiny.noise(2, 3, 8))
    assert [(span.first, span.last) for span in wiring.spans] == [(0, 1), (2, 5)]


def test_the_models_result_counts_as_read() -> None:
    def run(model: Any, x: Tensor) -> Any:
        middle = []
        for block in model.blocks:
            x = block(x)
            middle.append(x)
        return model.out(x), {"features": [middle[1]]}

    wiring = learn(Model(run, *(Block() for _ in range(4))), tiny.noise(2, 3, 8))
    assert [(span.first, span.last) for span in wiring.spans] == [(0, 1), (2, 3)]


@pytest.mark.parametrize(
    ("run", "blocks", "why"),
    [
        (chain, [Writes() for _ in range(4)], "changes"),
        (lambda model, x: model.out(sum(block(x) for block in model.blocks)), [Block() for _ in range(4)], "reads"),
        (lambda model, x: model.out(x), [Block() for _ in range(4)], "calls no list"),
        (lambda model, x: model.out(x), [], "calls no list"),
    ],
    ids=["in place", "parallel", "never called", "no blocks"],
)
def test_what_cannot_be_left_out_says_why(run: Any, blocks: list[nn.Module], why: str) -> None:
    wiring = learn(Model(run, *blocks), tiny.noise(2, 3, 8))
    assert not wiring.spans
    assert why in wiring.reason


def test_a_chain_with_pieces_everywhere_is_left_alone() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x) + 1  # as a ControlNet does
        return model.out(x)

    assert not learn(Model(run, *(Block() for _ in range(6))), tiny.noise(2, 3, 8)).spans


def test_two_lists_in_a_row_are_one_span_and_a_small_list_beside_them_stays() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        text = x[:, :2]
        for block in model.refiner:
            text = block(text)
        x = x + text.mean(1, keepdim=True)
        for block in (*model.blocks, *model.more):
            x = block(x)
        return model.out(x)

    model = Model(
        run,
        *(Block() for _ in range(8)),
        more=nn.ModuleList(Block() for _ in range(8)),
        refiner=nn.ModuleList(Block() for _ in range(2)),
    )
    (span,) = learn(model, tiny.noise(2, 3, 8)).spans
    assert span.last - span.first == 15


def test_a_refiner_that_hands_over_to_the_main_stack_is_not_its_beginning() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        text = x[:, :2]
        for block in model.refiner:
            text = block(text)
        image = x + 1
        for block in model.blocks:
            text, image = block(image, text)
        return model.out(image)

    model = Model(run, *(Pair() for _ in range(8)), refiner=nn.ModuleList(Block() for _ in range(2)))
    assert learn(model, tiny.noise(2, 5, 8)).spans == (Span(2, 9, (Stream(1, 0),)),)


def test_when_too_little_hangs_together_nothing_is_left_out() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        for index, block in enumerate(model.blocks):
            x = block(x) if index < 3 else block(x) + 1
        return model.out(x)

    assert not learn(Model(run, *(Block() for _ in range(6))), tiny.noise(2, 3, 8)).spans


def test_keeping_all_blocks_leaves_nothing_to_skip() -> None:
    wiring = learn(Model(chain, *(Block() for _ in range(4))), tiny.noise(2, 3, 8), first=2, last=2)
    assert not wiring.spans
    assert "no block is left" in wiring.reason


def test_a_stream_of_another_shape_than_it_entered_with_is_stored_as_it_is() -> None:
    class Widens(nn.Module):
        def __init__(self, dim: int) -> None:
            super().__init__()
            self.linear = nn.Linear(dim, 2 * dim)

        def forward(self, x: Tensor) -> Tensor:
            return self.linear(x)

    def run(model: Any, x: Tensor) -> Tensor:
        for block in model.blocks:
            x = block(x)
        return x.sum(-1)

    (span,) = learn(Model(run, Widens(8), Widens(16)), tiny.noise(2, 3, 8)).spans
    assert span.streams == (Stream(0, None),)


def test_a_last_block_that_returns_none_for_a_stream_keeps_the_streams_apart() -> None:
    class MaybePair(Pair):
        def __init__(self, last: bool = False) -> None:
            super().__init__()
            self.last = last

        def forward(self, image: Tensor, text: Tensor) -> Any:
            text, image = super().forward(image, text)
            return (None if self.last else text), image

    def run(model: Any, x: Tensor) -> Tensor:
        image, text = x, x + 1  # of one shape, so that shapes cannot tell them apart
        for block in model.blocks:
            text, image = block(image=image, text=text)
        return model.out(image)

    # As Stable Diffusion 3 does.
    wiring = learn(Model(run, MaybePair(), MaybePair(), MaybePair(last=True)), tiny.noise(2, 5, 8))
    assert wiring.spans == (Span(0, 2, (Stream(1, "image"),)),)


def test_lists_of_lists_and_lists_within_blocks() -> None:
    class Nested(Block):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.ModuleList([Block(), Block()])

    model = nn.Module()
    model.stack = nn.ModuleList([nn.ModuleList([Nested(), Nested()]), nn.ModuleList([Nested()])])
    assert repeated_blocks(model) == [block for stage in model.stack for block in stage]


def test_what_an_exception_leaves_behind_is_nothing() -> None:
    def run(model: Any, x: Tensor) -> Tensor:
        x = model.blocks[0](x)
        raise RuntimeError("stop")

    model = Model(run, Block(), Block())
    before = [dict(vars(module)) for module in model.modules()]
    with pytest.raises(RuntimeError, match="stop"), Watcher(repeated_blocks(model)):
        model(tiny.noise(2, 3, 8))
    assert before == [dict(vars(module)) for module in model.modules()]


def transformer_call(pipe: Any, call: dict[str, Any], name: str = "transformer") -> tuple[Any, Any]:
    """The arguments of the first call of a pipeline's denoiser."""

    class CaughtError(Exception):
        pass

    caught: list[Any] = []

    def catch(module: nn.Module, args: Any, kwargs: Any) -> None:
        caught.append((args, kwargs))
        raise CaughtError

    handle = getattr(pipe, name).register_forward_pre_hook(catch, with_kwargs=True)
    with pytest.raises(CaughtError):
        pipe(**call)
    handle.remove()
    return caught[0]


def test_qwen_image_is_one_span_whose_text_stream_nobody_reads() -> None:
    pipe = tiny.qwen(blocks=4)
    args, kwargs = transformer_call(pipe, tiny.qwen_call(2))
    assert learn(pipe.transformer, *args, **kwargs).spans == (Span(0, 3, (Stream(1, "hidden_states"),)),)
    both = (Stream(0, "encoder_hidden_states"), Stream(1, "hidden_states"))
    assert learn(pipe.transformer, *args, first=1, last=1, **kwargs).spans == (Span(1, 2, both),)


def test_flux_is_one_span_over_both_of_its_lists() -> None:
    pipe = tiny.flux(blocks=2, single_blocks=3)
    args, kwargs = transformer_call(pipe, tiny.flux_call(2))
    assert learn(pipe.transformer, *args, **kwargs).spans == (Span(0, 4, (Stream(1, "hidden_states"),)),)


def test_wan_passes_its_stream_by_position() -> None:
    pipe = tiny.wan()
    args, kwargs = transformer_call(pipe, tiny.wan_call(2))
    assert learn(pipe.transformer, *args, **kwargs).spans == (Span(0, 2, (Stream(0, 0),)),)


def test_control_residuals_break_the_chain() -> None:
    pipe = tiny.qwen(blocks=6)
    args, kwargs = transformer_call(pipe, tiny.qwen_call(2))
    residuals = [tiny.noise(1, 4, 32, seed=k) for k in range(6)]
    assert not learn(pipe.transformer, *args, **kwargs, controlnet_block_samples=residuals).spans
