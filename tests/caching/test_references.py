"""Beside other implementations of the same methods: the same steps, and equal latents where the mathematics agrees."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from diffusers import FasterCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig
from diffusers.hooks import SeaCacheConfig, apply_taylorseer_cache, faster_cache
from torch import Tensor, nn

import tiny
from denoisers import CASES
from hasten import accelerate

STEPS = 12

# Of the other implementations.
pytestmark = pytest.mark.filterwarnings(
    "ignore:torch.meshgrid:UserWarning", "ignore::FutureWarning", "ignore:In CPU autocast"
)


@contextmanager
def hooked(pipe: Any, config: Any) -> Iterator[None]:
    """diffusers' own cache at work."""
    pipe.transformer.enable_cache(config)
    try:
        yield
    finally:
        pipe.transformer.disable_cache()


@contextmanager
def counted(model: nn.Module, part: nn.Module) -> Iterator[list[list[int]]]:
    """For each call of a model, the batch sizes of the calls of one of its modules."""
    calls: list[list[int]] = []
    handles = [
        model.register_forward_pre_hook(lambda *_: calls.append([])),
        part.register_forward_pre_hook(lambda module, args: calls[-1].append(len(args[0]))),
    ]
    yield calls
    for handle in handles:
        handle.remove()


def latents(pipe: Any, call: dict[str, Any]) -> Tensor:
    return pipe(**call, return_dict=False)[0]


def steps(report: Any) -> list[int]:
    return [step.index for step in report.steps if step.computed]


# --- TaylorSeer ---


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("lite", [False, True])
def test_taylorseer(lite: bool, order: int) -> None:
    pipe = tiny.flux(2, 1)
    config = TaylorSeerCacheConfig(
        cache_interval=3,
        disable_cache_before_step=3,
        max_order=order,
        taylor_factors_dtype=torch.float32,
        use_lite_mode=lite,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    # diffusers counts the interval from the step after the warm-up on: 3, then 4, 7, 10.
    computed = [0, 1, 2, 4, 7, 10]
    site = "output" if lite else "attention"
    options: dict[str, Any] = {"site": site, "predictor": "taylor", "order": order, "mask": computed, "cooldown": 0}
    with accelerate(pipe, "taylorseer", **options) as handle:
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert steps(handle.report()) == computed
    assert torch.allclose(ours, reference, atol=1e-4)


def test_diffusers_taylorseer_changes_nothing_on_wan_and_ours_does() -> None:
    pipe = tiny.wan()
    plain = latents(pipe, tiny.wan_call(STEPS))
    with hooked(pipe, TaylorSeerCacheConfig(cache_interval=3)):
        assert torch.equal(latents(pipe, tiny.wan_call(STEPS)), plain)
    with accelerate(pipe, "taylorseer", site="attention") as handle:
        assert not torch.equal(latents(pipe, tiny.wan_call(STEPS)), plain)
    assert handle.report().skipped > 0


@pytest.mark.parametrize("kind", ["Wan", "LTXVideo", "CogVideoX", "Mochi"])
def test_diffusers_taylorseer_hooks_no_module_of_these_models_and_ours_finds_all_attention(kind: str) -> None:
    case = CASES[f"{kind}Transformer3DModel"]
    model = case.build(f"{kind}Transformer3DModel")
    apply_taylorseer_cache(model, TaylorSeerCacheConfig())
    assert not any(hasattr(module, "_diffusers_hook") for module in model.modules())
    parts = [module for name, module in model.named_modules() if name.rpartition(".")[2].startswith("attn")]
    called: list[nn.Module] = []
    for part in parts:
        part.register_forward_pre_hook(lambda module, *_: called.append(module))
    with accelerate(model, "taylorseer-sublayer", interval=4) as handle, torch.no_grad():
        for k in range(6):
            called.clear()
            handle.step(k, total=6)
            assert model(**case.arguments(k, 6), return_dict=False)[0].isfinite().all()
            assert set(called) == (set(parts) if k in (0, 1, 2, 5) else set())
    assert {row.site for row in handle.report().layers[0].branches} == {"attention"}


# --- Pyramid Attention Broadcast ---


def test_pyramid_attention_broadcast() -> None:
    pipe = tiny.flux(2, 1)
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(100, 800),
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    with accelerate(pipe, "pab", interval=2):
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert torch.allclose(ours, reference, atol=1e-4)
    assert not torch.allclose(ours, latents(pipe, tiny.flux_call(STEPS)), atol=1e-4)


PAB = [
    {"method": "pab", "site": "spatial_attention", "interval": 2},
    {"method": "pab", "site": "cross_attention", "interval": 3},
]


@pytest.fixture(scope="module")
def wan() -> Any:
    """With one denoiser for the whole run, as Wan 2.1."""
    pipe = tiny.wan()
    pipe.register_modules(transformer_2=None)
    pipe.register_to_config(boundary_ratio=None)
    return pipe


def broadcast(pipe: Any) -> PyramidAttentionBroadcastConfig:
    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=3,
        current_timestep_callback=lambda: pipe._current_timestep,
    )


