"""Signals from the middle of a call: found by watching, and nothing runs twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.caching.patching import CALL
from hasten.errors import CacheError, HastenError
from hasten.handle import Handle

SKIPPING = {"first_enhance": 1, "cooldown": 0, "predictor": "reuse"}
MIDWAY = ("modulated", "state", "probe")


class Block(nn.Module):
    """Modulates by the time embedding, mixes, and adds."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8, elementwise_affine=False)
        self.mix = nn.Linear(8, 8)
        self.calls = 0

    def forward(self, x: Tensor, text: Tensor, temb: Tensor) -> Tensor:
        self.calls += 1
        return x + torch.tanh(self.mix(self.norm(x) * (1 + temb) + text.mean()))


class Denoiser(nn.Module):
    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.time = nn.Linear(1, 8)
        self.blocks = nn.ModuleList(Block() for _ in range(blocks))
        tiny.random_(self, 0)

    def forward(self, sample: Tensor, timestep: Tensor, text: Tensor) -> Tensor:
        temb = self.time(timestep.reshape(-1, 1))
        for block in self.blocks:
            sample = block(sample, text, temb)
        return sample


def run(
    model: nn.Module,
    steps: int = 8,
    change: Callable[[int], float] = lambda k: 0.05 * k,
    handle: Handle | None = None,
) -> list[Tensor]:
    """What the denoiser returns at each step of a run, its input changing as told.

    Args:
        handle: is told the steps and how many there are.
    """
    x, text = tiny.noise(1, 3, 8), tiny.noise(1, 2, 8, seed=1)
    results = []
    with torch.no_grad():
        for k in range(steps):
            if handle is not None:
                handle.step(k, total=steps)
            results.append(model(x * (1 + change(k)), torch.tensor([1 - k / steps]), text))
    return results


def kinds(handle: Handle) -> str:
    return "".join("C" if step.computed else "s" for step in handle.report().steps)


def relative(value: Tensor, reference: Tensor) -> float:
    return float((value - reference).abs().mean() / reference.abs().mean())


@contextmanager
def arguments_of(module: nn.Module) -> Iterator[list[Tensor]]:
    """The first argument of every call of a module."""
    seen: list[Tensor] = []

    def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
        seen.append(args[0] if args else next(iter(kwargs.values())))

    handle = module.register_forward_pre_hook(hook, with_kwargs=True)
    yield seen
    handle.remove()


def signals(handle: Handle) -> list[float]:
    return [step.signal for step in handle.report().steps[1:] if step.signal is not None]


@pytest.mark.parametrize("signal", MIDWAY)
def test_the_signal_is_what_it_says(signal: str) -> None:
    model = Denoiser()
    with arguments_of(model.blocks[0].mix) as mixed, arguments_of(model.blocks[2]) as reached:
        run(model)
    inputs = [tiny.noise(1, 3, 8) * (1 + 0.05 * k) for k in range(8)]
    changes = [after - before for after, before in zip(reached, inputs, strict=True)]
    values = {"modulated": mixed, "state": reached, "probe": changes}[signal]
    extra = {} if signal == "modulated" else {"probe": 2}
    with accelerate(model, policy="accumulate", signal=signal, threshold=1000, **SKIPPING, **extra) as handle:
        run(model)
    assert kinds(handle) == "Csssssss"
    expected = [relative(after, before) for after, before in zip(values[1:], values, strict=False)]
    assert signals(handle) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("signal", MIDWAY)
def test_against_the_last_computed_step(signal: str) -> None:
    model = Denoiser()
    with accelerate(model, policy="compare", signal=signal, threshold=0, mask=[0, 4], cooldown=0) as handle:
        run(model, change=lambda k: 0.1 * (k % 2))
    assert kinds(handle) == "CCCCCCCC"
    both = signals(handle)
    with accelerate(model, policy="compare", signal=signal, threshold=max(both), first_enhance=1) as handle:
        run(model)
    assert "s" in kinds(handle)


