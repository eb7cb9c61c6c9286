"""The same settings as diffusers' own hooks compute the same steps and give the same latents."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers.hooks import FirstBlockCacheConfig, MagCacheConfig
from torch import Tensor, nn

import tiny
from hasten import accelerate

STEPS = 12
RATIOS = [1.0, 1.2, 1.1, 1.02, 1.01, 1.03, 0.99, 0.98, 1.01, 0.97, 0.95, 0.9]


@contextmanager
def watched(transformer: nn.Module, late: nn.Module) -> Iterator[list[bool]]:
    """For each call of the transformer, whether a module late in its stack was called."""
    calls: list[bool] = []

    def came(*_: Any) -> None:
        calls[-1] = True

    handles = [
        transformer.register_forward_pre_hook(lambda *_: calls.append(False)),
        late.register_forward_pre_hook(came),
    ]
    yield calls
    for handle in handles:
        handle.remove()


@pytest.fixture(scope="module", params=["qwen", "qwen guided", "flux"])
def made(request: pytest.FixtureRequest) -> tuple[Any, dict[str, Any], nn.Module]:
    if request.param == "flux":
        pipe: Any = tiny.flux()
        return pipe, tiny.flux_call(STEPS), pipe.transformer.single_transformer_blocks[1].attn
    pipe = tiny.qwen()
    return pipe, tiny.qwen_call(STEPS, guided="guided" in request.param), pipe.transformer.transformer_blocks[2].attn


def by_diffusers(made: tuple[Any, dict[str, Any], nn.Module], config: Any) -> tuple[Tensor, list[bool]]:
    pipe, call, late = made
    pipe.transformer.enable_cache(config)
    try:
        with watched(pipe.transformer, late) as calls:
            return pipe(**again(call)).images, calls
    finally:
        pipe.transformer.disable_cache()


def by_hasten(made: tuple[Any, dict[str, Any], nn.Module], **settings: Any) -> tuple[Tensor, list[bool]]:
    pipe, call, late = made
    with accelerate(pipe, cooldown=0, branches="own", **settings):
        pipe(**again(call))  # the first run of all tries the skipping out once, which the next has no need of
        with watched(pipe.transformer, late) as calls:
            return pipe(**again(call)).images, calls


def again(call: dict[str, Any]) -> dict[str, Any]:
    return call | {"generator": torch.Generator().manual_seed(0)}


@pytest.mark.filterwarnings("ignore:hasten skipped nothing")  # these weights are random: each step differs much
@pytest.mark.parametrize("threshold", [0.6, 0.9, 1.1])
def test_first_block_cache(made: tuple[Any, dict[str, Any], nn.Module], threshold: float) -> None:
    theirs, their_calls = by_diffusers(made, FirstBlockCacheConfig(threshold=threshold))
    ours, our_calls = by_hasten(made, plan="fbcache", threshold=threshold)
    assert our_calls == their_calls
    assert threshold < 1 or not all(our_calls)
    assert torch.allclose(ours, theirs, atol=1e-4)


@pytest.mark.parametrize(("threshold", "most", "retention"), [(0.06, 3, 0.2), (0.24, 5, 0.1), (0.11, 2, 0.4)])
def test_magcache(made: tuple[Any, dict[str, Any], nn.Module], threshold: float, most: int, retention: float) -> None:
    config = MagCacheConfig(threshold, most, retention, STEPS, RATIOS)
    theirs, their_calls = by_diffusers(made, config)
    limits = {"threshold": threshold, "max_skips": most, "retention": retention}
    ours, our_calls = by_hasten(made, plan="magcache", ratios=RATIOS, **limits)
    assert our_calls == their_calls
    assert not all(our_calls)
    assert torch.allclose(ours, theirs, atol=1e-4)


def test_after_a_cancelled_call_the_first_step_is_computed_here_and_not_there() -> None:
    pipe = tiny.qwen()
    call, late = tiny.qwen_call(STEPS, guided=False), pipe.transformer.transformer_blocks[2].attn

    def stop(*_: Any) -> dict[str, Any]:
        raise KeyboardInterrupt

    def cancelled_and_again() -> list[bool]:
        with pytest.raises(KeyboardInterrupt):
            pipe(**again(call), callback_on_step_end=stop)
        with watched(pipe.transformer, late) as calls:
            pipe(**again(call))
        return calls

    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.9))
    theirs = cancelled_and_again()
    pipe.transformer.disable_cache()
    with accelerate(pipe, "fbcache", threshold=0.9):
        ours = cancelled_and_again()
    assert (ours[0], theirs[0]) == (True, False)