def test_pyramid_attention_broadcast_over_two_kinds_of_attention(wan: Any) -> None:
    call = lambda: tiny.wan_call(STEPS, guidance_scale=1.0)  # noqa: E731
    with hooked(wan, broadcast(wan)):
        reference = latents(wan, call())
    with accelerate(wan, cache=PAB):
        ours = latents(wan, call())
    assert torch.allclose(ours, reference, atol=1e-4)
    assert not torch.allclose(ours, latents(wan, call()), atol=1e-4)


def test_of_two_passes_diffusers_pab_gives_the_second_the_attention_of_the_first(wan: Any) -> None:
    """It counts calls, not steps: with an interval of 2 no conditional pass is ever skipped, and every other is."""
    part = wan.transformer.blocks[1].attn1.to_q
    with hooked(wan, broadcast(wan)), counted(wan.transformer, part) as theirs:
        latents(wan, tiny.wan_call(STEPS))
    within = [100 < t < 800 for t in wan.scheduler.timesteps.tolist()]
    assert sum(within) > 4
    assert theirs[::2] == [[1]] * STEPS
    assert theirs[1::2] == [[] if inside else [1] for inside in within]
    with accelerate(wan, cache=PAB):
        latents(wan, tiny.wan_call(STEPS))  # the first run tries skipping out
        with counted(wan.transformer, part) as ours:
            latents(wan, tiny.wan_call(STEPS))
    assert ours[::2] == ours[1::2] == [[] if inside and k % 2 else [1] for k, inside in enumerate(within)]


# --- FasterCache ---


def test_fastercache_without_guidance() -> None:
    pipe = tiny.flux(2, 1)

    config = FasterCacheConfig(
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 681),
        attention_weight_callback=lambda _: 0.0,
        is_guidance_distilled=True,
        current_timestep_callback=lambda: pipe._current_timestep,
    )
    with hooked(pipe, config):
        reference = latents(pipe, tiny.flux_call(STEPS))
    with accelerate(pipe, "fastercache", site="attention", damping=0.0):
        ours = latents(pipe, tiny.flux_call(STEPS))
    assert torch.allclose(ours, reference, atol=1e-4)


@pytest.fixture(scope="module")
def cogvideox() -> Any:
    return tiny.cogvideox()


def faster(pipe: Any, **more: Any) -> FasterCacheConfig:
    return FasterCacheConfig(tensor_format="BFCHW", current_timestep_callback=lambda: pipe._current_timestep, **more)


def test_fastercache_predicts_the_unconditional_branch_in_two_bands(cogvideox: Any) -> None:
    """Both factors and both bands, over the whole run; of attention one step that follows two computed ones."""
    plain = latents(cogvideox, tiny.cogvideox_call(STEPS))
    timesteps = cogvideox.scheduler.timesteps.tolist()
    one = (timesteps[8], timesteps[6])
    config = faster(
        cogvideox, unconditional_batch_timestep_skip_range=(-1, 1001), spatial_attention_timestep_skip_range=one
    )
    with hooked(cogvideox, config):
        reference = latents(cogvideox, tiny.cogvideox_call(STEPS))
    layers = [
        {"method": "fastercache", "site": "guidance", "timesteps": [-1, 1001]},
        {"method": "fastercache", "site": "attention", "timesteps": one},
    ]
    with accelerate(cogvideox, cache=layers) as handle:
        ours = latents(cogvideox, tiny.cogvideox_call(STEPS))
    guidance, attention = handle.report().layers
    assert steps(guidance) == [0, 5, 10]
    assert [k for k in range(STEPS) if k not in steps(attention)] == [7]
    assert torch.allclose(ours, reference, atol=1e-4)
    assert not torch.allclose(ours, plain, atol=1e-2)


