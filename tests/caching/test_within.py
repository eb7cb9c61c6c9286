"""Methods that leave out parts of the blocks: their published steps, on pipelines, and what they leave behind."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.caching.methods import METHODS
from hasten.caching.policies import gate
from hasten.caching.resolving import expand, resolve
from hasten.errors import CacheError, PlanError
from hasten.plan import Cache, load_plan
from hasten.plan.resolved import resolved_dict

STEPS = 10
CALLS = {
    "qwen": tiny.qwen_call,
    "sd": tiny.stable_diffusion_call,
    "flux": tiny.flux_call,
    "wan": tiny.wan_call,
}
LAYERED = [name for name, method in METHODS.items() if method.layers]
OURS = [*LAYERED, "taylorseer-lite", "deepcache-blocks"]
# What makes a method skip in a run as short as the tests'.
SHORT = {"deepcache-blocks": {"first_enhance": 3, "cooldown": 1}, "tgate": {"gate_step": 5}}


@pytest.fixture(scope="module")
def pipes() -> SimpleNamespace:
    return SimpleNamespace(qwen=tiny.qwen(blocks=3), sd=tiny.stable_diffusion(), flux=tiny.flux(2, 1), wan=tiny.wan())


def run(pipes: Any, name: str, steps: int = STEPS, **more: Any) -> Tensor:
    return getattr(pipes, name)(**CALLS[name](steps, **more), return_dict=False)[0]


def computed(report: Any) -> list[int]:
    return [step.index for step in report.steps if step.computed]


def layers(handle: Any) -> dict[str, list[int]]:
    return {layer.site: computed(layer) for layer in handle.report().layers}


def state(model: nn.Module) -> dict[str, dict[str, Any]]:
    return {name: dict(vars(module)) for name, module in model.named_modules()}


# --- nothing is skipped, nothing is left ---


@pytest.mark.filterwarnings("ignore:hasten skipped nothing")
@pytest.mark.parametrize("name", CALLS)
def test_with_nothing_skipped_the_latents_are_those_of_plain_diffusers(pipes: Any, name: str) -> None:
    plain = run(pipes, name)
    for method in OURS:
        everything = {"gate_step": STEPS, "interval": 1} if method == "tgate" else {"mask": list(range(STEPS))}
        with accelerate(getattr(pipes, name), {"cache": {"method": method, **everything}}) as handle:
            assert torch.equal(run(pipes, name), plain), method
        assert handle.report().skipped == 0


@pytest.mark.parametrize("name", CALLS)
def test_skipping_changes_little_and_is_taken_off_whole(pipes: Any, name: str) -> None:
    pipe = getattr(pipes, name)
    model = pipe.unet if name == "sd" else pipe.transformer
    plain, before = run(pipes, name), state(model)
    for method in OURS:
        handle = accelerate(pipe, method, **SHORT.get(method, {}))
        latents = run(pipes, name)
        assert latents.isfinite().all()
        error = float((latents - plain).norm() / plain.norm())
        assert 0 < error < 0.5, method
        handle.remove()
        assert state(model) == before
    assert torch.equal(run(pipes, name), plain)


# --- the published steps ---


def test_pab_repeats_attention_by_kind_within_its_timesteps(pipes: Any) -> None:
    with accelerate(pipes.wan, "pab") as handle:
        run(pipes, "wan", steps=20)
    timesteps = pipes.wan.scheduler.timesteps.tolist()
    within = [100 < timestep < 800 for timestep in timesteps]
    assert layers(handle)["spatial_attention"] == [
        k for k in range(20) if k % 2 == 0 or not within[k] or k == first_of_the_second(handle)
    ]
    assert layers(handle)["cross_attention"] == [
        k for k in range(20) if k % 6 == 0 or not within[k] or k == first_of_the_second(handle)
    ]


def first_of_the_second(handle: Any) -> int:
    """The step at which the second denoiser takes over, and has no snapshot yet."""
    found = [row for row in handle.report().layers[0].branches if row.denoiser == "transformer"]
    return found[0].computed + found[0].skipped


def test_fora_repeats_every_part_for_an_interval(pipes: Any) -> None:
    with accelerate(pipes.wan, "fora", interval=3) as handle:
        run(pipes, "wan", steps=9)
    second = {first_of_the_second(handle)}
    steps = sorted({0, 3, 6, 8} | second)
    assert layers(handle) == dict.fromkeys(("attention", "cross_attention", "feed_forward"), steps)


def test_taylorseer_has_its_published_steps(pipes: Any) -> None:
    with accelerate(pipes.flux, "taylorseer-sublayer", cooldown=0) as handle:
        run(pipes, "flux", steps=16)
    assert layers(handle)["attention"] == layers(handle)["feed_forward"] == [0, 1, 2, 8, 14]
    with accelerate(pipes.flux, "taylorseer-lite") as handle:
        run(pipes, "flux", steps=14)
    assert computed(handle.report()) == [0, 1, 2, 7, 12, 13]


def test_fastercache_extrapolates_attention_where_the_unconditional_half_is_left_out(pipes: Any) -> None:
    with accelerate(pipes.sd, "fastercache") as handle:
        run(pipes, "sd", steps=20)
    timesteps = pipes.sd.scheduler.timesteps.tolist()
    both = [k for k in range(20) if k % 5 == 0 or timesteps[k] >= 641]
    found = layers(handle)
    assert found["guidance"] == both
    assert found["attention"] == [k for k in range(20) if k % 2 == 0 or k in both]


@pytest.mark.parametrize("drop", [True, False])
def test_tgate_has_two_phases(pipes: Any, drop: bool) -> None:
    sizes: list[int] = []
    hook = pipes.sd.unet.conv_in.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    options = {"gate_step": 6, "interval": 3, "fi_interval": 2, "first_enhance": 2, "drop_guidance": drop}
    with accelerate(pipes.sd, "tgate", **options) as handle:
        run(pipes, "sd", steps=12)
    hook.remove()
    found = layers(handle)
    assert found["cross_attention"] == [0, 1, 2, 3, 4, 5]
    assert found["attention"] == [0, 1, 3, 5, 6, 8, 10]
    assert ("guidance" in found) == drop
    if drop:
        assert sizes == [2] * 6 + [1] + [1] * 6  # and once to see that halves can be computed
    else:
        assert sizes == [2] * 12


def test_a_step_whose_unconditional_call_is_left_out_counts_as_skipped(pipes: Any) -> None:
    with accelerate(pipes.qwen, "tgate", gate_step=5) as handle:
        run(pipes, "qwen", steps=9)
    assert computed(handle.report()) == [0, 1, 2, 4]
    assert handle.report().skipped_steps == 5


def test_the_gate_is_closed_for_ever_where_there_is_no_interval_after_it() -> None:
    steps = [k for k in range(30) if gate(k, 30, gate_step=4, interval=1, after=None, first_enhance=1).compute]
    assert steps == [0, 1, 2, 3]


def test_deepcache_for_blocks_runs_the_last_block_alone(pipes: Any) -> None:
    calls: list[int] = []
    hooks = [
        block.register_forward_hook(lambda *_, number=number: calls.append(number))
        for number, block in enumerate(pipes.qwen.transformer.transformer_blocks)
    ]
    with accelerate(pipes.qwen, "deepcache-blocks", first_enhance=1, interval=4, cooldown=0) as handle:
        run(pipes, "qwen", steps=4, guided=False)
    for hook in hooks:
        hook.remove()
    assert computed(handle.report()) == [0]
    # The first step, once more what is left of it as a trial, and the last block of three steps.
    assert calls == [0, 1, 2, 2, 2, 2, 2]


# --- limits ---


def test_outside_of_its_timesteps_any_method_computes(pipes: Any) -> None:
    with accelerate(pipes.qwen, "reuse", timesteps=[300, 700], interval=20, first_enhance=1, cooldown=0) as handle:
        run(pipes, "qwen", steps=12)
    timesteps = pipes.qwen.scheduler.timesteps.tolist()
    assert computed(handle.report()) == [k for k in range(12) if k == 0 or not 300 < timesteps[k] < 700]
    assert {"outside of cache.timesteps"} < set(handle.report().branches[0].reasons)


def test_a_denoiser_with_its_timestep_from_zero_to_one_has_the_same_scale() -> None:
    model = tiny.qwen_transformer(2)
    call = {
        "hidden_states": tiny.noise(1, 16, 16),
        "encoder_hidden_states": tiny.noise(1, 7, 24),
        "encoder_hidden_states_mask": torch.ones(1, 7, dtype=torch.long),
        "img_shapes": [[(1, 4, 4)]],
    }
    with accelerate(model, "pab") as handle, torch.no_grad():
        for timestep in (0.95, 0.85, 0.75, 0.65, 0.55, 0.05):
            model(timestep=torch.tensor([timestep]), **call)
    assert layers(handle)["spatial_attention"] == [0, 1, 2, 4, 5]


def test_what_a_model_does_not_have_is_said_and_the_rest_goes_on(pipes: Any) -> None:
    with accelerate(pipes.flux, "pab") as handle:
        run(pipes, "flux")
    assert any("no cross-attention" in note for note in handle.report().notes)
    assert "cross_attention: transformer" not in str(handle.report())
    with (
        accelerate(pipes.flux, "pab", site="cross_attention"),
        pytest.warns(UserWarning, match="it has no cross-attention in its blocks"),
    ):
        run(pipes, "flux")
    with (
        accelerate(pipes.flux, "reuse", site="cross_attention"),
        pytest.raises(CacheError, match="has no site 'cross_attention': it has no cross-attention in its blocks"),
    ):
        run(pipes, "flux")


def test_another_shape_in_the_middle_costs_a_computed_step(pipes: Any) -> None:
    with accelerate(pipes.qwen, "reuse", site="attention", interval=9, first_enhance=1, cooldown=0) as handle:
        for call in (tiny.qwen_call(4), tiny.qwen_call(5, batch=2), tiny.qwen_call(3, height=64)):
            assert pipes.qwen(**call, return_dict=False)[0].isfinite().all()
            assert computed(handle.report()) == [0]


def test_a_sub_layer_layer_within_a_residual_layer_is_asked_where_that_computes(pipes: Any) -> None:
    inner = {"method": "reuse", "site": "attention", "interval": 2, "first_enhance": 1}
    with accelerate(pipes.qwen, cache=[{"method": "taylorseer", "interval": 4}, inner]) as handle:
        latents = run(pipes, "qwen", steps=12)
    outer, within = handle.report().layers
    assert latents.isfinite().all()
    assert computed(outer) == [0, 1, 2, 6, 10, 11]
    assert [step.index for step in within.steps] == [0, 1, 2, 6, 10, 11]
    assert computed(within) == [0, 2, 6, 10, 11]
    # A span keeps blocks running at its skipped steps: what the layer within finds there it leaves out, too.
    span = {"method": "reuse", "site": "span", "span": [1, 1], "interval": 4}
    with accelerate(pipes.qwen, cache=[span, inner]) as handle:
        assert run(pipes, "qwen", steps=12).isfinite().all()
    assert [step.index for step in handle.report().layers[1].steps] == list(range(12))


def test_the_ceiling_holds_for_all_layers_together(pipes: Any) -> None:
    with accelerate(pipes.wan, "fora", size=0.01) as handle:
        run(pipes, "wan")
        assert 0 < handle.report().snapshot_bytes <= 0.01 * 2**20
    with accelerate(pipes.wan, "fora", size=0.002) as handle:
        with pytest.warns(UserWarning, match="no room"):
            run(pipes, "wan")
        assert any("cache.size" in note for note in handle.report().notes)


# --- in plans ---


@pytest.mark.parametrize("name", LAYERED)
def test_a_method_of_layers_resolves_to_a_list_that_is_the_same_plan(name: str) -> None:
    plan = load_plan(name)
    written = load_plan(resolved_dict(plan))
    assert len(written.caches) == len(METHODS[name].layers)
    assert [expand(section) for section in written.caches] == [(layer,) for layer in expand(plan.caches[0])]


def test_a_resolved_plan_names_what_is_fixed_for_a_layer_and_a_layer_by_itself_takes_it() -> None:
    guidance, attention, cross = resolved_dict(load_plan("tgate"))["cache"]
    assert (guidance["interval"], attention["interval"], cross["interval"]) == (1, 5, 1)
    assert guidance["first_enhance"] == 1
    assert resolved_dict(load_plan("fastercache"))["cache"][0]["timesteps"] == [-1, 641]
    assert resolve({"method": "fastercache", "interval": 3, "site": "guidance"}).interval == 3
    assert [layer.interval for layer in expand(Cache(method="fastercache", interval=3))] == [5, 3]


def test_keys_of_the_section_go_to_the_layers_that_they_mean_something_to() -> None:
    spatial, temporal, cross = expand(Cache(method="pab", interval=3))
    assert (spatial.interval, temporal.interval, cross.interval) == (3, 3, 3)
    guidance, attention, cross = expand(Cache(method="tgate", gate_step=7, interval=2))
    assert (guidance.gate_step, attention.gate_step, cross.gate_step) == (7, 7, 7)
    assert (guidance.interval, attention.interval, cross.interval) == (1, 2, 1)
    guidance, attention = expand(Cache(method="fastercache", damping=0.3, gains=(1.2, 1.0)))
    assert (attention.damping, guidance.predictor, guidance.gains) == (0.3, "reuse", (1.2, 1.0))
    assert resolve({"method": "pab", "site": "cross_attention"}).interval == 6


@pytest.mark.parametrize(
    ("cache", "reason"),
    [
        ({"method": "pab", "site": "output"}, "method 'pab' has no layer at site 'output'; its layers: spatial"),
        (
            {"method": "pab", "gains": [1, 1]},
            "cache.gains: has no effect with site 'cross_attention' or 'spatial_attention' or",
        ),
        ({"method": "fora", "drop_guidance": False}, "cache.drop_guidance: method 'fora' drops no guidance"),
        ({"method": "pab", "timesteps": [800, 100]}, "cache.timesteps: no timestep lies between 800 and 100"),
        ({"method": "fastercache", "site": "guidance", "damping": 0.3}, "cache.damping: has no effect with"),
        ({"policy": "gate"}, "policy 'gate' needs cache.gate_step"),
        ({"gate_step": 4}, "cache.gate_step: has no effect with policy 'interval'"),
        ([{"method": "fora"}, {"site": "attention"}], "sections 0 and 1 both cache site attention"),
        ([{"site": "attention"}, {"method": "pab"}], "sections 0 and 1 leave out the same modules"),
        ([{"site": "block"}, {"site": "residual"}], "sections 0 and 1 leave out the same modules"),
    ],
)
def test_combinations_that_cannot_be_are_refused(cache: Any, reason: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan({"cache": cache})
    assert reason in str(caught.value)