@pytest.mark.parametrize(
    ("site", "extra"), [("residual", {}), ("span", {"span": [1, 1]}), ("output", {}), ("latent", {})]
)
@pytest.mark.parametrize("signal", MIDWAY)
def test_no_block_runs_twice(site: str, extra: dict[str, Any], signal: str) -> None:
    model = Denoiser()
    settings = {"policy": "accumulate", "signal": signal, "threshold": 0.5, "site": site, **extra, **SKIPPING}
    with accelerate(model, **settings) as handle:
        run(model, 3)  # watched, tried out
        for block in model.blocks:
            block.calls = 0
        run(model, 12)
    computed = kinds(handle).count("C")
    assert 0 < computed < 12
    first = 12 if signal != "modulated" or site == "span" else None
    counts = [block.calls for block in model.blocks]
    assert counts[1:-1] == [computed, computed]
    assert counts[-1] == (12 if site == "span" else computed)
    # The signal `modulated` enters the first block at each step, but goes no further than its norm.
    assert counts[0] == (first or 12)


@pytest.mark.parametrize("signal", MIDWAY)
def test_what_is_left_out_after_the_question_is_predicted_as_at_any_skipped_step(signal: str) -> None:
    model = Denoiser()
    with accelerate(model, policy="mask", mask=[0, 4], site="residual", cooldown=0, predictor="reuse"):
        expected = run(model)
    with accelerate(
        model, policy="accumulate", signal=signal, threshold=1e9, mask=[0, 4], site="residual", cooldown=0,
        predictor="reuse",
    ) as handle:  # fmt: skip
        found = run(model)
    assert kinds(handle) == "CsssCsss"
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


@pytest.mark.parametrize("signal", MIDWAY)
def test_with_a_threshold_of_zero_nothing_changes_and_removing_restores(signal: str) -> None:
    pipe = tiny.qwen()
    reference = pipe(**tiny.qwen_call(4)).images
    settings = {"policy": "compare", "signal": signal, "threshold": 0, **SKIPPING}
    with accelerate(pipe, **settings) as handle, pytest.warns(UserWarning, match="the lowest signal was"):
        assert torch.equal(pipe(**tiny.qwen_call(4)).images, reference)
    assert kinds(handle) == "CCCC"
    assert all(CALL not in vars(module) for module in pipe.transformer.modules())


def inside(handle: Handle) -> str:
    """Where the modulated input was found."""
    (layer,) = handle._stack.layers
    (denoiser,) = layer.denoisers[:1]
    assert denoiser._probe is not None
    (place,) = denoiser._probe._places.values()
    assert not isinstance(place, str)
    return next(name for name, module in place.start.named_modules() if module is place.inside)


@pytest.mark.parametrize(
    ("pipe", "call", "name"),
    [
        (tiny.qwen, tiny.qwen_call, "attn"),
        (tiny.flux, tiny.flux_call, "attn"),
        (tiny.wan, tiny.wan_call, "attn1"),
        (tiny.stable_diffusion, tiny.stable_diffusion_call, "resnets.0.norm2"),
    ],
)
def test_the_modulated_input_is_found_in_any_model(pipe: Any, call: Any, name: str) -> None:
    made = pipe()
    with accelerate(made, policy="accumulate", signal="modulated", threshold=0.6, **SKIPPING) as handle:
        made(**call(6))
        assert inside(handle) == name
    assert handle.report().skipped


def test_a_compiled_first_block_is_not_interrupted_but_runs_as_it_was_written() -> None:
    model = Denoiser()
    calls = dict.fromkeys(model.blocks, 0)

    def compiled(block: nn.Module) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            calls[block] += 1
            assert CALL not in vars(block.mix), "a tap within a compiled region"
            return block._call_impl(*args, **kwargs)

        return call

    for block in model.blocks:
        block._compiled_call_impl = compiled(block)  # type: ignore[method-assign]
    kept = [vars(block)[CALL] for block in model.blocks]
    with accelerate(model, policy="accumulate", signal="modulated", threshold=0.5, **SKIPPING) as handle:
        run(model)
    assert "s" in kinds(handle)
    assert [vars(block)[CALL] for block in model.blocks] == kept
    first, second, *_ = calls.values()
    assert first < second == kinds(handle).count("C")


