"""AngelSlim's interface: lists of blocks, told each step by `cur_timestep`."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from caching import hunyuan
from hasten.caching import CacheHelper, DeepCacheHelper, TaylorCacheHelper, TeaCacheHelper
from hasten.caching.bands import low_pass
from hasten.errors import CacheError

HELPERS = (CacheHelper, DeepCacheHelper, TeaCacheHelper, TaylorCacheHelper)


class Double(nn.Module):
    """Two streams, as in HunyuanVideo: `img, txt = block(img=img, txt=txt, vec=vec)`."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return img + torch.tanh(self.mix(img + txt.mean(1, keepdim=True) + vec)), txt + torch.tanh(self.mix(txt))


class Single(nn.Module):
    """Both streams in one row of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        self.calls = 0

    def forward(self, x: Tensor, vec: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.tanh(self.mix(x + vec))


class Model(nn.Module):
    def __init__(self, doubles: int = 3, singles: int = 0, text_first: bool = False) -> None:
        super().__init__()
        self.double_blocks = nn.ModuleList(Double() for _ in range(doubles))
        self.single_blocks = nn.ModuleList(Single() for _ in range(singles))
        self.text_first = text_first
        tiny.random_(self, 5)

    def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> Tensor:
        for block in self.double_blocks:
            img, txt = self.between(*block(img=img, txt=txt, vec=vec))
        if self.single_blocks:
            n, m = img.shape[1], txt.shape[1]
            x = torch.cat((txt, img) if self.text_first else (img, txt), 1)
            for block in self.single_blocks:
                x = block(x, vec=vec)
            img = x[:, m:] if self.text_first else x[:, :n]
            assert img.shape[1] == n
        return 2 * img

    def between(self, img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
        return img, txt

    @property
    def calls(self) -> list[int]:
        return [block.calls for block in (*self.double_blocks, *self.single_blocks)]  # type: ignore[misc]


def run(
    model: Model, helper: Any, steps: range | list[int], passes: int = 1, tokens: Callable[[int], int] = lambda k: 8
) -> list[list[Tensor]]:
    """What each pass of each step returns."""
    outputs = []
    with torch.no_grad():
        for k in steps:
            if helper is not None:
                helper.cur_timestep = k
            outputs.append(
                [
                    model(wave(k, tokens(k)), tiny.noise(1, 3, 6, seed=p) + 0.1 * k, torch.full((1, 1, 6), 0.05 * k))
                    for p in range(passes)
                ]
            )
    return outputs


def wave(step: int, tokens: int = 8) -> Tensor:
    return tiny.noise(1, tokens, 6, seed=9) * (1 + 0.1 * step) + 0.01 * step**2


def enabled(kind: type[CacheHelper], model: Model, steps: Any, **more: Any) -> Any:
    helper = kind(model.double_blocks, model.single_blocks, steps, **more)
    helper.enable()
    return helper


@pytest.fixture(params=HELPERS, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[CacheHelper]:
    found: type[CacheHelper] = request.param
    return found


@pytest.mark.parametrize("singles", [0, 2])
@pytest.mark.parametrize("passes", [1, 2])
def test_nothing_skipped_and_disabled_are_bit_identical(kind: type[CacheHelper], singles: int, passes: int) -> None:
    model = Model(singles=singles)
    reference = run(model, None, range(5), passes)
    for steps in (None, range(5)):
        helper = enabled(kind, model, steps)
        assert same(run(model, helper, range(5), passes), reference)
        helper.disable()
    helper = enabled(kind, model, {0, 2})
    assert not same(run(model, helper, range(5), passes), reference)
    helper.disable()
    assert not any("_compiled_call_impl" in vars(block) or "forward" in vars(block) for block in model.modules())
    assert same(run(model, None, range(5), passes), reference)


def same(one: list[list[Tensor]], other: list[list[Tensor]]) -> bool:
    return all(torch.equal(torch.cat(a), torch.cat(b)) for a, b in zip(one, other, strict=True))


def test_the_named_steps_are_computed_and_the_first(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {2, 4})
    run(model, helper, range(6))
    assert model.calls == [3, 3, 3]  # 0, 2, 4
    assert [helper.is_skip() for helper.cur_timestep in (5, 4)] == [True, False]


def test_steps_are_counted_from_the_first_of_a_generation(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {0, 2})
    run(model, helper, range(10, 14))  # image to image: it begins in the middle
    assert (helper.start_timestep, model.calls[0]) == (10, 2)


def test_every_generation_begins_anew_with_or_without_clear_states(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {0, 2})
    first = run(model, helper, range(4))
    assert same(run(model, helper, range(4)), first)  # the step went back
    helper.clear_states()
    assert (helper.start_timestep, helper.cur_timestep, helper.cached_output) == (None, 0, {})
    assert same(run(model, helper, range(4)), first)
    helper.reset_states()
    assert same(run(model, helper, range(4)), first)
    assert model.calls[0] == 8


def test_enabling_twice_does_no_harm(kind: type[CacheHelper]) -> None:
    model = Model()
    reference = run(model, None, range(4))
    helper = enabled(kind, model, {0, 2})
    helper.enable()
    assert len(helper.function_dict) == 3
    run(model, helper, range(4))
    assert model.calls[0] == 4 + 2
    helper.disable()
    helper.disable()
    assert helper.function_dict == {}
    assert same(run(model, None, range(4)), reference)


def test_each_pass_of_a_step_has_its_own_values(kind: type[CacheHelper]) -> None:
    model = Model()
    both = run(model, enabled(kind, model, {0, 1, 2, 5}), range(8), passes=2)
    alone = Model()
    one = run(alone, enabled(kind, alone, {0, 1, 2, 5}), range(8), passes=1)
    assert all(torch.equal(pair[0], single[0]) for pair, single in zip(both, one, strict=True))
    assert all(output.isfinite().all() for pair in both for output in pair)


def test_another_shape_is_computed_and_the_passes_after_it_too(kind: type[CacheHelper]) -> None:
    model = Model()
    run(model, enabled(kind, model, {0}), range(6), passes=2, tokens=lambda k: 8 if k < 3 else 6)
    assert model.calls[0] == 4  # both passes at 0 and at 3


def test_values_that_are_not_finite_are_not_reused(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {0, 2})
    with torch.no_grad():
        for k in range(5):
            helper.cur_timestep = k
            model(wave(k) * (float("nan") if k == 0 else 1), tiny.noise(1, 3, 6), torch.zeros(1, 1, 6))
    assert model.calls[0] == 3  # 0; 1 because of the NaN of 0; 2


def test_an_exception_in_the_middle_leaves_nothing_behind(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {0, 2})
    expected = run(model, helper, range(4))
    with pytest.raises(RuntimeError):
        run(model, helper, range(2), tokens=lambda k: 8 if k == 0 else _fail())
    assert same(run(model, helper, range(4)), expected)


def _fail() -> int:
    raise RuntimeError


def test_reuse_repeats_what_left_the_blocks() -> None:
    model = Model(singles=2)
    outputs = run(model, enabled(CacheHelper, model, {0, 3}), range(5))
    assert torch.equal(outputs[1][0], outputs[0][0])
    assert torch.equal(outputs[4][0], outputs[3][0])
    assert not torch.equal(outputs[3][0], outputs[0][0])


# -- what is kept


def test_one_result_is_kept_and_not_one_for_each_block() -> None:
    model = Model(doubles=6)
    helper = enabled(CacheHelper, model, {0, 2})
    run(model, helper, range(4))
    # and what entered the last block, which the model may still hold
    assert set(helper.cached_output) == {("double_blocks", 4), ("double_blocks", 5)}
    (memory,) = helper._memories.values()
    assert memory.history.nbytes == (8 + 3) * 6 * 4


def test_what_is_read_between_blocks_is_kept() -> None:
    class Controlled(Model):
        def between(self, img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
            return img + 0.5, txt

    model = Controlled()
    helper = enabled(CacheHelper, model, {0})
    outputs = run(model, helper, range(2))
    assert len(helper.cached_output) == 3
    assert torch.equal(outputs[1][0], outputs[0][0])


def test_what_is_held_for_later_is_kept() -> None:
    class Skipping(Model):
        def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> Tensor:
            self.held: list[Tensor] = []
            return super().forward(img, txt, vec) + self.held[0]

        def between(self, img: Tensor, txt: Tensor) -> tuple[Tensor, Tensor]:
            self.held.append(img)
            return img, txt

    for steps in ({0}, {0, 1, 2}):
        model = Skipping(doubles=4)
        outputs = run(model, enabled(CacheHelper, model, steps), range(5))
        assert torch.equal(outputs[4][0], outputs[max(steps)][0])
        assert model.calls[0] == len(steps)


def test_writing_to_a_result_does_not_reach_what_is_kept(kind: type[CacheHelper]) -> None:
    class Writing(Model):
        def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> Tensor:
            for block in self.double_blocks:
                img, txt = block(img=img, txt=txt, vec=vec)
            return img.mul_(3)

    steps = {0, 1, 2}
    model, plain = Writing(), Model()
    wrote = run(model, enabled(kind, model, steps), range(6))
    expected = run(plain, enabled(kind, plain, steps), range(6))
    assert all(torch.allclose(a[0] / 3, b[0] / 2) for a, b in zip(wrote, expected, strict=True))


def test_gradients_may_be_on(kind: type[CacheHelper]) -> None:
    model = Model()
    helper = enabled(kind, model, {0, 1, 2})
    model.requires_grad_(True)
    for k in range(5):
        helper.cur_timestep = k
        assert model(wave(k), tiny.noise(1, 3, 6), torch.zeros(1, 1, 6)).isfinite().all()
    assert model.calls[0] == 3


def test_a_block_that_only_skipped_steps_call_is_an_error() -> None:
    model = Model()
    helper = enabled(CacheHelper, model, {0})
    with torch.no_grad():
        block, model.double_blocks[1] = model.double_blocks[1], nn.Identity()
        model.between = lambda img, txt: (img, txt)  # type: ignore[method-assign]
        first, last = model.double_blocks[0], model.double_blocks[2]
        last(*first(wave(0), tiny.noise(1, 3, 6), torch.zeros(1, 1, 6)), torch.zeros(1, 1, 6))
        helper.cur_timestep = 1
        first(wave(0), tiny.noise(1, 3, 6), torch.zeros(1, 1, 6))
        with pytest.raises(CacheError, match=r"double_blocks\[1\] is called on a skipped step"):
            block(wave(0), tiny.noise(1, 3, 6), torch.zeros(1, 1, 6))


# -- each kind


def test_deepcache_runs_its_blocks_at_every_step_on_what_was_kept() -> None:
    model = Model(doubles=4)
    helper = enabled(DeepCacheHelper, model, {0, 2}, no_cache_block_id={"double_blocks": {3}})
    outputs = run(model, helper, range(4))
    assert model.calls == [2, 2, 2, 4]
    assert set(helper.cached_output) == {("double_blocks", 2)}
    kept = helper.cached_output["double_blocks", 2]
    with torch.no_grad():
        expected = 2 * model.double_blocks[3](*kept, torch.full((1, 1, 6), 0.15))[0]
    assert torch.equal(outputs[3][0], expected)
    helper.cur_timestep = 3
    assert (helper.is_skip(2, "double_blocks"), helper.is_skip(3, "double_blocks")) == (True, False)


@pytest.mark.parametrize(("singles", "text_first"), [(0, False), (2, False), (2, True)])
def test_teacache_adds_the_last_change_to_what_enters_now(singles: int, text_first: bool) -> None:
    model = Model(singles=singles, text_first=text_first)
    outputs = run(model, enabled(TeaCacheHelper, model, {0, 2}), range(4))
    for computed, skipped in ((0, 1), (2, 3)):
        # the model doubles what leaves the blocks
        expected = outputs[computed][0] / 2 - wave(computed) + wave(skipped)
        assert torch.allclose(outputs[skipped][0] / 2, expected, atol=1e-5)


def test_teacache_follows_streams_that_change_places() -> None:
    class Swapped(Double):
        def forward(self, txt: Tensor, img: Tensor, vec: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            img, txt = super().forward(img, txt, vec)
            return txt, img

    class Flux(Model):
        def __init__(self) -> None:
            super().__init__(0)
            self.double_blocks = nn.ModuleList(Swapped() for _ in range(3))

        def forward(self, img: Tensor, txt: Tensor, vec: Tensor) -> Tensor:
            for block in self.double_blocks:
                txt, img = block(txt, img, vec)
            return 2 * img

    model = Flux()
    outputs = run(model, enabled(TeaCacheHelper, model, {0}), range(2))
    assert torch.allclose(outputs[1][0] / 2, outputs[0][0] / 2 - wave(0) + wave(1), atol=1e-5)


class Curve(nn.Module):
    """A block whose result is a polynomial of the step, whatever enters it."""

    step = 0.0

    def forward(self, img: Tensor) -> Tensor:
        return curve(self.step)


def curve(step: float, degree: int = 2) -> Tensor:
    terms = [tiny.noise(1, 16, 4, seed=30 + i) * (step / 10) ** i for i in range(1, degree + 1)]
    return torch.stack(terms).sum(0)


def curves(helper: Any, steps: Iterator[int] | range) -> dict[int, Tensor]:
    (block,) = helper.double_blocks or helper.single_blocks
    found = {}
    for k in steps:
        helper.cur_timestep = k
        block.step = float(k)
        found[k] = block(curve(0))
    return found


def test_taylor_is_exact_for_parabolas_at_uneven_gaps() -> None:
    helper = TaylorCacheHelper([Curve()], no_cache_steps={0, 1, 5, 7})
    helper.enable()
    found = curves(helper, range(9))
    assert torch.allclose(found[8], curve(8), atol=1e-5)
    # Until there are three of them, the order is lower: a line through 0 and 1.
    assert torch.allclose(found[2], 2 * curve(1) - curve(0), atol=1e-5)
    assert (helper.last_full_computation_step, helper.counter) == (7, 1)


def test_taylor_predicts_two_bands_with_orders_of_their_own() -> None:
    for grid in ((), (4, 4)):
        helper = TaylorCacheHelper([Curve()], None, {0, 2, 4}, low_freqs_order=0, high_freqs_order=1, grid=grid)
        helper.enable()
        found = curves(helper, range(6))
        low = [low_pass(curve(k), 0.1, [grid] if grid else []) for k in (2, 4)]
        expected = low[1] + 1.5 * (curve(4) - low[1]) - 0.5 * (curve(2) - low[0])
        assert torch.allclose(found[5], expected, atol=1e-5)


@pytest.mark.parametrize(("orders", "kept"), [((2, 2, 2), 3), ((1, 2, 2), 2), ((2, 0, 0), 1), ((2, 0, 1), 2)])
def test_taylor_keeps_as_much_as_its_orders_need(orders: tuple[int, int, int], kept: int) -> None:
    helper = TaylorCacheHelper([Curve()], None, {0, 1, 2, 3}, *orders)
    helper.enable()
    curves(helper, range(5))
    assert len(helper._memories[0].history) == kept


# -- the published results


def test_legacy_reuse_has_one_store_for_all_passes() -> None:
    model = Model()
    helper = enabled(CacheHelper, model, {0}, legacy=True)
    outputs = run(model, helper, range(2), passes=2)
    assert torch.equal(outputs[1][0], outputs[0][1])  # the second pass's values, for both
    assert torch.equal(outputs[1][1], outputs[0][1])
    assert len(helper.cached_output) == 3


def test_legacy_teacache_is_plain_reuse() -> None:
    model = Model()
    helper = enabled(TeaCacheHelper, model, {0}, legacy=True)
    outputs = run(model, helper, range(2))
    assert torch.allclose(outputs[1][0], outputs[0][0], atol=1e-6)
    assert torch.equal(helper.cached_input, wave(0))
    assert torch.allclose(helper.previous_residual, outputs[0][0] / 2 - wave(0), atol=1e-6)
    with torch.no_grad():
        assert isinstance(model.double_blocks[2](img=wave(1), txt=wave(1), vec=wave(1)), list)
    model = Model(singles=2)
    outputs = run(model, enabled(TeaCacheHelper, model, {0}, legacy=True), range(2))
    assert torch.allclose(outputs[1][0], outputs[0][0], atol=1e-6)
    with pytest.raises(KeyError, match="image"):
        run(model, enabled(TeaCacheHelper, model, {0}, cache_name="image", legacy=True), range(1))


def constant(helper: Any, numbers: dict[int, float], passes: int = 1) -> dict[int, list[float]]:
    """The helper on one block that returns a constant for each computed step."""
    (block,) = helper.single_blocks
    helper.enable()
    found: dict[int, list[float]] = {}
    for k in range(max(numbers) + 3):
        helper.cur_timestep = k
        block.value = numbers.get(k, float("nan"))
        found[k] = [float(block(torch.zeros(1, 8, 2)).mean()) for _ in range(passes)]
    return found


class Constant(nn.Module):
    value = 0.0

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.value)


def test_legacy_taylor_computed_by_hand() -> None:
    numbers = {0: 5.0, 1: 1.0, 3: 2.0, 6: 8.0}
    found = constant(TaylorCacheHelper(None, [Constant()], set(numbers), legacy=True), numbers)
    # The first step leaves nothing. From 1: 1. At 3: D1 = (2 − 1)/2. At 6: D1 = (8 − 2)/3 = 2, D2 = (2 − 1/2)/3 = 1/2.
    assert found[2] == pytest.approx([1.0])
    assert found[4] == pytest.approx([2.5])
    assert found[5] == pytest.approx([3.0])
    assert found[7] == pytest.approx([8 + 2 + 0.25])
    assert found[8] == pytest.approx([8 + 4 + 1])
    # Ours: the parabola through 1, 3 and 6 where it stays within bounds, and step 0 counts.
    ours = constant(TaylorCacheHelper(None, [Constant()], set(numbers)), numbers)
    assert ours[2] == pytest.approx([1 - 4])
    assert ours[7] == pytest.approx([8 + 2 + (2 - 0.5) / 5 * 1 * 4])


def test_legacy_taylor_with_two_passes_divides_by_nought() -> None:
    numbers = {0: 5.0, 1: 1.0, 3: 2.0}
    legacy = constant(TaylorCacheHelper(None, [Constant()], set(numbers), legacy=True), numbers, passes=2)
    assert not all(torch.isfinite(torch.tensor(legacy[4])))
    ours = constant(TaylorCacheHelper(None, [Constant()], set(numbers)), numbers, passes=2)
    assert ours[4][0] == ours[4][1]
    assert torch.isfinite(torch.tensor(ours[4])).all()


def test_legacy_bands_of_equal_order_are_no_bands() -> None:
    def run_legacy(**orders: int) -> Tensor:
        helper = TaylorCacheHelper([Curve()], no_cache_steps={0, 1, 2, 4}, legacy=True, **orders)
        helper.double_blocks, helper.single_blocks = None, helper.double_blocks
        helper.enable()
        return curves(helper, range(6))[5]

    d1 = (curve(4) - curve(2)) / 2
    d2 = (d1 - (curve(2) - curve(1))) / 2
    assert torch.allclose(run_legacy(), curve(4) + d1 + d2 / 2, atol=1e-5)
    low = low_pass(curve(4), 0.1)
    high = (curve(4) + d1 + d2 / 2) - low_pass(curve(4) + d1 + d2 / 2, 0.1)
    assert torch.allclose(run_legacy(low_freqs_order=0), low + high, atol=1e-5)


def test_legacy_is_safe_to_switch_and_to_restore(kind: type[CacheHelper]) -> None:
    model = Model()
    reference = run(model, None, range(4))
    helper = enabled(kind, model, {0, 1, 2}, legacy=True)
    helper.enable()
    helper.reset_states()
    assert same(run(model, helper, range(3)), reference[:3])
    helper.disable()
    assert same(run(model, None, range(4)), reference)


# -- what cannot be


def test_impossible_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="double_blocks and single_blocks are both empty"):
        CacheHelper().enable()
    blocks = Model().double_blocks
    with pytest.raises(ValueError, match="'single': must be one of 'double_blocks', 'single_blocks'"):
        DeepCacheHelper(blocks, no_cache_block_id={"single": {0}})
    with pytest.raises(ValueError, match="double_blocks has 3 blocks, numbered from 0; no 53"):
        DeepCacheHelper(blocks, no_cache_block_id={"double_blocks": {53}})


# -- HunyuanVideo-1.5


@pytest.fixture(scope="module")
def transformer() -> Any:
    return hunyuan.transformer()


def test_the_documented_loop_runs_as_written(transformer: Any) -> None:
    total_steps = 50
    no_cache_steps = set(range(11)) | set(range(11, 45, 4)) | set(range(45, 50))
    assert len(no_cache_steps) == 25
    calls = [0] * len(transformer.transformer_blocks)
    hooks = [
        block.register_forward_pre_hook(lambda *_, number=number: calls.__setitem__(number, calls[number] + 1))
        for number, block in enumerate(transformer.transformer_blocks)
    ]
    helper = DeepCacheHelper(
        double_blocks=transformer.transformer_blocks,
        no_cache_steps=no_cache_steps,
        no_cache_block_id={"double_blocks": {3}},
    )
    helper.enable()
    sigmas = torch.linspace(1, 0, total_steps + 1)
    results: list[list[Tensor]] = [[], []]
    for generation in results:
        helper.clear_states()
        latents = tiny.noise(1, hunyuan.CHANNELS, 2, 4, 4)
        with torch.no_grad():
            for i in range(total_steps if not results[0] else 13):
                helper.cur_timestep = i
                velocity = transformer(**hunyuan.inputs(latents, 1000 * sigmas[i]))[0]
                latents = latents + (sigmas[i + 1] - sigmas[i]) * velocity
                generation.append(latents)
    helper.disable()
    for hook in hooks:
        hook.remove()
    assert calls == [25 + 12, 25 + 12, 25 + 12, 50 + 13]
    assert same([results[0][:13]], [results[1]])
    assert latents.isfinite().all()


def test_diffusers_own_pipeline_is_followed(transformer: Any) -> None:
    pipe = hunyuan.pipeline(transformer)
    reference = pipe(**hunyuan.call(steps=5)).frames
    calls = 0

    def count(*_: Any) -> None:
        nonlocal calls
        calls += 1

    hook = transformer.transformer_blocks[0].register_forward_pre_hook(count)
    for kind in HELPERS:
        helper = kind(transformer.transformer_blocks, no_cache_steps={0, 1, 3})
        helper.follow(pipe).enable()
        calls = 0
        first, second = (pipe(**hunyuan.call(steps=5)).frames for _ in range(2))
        assert calls == 2 * 2 * 3  # generations, passes, steps
        assert torch.equal(first, second)
        assert first.isfinite().all()
        assert not torch.equal(first, reference)
        helper.disable()
    hook.remove()
    assert torch.equal(pipe(**hunyuan.call(steps=5)).frames, reference)


def test_a_callback_may_set_the_step() -> None:
    pipe = tiny.qwen()
    helper = TaylorCacheHelper(pipe.transformer.transformer_blocks, no_cache_steps={0, 1, 2, 5})
    helper.enable()

    def next_step(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        helper.cur_timestep = step + 1
        return {}

    helper.clear_states()
    called = pipe(**tiny.qwen_call(8, callback_on_step_end=next_step)).images
    helper.follow(pipe)
    assert torch.equal(pipe(**tiny.qwen_call(8)).images, called)
    with pytest.raises(CacheError, match="the steps come from a scheduler"):
        helper.cur_timestep = 3
    helper.disable()
    assert not torch.equal(pipe(**tiny.qwen_call(8)).images, called)
