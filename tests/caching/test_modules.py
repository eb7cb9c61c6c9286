"""Sites within the blocks: which modules are found, what they are taken for, what is put in their place."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten.caching.modules import PARTS, ModulesSite
from hasten.caching.parts import Spotter, attentions, feed_forwards, frame_count
from hasten.caching.sites import MisfitError, UnfitError


def newest(values: tuple[Tensor, ...]) -> Callable[[int, Tensor | None, torch.dtype], Tensor]:
    return lambda slot, base, dtype: values[slot].clone()


def wan_inputs(seed: int = 0, frames: int = 2) -> dict[str, Any]:
    return {
        "hidden_states": tiny.noise(1, 4, frames, 4, 4, seed=seed),
        "timestep": torch.tensor([500.0]),
        "encoder_hidden_states": tiny.noise(1, 7, 24, seed=seed + 1),
        "return_dict": False,
    }


def qwen_inputs(seed: int = 0) -> dict[str, Any]:
    return {
        "hidden_states": tiny.noise(1, 16, 16, seed=seed),
        "encoder_hidden_states": tiny.noise(1, 7, 24, seed=seed + 1),
        "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.long),
        "timestep": torch.tensor([0.5]),
        "img_shapes": [[(1, 4, 4)]],
        "return_dict": False,
    }


def latte_inputs(seed: int = 0, frames: int = 5) -> dict[str, Any]:
    return {
        "hidden_states": tiny.noise(2, 4, frames, 8, 8, seed=seed),
        "timestep": torch.tensor([500, 500]),
        "encoder_hidden_states": tiny.noise(2, 7, 24, seed=seed + 1),
        "return_dict": False,
    }


def unet_inputs(seed: int = 0) -> dict[str, Any]:
    return {
        "sample": tiny.noise(2, 4, 8, 8, seed=seed),
        "timestep": torch.tensor(500),
        "encoder_hidden_states": tiny.noise(2, 7, 24, seed=seed + 1),
        "return_dict": False,
    }


MODELS: dict[str, tuple[Callable[[], Any], Callable[..., dict[str, Any]]]] = {
    "qwen": (lambda: tiny.qwen_transformer(2), qwen_inputs),
    "wan": (lambda: tiny.wan().transformer, wan_inputs),
    "latte": (tiny.latte_transformer, latte_inputs),
    "unet": (lambda: tiny.stable_diffusion().unet, unet_inputs),
}


@pytest.fixture(scope="module", params=MODELS)
def model(request: pytest.FixtureRequest) -> tuple[str, Any, Callable[..., dict[str, Any]]]:
    build, inputs = MODELS[request.param]
    return request.param, build(), inputs


def kinds(model: nn.Module, inputs: dict[str, Any]) -> dict[str, str]:
    """What each module of a model is taken for."""
    names = {module: name for name, module in model.named_modules()}
    found: dict[str, str] = {}
    for one in PARTS.keys() - {"attention", "block"}:
        site = ModulesSite(model, one)
        with torch.no_grad(), suppress(MisfitError):
            site.compute(model, (), inputs, {}, None, keep=False)
        site.detach()
        (plan,) = site._plans.values()
        found |= {} if isinstance(plan, str) else {names[key.module]: one for key in plan.keys}
    return found


WANTED = {
    "qwen": {"attn": "spatial_attention", "img_mlp": "feed_forward", "txt_mlp": "feed_forward"},
    "wan": {"attn1": "spatial_attention", "attn2": "cross_attention", "ffn": "feed_forward"},
    "unet": {"attn1": "spatial_attention", "attn2": "cross_attention", "ff": "feed_forward"},
}


def test_parts_are_told_by_what_they_are_built_of_and_given(model: Any) -> None:
    name, module, inputs = model
    found = kinds(module, inputs())
    if name == "latte":
        spatial = {key.split(".")[-1]: kind for key, kind in found.items() if key.startswith("transformer_blocks")}
        temporal = {key.split(".")[-1]: kind for key, kind in found.items() if key.startswith("temporal")}
        assert spatial == WANTED["unet"]
        assert temporal == {"attn1": "temporal_attention", "ff": "feed_forward"}
    else:
        assert {key.split(".")[-1]: kind for key, kind in found.items()} == WANTED[name]
        blocks = {key.rpartition(".")[0] for key in found}
        assert len(found) == len(WANTED[name]) * len(blocks)


HAS_NO = {
    "qwen": {"temporal_attention", "cross_attention"},
    "wan": {"temporal_attention"},
    "unet": {"temporal_attention"},
    "latte": set(),
}


@pytest.mark.parametrize("name", PARTS)
@torch.no_grad()
def test_a_step_skipped_with_its_own_values_is_the_step(model: Any, name: str) -> None:
    which, module, inputs = model
    plain = module(**inputs())[0]
    site = ModulesSite(module, name)
    blanks: dict[int, Any] = {}
    if name in HAS_NO[which]:
        with pytest.raises(MisfitError, match=PARTS[name][1]) as caught:
            site.compute(module, (), inputs(), blanks, None, keep=True)
        assert torch.equal(caught.value.result[0], plain)
        with pytest.raises(UnfitError, match=PARTS[name][1]):
            site.compute(module, (), inputs(), blanks, None, keep=True)
    else:
        for _ in range(2):  # watched, then known
            result, values = site.compute(module, (), inputs(), blanks, None, keep=True)
            assert torch.equal(result[0], plain)
            assert site.reached
            ran: list[int] = []
            hooks = [
                key.module.register_forward_hook(lambda *_, ran=ran: ran.append(1))
                for plan in site._plans.values()
                if not isinstance(plan, str)
                for key in plan.keys
            ]
            assert torch.equal(site.skip(module, (), inputs(), blanks, newest(values))[0], plain)
            assert site.reached
            assert hooks
            assert not ran
            for hook in hooks:
                hook.remove()
    site.detach()
    assert all("_compiled_call_impl" not in vars(one) for one in module.modules())


def test_modulation_of_the_skipped_step_still_counts() -> None:
    model, inputs = tiny.qwen_transformer(2), qwen_inputs()
    site = ModulesSite(model, "attention")
    blanks: dict[int, Any] = {}
    with torch.no_grad():
        _, values = site.compute(model, (), inputs, blanks, None, keep=True)
        one = site.skip(model, (), inputs, blanks, newest(values))[0]
        other = site.skip(model, (), inputs | {"timestep": torch.tensor([0.1])}, blanks, newest(values))[0]
    assert not torch.allclose(one, other)


def test_modules_that_an_outer_layer_leaves_out_are_not_missed() -> None:
    model, inputs = tiny.qwen_transformer(3), qwen_inputs()
    outer, site = ModulesSite(model, "block"), ModulesSite(model, "attention")
    blanks: dict[int, Any] = {}
    outside: dict[int, Any] = {}

    def inner(*args: Any, **kwargs: Any) -> Any:
        return site.compute(model, args, kwargs, blanks, None, keep=True)[0]

    with torch.no_grad():
        _, values = outer.compute(inner, (), inputs, outside, None, keep=True)
        assert len(blanks) == 3
        outer.skip(inner, (), inputs, outside, newest(values))
        assert not site.reached
        # Nor is anything stored where only some of them were come to.
        outer._plans = {sort: plan._replace(keys=plan.keys[:2]) for sort, plan in outer._plans.items()}  # type: ignore[union-attr]
        del outside[2]
        result, kept = None, None

        def partly(*args: Any, **kwargs: Any) -> Any:
            nonlocal result, kept
            result, kept = site.compute(model, args, kwargs, blanks, None, keep=True)
            return result

        outer.skip(partly, (), inputs, outside, newest(values))
        assert site.reached
        assert kept == ()


def test_a_way_to_other_modules_is_watched_again() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.to_q = nn.Linear(4, 4)
            self.to_k = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.to_q(x) * self.to_k(x)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(Block() for _ in range(3))
            self.some = 2

        def forward(self, x: Tensor) -> Tensor:
            for block in list(self.blocks)[: self.some]:
                x = block(x)
            return x

    model = Model()
    site = ModulesSite(model, "attention")
    blanks: dict[int, Any] = {}
    x = tiny.noise(1, 3, 4)
    with torch.no_grad():
        assert len(site.compute(model, (x,), {}, blanks, None, keep=True)[1]) == 2
        model.some = 3
        assert site.compute(model, (x,), {}, blanks, None, keep=True)[1] == ()
        assert len(site.compute(model, (x,), {}, blanks, None, keep=True)[1]) == 3
        assert len(blanks) == 3


def test_compiled_code_is_left_alone() -> None:
    model = tiny.qwen_transformer(2)
    vars(model.transformer_blocks[1])["_compiled_call_impl"] = model.transformer_blocks[1]._call_impl
    site = ModulesSite(model, "attention")
    with pytest.raises(UnfitError, match=r"its transformer_blocks.1 is compiled"):
        site.compute(model, (), qwen_inputs(), {}, None, keep=True)
    blocks = ModulesSite(model, "block")  # which stand outside of what is compiled
    with torch.no_grad():
        assert blocks.compute(model, (), qwen_inputs(), {}, None, keep=True)[1]


def test_frames_are_told_by_the_shapes_of_all_calls_together() -> None:
    assert frame_count([(5, 64), (64, 5)]) == 5
    assert frame_count([(16, 16), (5, 64), (64, 5), (5, 16), (16, 5)]) is None
    assert frame_count([(5, 64), (64, 5), (5, 16), (16, 5), (5, 5)]) == 5
    assert frame_count([(1, 64), (1, 16)]) is None
    assert frame_count([(4, 16), (4, 16)]) is None  # windows of an image
    assert frame_count([]) is None


def test_as_many_frames_as_places_are_told_apart_by_name() -> None:
    found = kinds(tiny.latte_transformer(frames=16), latte_inputs(frames=16))
    assert {name.split(".")[0] for name, kind in found.items() if kind == "temporal_attention"} == {
        "temporal_transformer_blocks"
    }


def test_attention_outside_of_the_repeated_blocks_is_not_taken() -> None:
    model = tiny.qwen_transformer(2)
    model.pool = nn.Module()
    model.pool.to_q = nn.Linear(4, 4)
    assert len(attentions(model)) == 2
    assert len(feed_forwards(model)) == 4
    with Spotter(model):
        pass
    assert all("_compiled_call_impl" not in vars(one) for one in model.modules())