def test_a_run_that_was_interrupted_leaves_nothing_behind() -> None:
    pipe = tiny.qwen()
    block = pipe.transformer.transformer_blocks[2]
    with accelerate(pipe, policy="accumulate", signal="probe", threshold=2, **SKIPPING) as handle:
        expected = pipe(**tiny.qwen_call(8)).images
        pattern = kinds(handle)
        hook = block.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            pipe(**tiny.qwen_call(8))
        hook.remove()
        again = pipe(**tiny.qwen_call(8)).images
    assert "s" in pattern
    assert kinds(handle) == pattern
    assert torch.equal(again, expected)


def test_a_denoiser_without_such_a_place_is_refused_with_the_reason() -> None:
    pipe = tiny.stable_diffusion()
    with (
        accelerate(pipe, "fbcache"),
        pytest.raises(CacheError, match=r"unet .* shows no signal 'probe': .*input, estim"),
    ):
        pipe(**tiny.stable_diffusion_call(4))
    model = Denoiser(blocks=2)
    with accelerate(model, "dbcache"), pytest.raises(CacheError, match="its stack has 2 blocks"):
        run(model)


def test_teacache_computes_where_its_rescaled_changes_sum_to_the_threshold() -> None:
    model = Denoiser()
    with accelerate(model, "teacache", polynomial=[2.0, 0.0], threshold=0.3) as handle:
        run(model, 16, lambda k: 0.02 * k**1.5, handle)
    expected, total = [0], 0.0
    for step in handle.report().steps[1:]:
        total += 2 * (step.signal or 0.0)
        if total >= 0.3 or step.index == 15:
            expected.append(step.index)
            total = 0.0
    assert [step.index for step in handle.report().steps if step.computed] == expected
    assert 3 < len(expected) < 12


@pytest.mark.parametrize(
    ("limits", "pattern"),
    [
        ({"first_enhance": 2}, "CCssssssss"),
        ({"first_enhance": 2, "max_skips": 2}, "CCssCssCss"),
        ({"first_enhance": 2, "max_total_skips": 3}, "CCsssCCCCC"),
        ({"bins": "fast"}, "CCCsCssCssCC"),
        ({"bins": "fast", "threshold": 0}, "CCCCCCCCCCCC"),
    ],
    ids=str,
)
def test_dbcache_runs_its_first_and_last_blocks_at_every_step(limits: dict[str, Any], pattern: str) -> None:
    model = Denoiser(blocks=6)
    total = len(pattern)
    with accelerate(model, "dbcache", **{"span": [2, 1], "threshold": 9, **limits}) as handle:
        run(model, 3)  # watched, tried out
        for block in model.blocks:
            block.calls = 0
        run(model, total, handle=handle)
    assert kinds(handle) == pattern
    computed = pattern.count("C")
    assert [block.calls for block in model.blocks] == [total] * 2 + [computed] * 3 + [total]


def test_dbcache_adds_what_the_blocks_in_the_middle_did_last_and_goes_on() -> None:
    model, text = Denoiser(blocks=5), tiny.noise(1, 2, 8, seed=1)
    with arguments_of(model.blocks[2]) as entered, arguments_of(model.blocks[4]) as left:
        run(model, 4)
    middle = left[1] - entered[1]
    with accelerate(model, "dbcache", span=[2, 1], first_enhance=2, threshold=9) as handle:
        found = run(model, 4)
    assert kinds(handle) == "CCss"
    for step in (2, 3):
        temb = model.time(torch.tensor([[1 - step / 4]]))
        first = tiny.noise(1, 3, 8) * (1 + 0.05 * step)
        for block in model.blocks[:2]:
            first = block(first, text, temb)
        assert torch.allclose(found[step], model.blocks[4](first + middle, text, temb), atol=1e-5)