@pytest.mark.parametrize("mended", [False, True])
def test_diffusers_fastercache_extrapolates_its_own_extrapolations(
    cogvideox: Any, mended: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same steps are computed by both, and with that one thing mended the latents are the same."""
    if mended:
        theirs = faster_cache.FasterCacheBlockHook.new_forward

        def new_forward(self: Any, module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            before, called = self.state.cache, []
            inner = self.fn_ref.original_forward
            self.fn_ref.original_forward = lambda *a, **k: called.append(1) or inner(*a, **k)
            try:
                return theirs(self, module, *args, **kwargs)
            finally:
                self.fn_ref.original_forward = inner
                if not called:
                    self.state.cache = before

        monkeypatch.setattr(faster_cache.FasterCacheBlockHook, "new_forward", new_forward)
    call, part = (lambda: tiny.cogvideox_call(16)), cogvideox.transformer.transformer_blocks[1].attn1.to_q
    with hooked(cogvideox, faster(cogvideox)), counted(cogvideox.transformer, part) as their_calls:
        reference = latents(cogvideox, call())
    with accelerate(cogvideox, "fastercache"):
        latents(cogvideox, call())
        with counted(cogvideox.transformer, part) as our_calls:
            ours = latents(cogvideox, call())
    assert our_calls == their_calls
    assert [] in our_calls
    assert [1] in our_calls
    assert torch.allclose(ours, reference, atol=1e-4) == mended


def test_diffusers_fastercache_cannot_take_two_passes_and_ours_can(wan: Any) -> None:
    with hooked(wan, faster(wan)), pytest.raises(IndexError, match="tuple index out of range"):
        latents(wan, tiny.wan_call(STEPS))
    with accelerate(wan, "fastercache") as handle:
        assert latents(wan, tiny.wan_call(STEPS)).isfinite().all()
    rows = {row.branch: row.skipped for row in handle.report().layers[0].branches}
    assert rows["cond"] == 0 < rows["uncond"]


# --- SeaCache ---


@pytest.mark.parametrize("threshold", [0.25, 0.6])
def test_seacache(wan: Any, threshold: float) -> None:
    part = wan.transformer.blocks[1].attn1.to_q
    config = SeaCacheConfig(threshold=threshold)
    with hooked(wan, config), counted(wan.transformer, part) as theirs:
        reference = latents(wan, tiny.wan_call(STEPS))
    with accelerate(wan, "seacache", threshold=threshold):
        latents(wan, tiny.wan_call(STEPS))
        with counted(wan.transformer, part) as ours:
            result = latents(wan, tiny.wan_call(STEPS))
    assert ours == theirs
    assert [] in ours
    assert torch.allclose(result, reference, atol=1e-4)


# --- T-GATE ---


@pytest.fixture(scope="module")
def tgate() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it was written for a diffusers of long ago
        return pytest.importorskip("tgate", reason="the package is not installed: pip install --no-deps tgate")


@pytest.mark.parametrize(("gate", "before", "after"), [(5, 3, 2), (8, 5, 1), (4, 1, 4)])
def test_tgate(tgate: Any, gate: int, before: int, after: int) -> None:
    pipe, package = tiny.stable_diffusion(), tiny.stable_diffusion()
    tgate.TgateSDLoader(package)
    selfs = [f"down_blocks.0.attentions.0.transformer_blocks.0.attn{kind}.to_q" for kind in (1, 2)]

    def calls(model: nn.Module, run: Any) -> tuple[Tensor, list[list[list[int]]]]:
        first, second = (model.get_submodule(name) for name in selfs)
        with counted(model, first) as own, counted(model, second) as cross:
            return run(), [own, cross]

    arguments = {"gate_step": gate, "sp_interval": before, "fi_interval": after, "warm_up": 2}
    reference, theirs = calls(
        package.unet,
        lambda: package.tgate(**tiny.stable_diffusion_call(STEPS), **arguments, return_dict=False)[0],
    )
    with accelerate(pipe, "tgate", gate_step=gate, interval=before, fi_interval=after):
        latents(pipe, tiny.stable_diffusion_call(STEPS))
        result, ours = calls(pipe.unet, lambda: latents(pipe, tiny.stable_diffusion_call(STEPS)))
    assert ours == theirs
    assert theirs[1] == [[2]] * gate + [[]] * (STEPS - gate)
    assert torch.allclose(result, reference, atol=1e-4)
    assert not torch.allclose(result, latents(pipe, tiny.stable_diffusion_call(STEPS)), atol=1e-2)