def test_bwcache_repeats_the_results_of_all_blocks_for_a_number_of_steps() -> None:
    model = Denoiser()
    with accelerate(model, "bwcache", codebook=[[0.3, 4]]) as handle:
        found = run(model, 14, lambda k: 0.01 * k)
    assert kinds(handle) == "CCssssCssssCss"
    assert all(torch.equal(found[step], found[1]) for step in (2, 3, 4, 5))
    assert not torch.equal(found[6], found[5])
    with accelerate(model, "bwcache", codebook=[[1e-4, 4]]) as handle:
        run(model, 14, lambda k: 0.01 * k)
    assert kinds(handle) == "C" * 14


def test_dicache_goes_as_far_as_the_first_block_has_gone() -> None:
    model = Denoiser()

    def change(k: int) -> float:
        return (0.0, 0.2, 0.25, 0.28)[k]

    with arguments_of(model.blocks[1]) as reached, arguments_of(model.blocks[0]) as entered:
        outputs = run(model, 4, change)
    probes = [after - before for before, after in zip(entered, reached, strict=True)]
    residuals = [after - before for before, after in zip(entered, outputs, strict=True)]
    with accelerate(model, "dicache", threshold=9, retention=0, cooldown=0) as handle:
        found = run(model, 4, change)
    assert kinds(handle) == "CCss"
    for step in (2, 3):
        far = (probes[step] - probes[0]).abs().mean() / (probes[1] - probes[0]).abs().mean()
        gamma = float(far.clip(1, 1.5))
        expected = entered[step] + residuals[0] + gamma * (residuals[1] - residuals[0])
        assert torch.allclose(found[step], expected, atol=1e-5)
    assert handle.report().predictor == "dcta in index"


def test_trajectories_are_aligned_only_where_something_is_probed() -> None:
    with pytest.raises(HastenError, match=r"predictor 'dcta' .*needs cache.signal state or probe"):
        accelerate(Denoiser(), "teacache", polynomial=[1, 0], predictor="dcta")


def test_a_draft_is_verified_by_the_last_block_which_runs_on_it() -> None:
    model = Denoiser()
    last = model.blocks[-1]
    with arguments_of(last) as entered:
        outputs = run(model, 6)
    changes = [after - before for before, after in zip(entered, outputs, strict=True)]
    with accelerate(model, "speca", predictor="reuse", first_enhance=3, threshold=9, cooldown=0) as handle:
        run(model, 3)  # watched; what enters the last block is held from the next run on
    with accelerate(model, "speca", predictor="reuse", first_enhance=3, threshold=9, cooldown=0) as handle:
        with arguments_of(last) as drafts:
            found = run(model, 6)
        drafts = drafts[-3:]
    assert kinds(handle) == "CCCsss"
    for step, draft in zip((3, 4, 5), drafts, strict=True):
        text = tiny.noise(1, 2, 8, seed=1)
        real = last(draft, text, model.time(torch.tensor([[1 - step / 6]])))
        assert torch.allclose(found[step], real, atol=1e-6)  # what the block computes is what goes on
        signal = handle.report().steps[step].signal
        assert signal == pytest.approx(relative(draft + changes[2], real), rel=1e-4)
    assert "signal error of the draft (each against 9), at 3 steps" in str(handle.report())


def test_a_rejected_draft_has_the_next_step_computed() -> None:
    model = Denoiser()
    with accelerate(model, "speca", first_enhance=3, threshold=0, cooldown=0) as handle:
        run(model, 8)
    assert kinds(handle) == "CCCsCsCs"
    assert handle.report().steps[4].reason == "draft rejected"
    with pytest.raises(HastenError, match=r"policy 'verify' .*span: \[0, 1\]"):
        accelerate(model, "speca", span=[1, 0])


def test_adacache_skips_by_how_fast_the_cached_value_changes() -> None:
    model = Denoiser()
    with accelerate(model, "adacache", codebook=[[0.3, 2]], cooldown=0) as handle:
        run(model, 10, lambda k: 0.02 * k if k < 6 else 40.0 * (-1) ** k - 1)
    assert kinds(handle) == "CCssCssCCC"
    assert handle.report().branches[0].reasons["codebook"] == 5
