"""One handle on every sort of pipeline: passes per step, steering, adapters, guidance that changes on the way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    FlowMatchEulerDiscreteScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLPipeline,
)
from torch import Tensor

import tiny
from hasten import accelerate
from hasten.caching.report import Report

STEPS = 8
COMPUTED = "CCCssCsC"  # warm-up 3, interval 3, cool-down 1

# Of the pipelines themselves, which ask for things that diffusers is about to change.
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:__array__ implementation:DeprecationWarning")


def latents(pipe: Any, call: dict[str, Any]) -> Tensor:
    result = pipe(**call, return_dict=False)
    return result[0]


def distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def kinds(report: Report) -> str:
    return "".join("C" if step.computed else "s" for step in report.steps)


def accelerated(pipe: Any, call: Callable[[], dict[str, Any]], **plan: Any) -> Report:
    """Check that nothing skipped changes nothing, that skipping changes little, and that removing restores."""
    plain = latents(pipe, call())
    with accelerate(pipe, interval=1):
        assert torch.equal(latents(pipe, call()), plain)
    with accelerate(pipe, **{"interval": 3, "order": 1, **plan}) as handle:
        result = latents(pipe, call())
        assert result.isfinite().all()
        assert 0 < distance(result, plain) < 1
        # The second run, with everything learned, is the same as the first.
        assert torch.equal(latents(pipe, call()), result)
    assert torch.equal(latents(pipe, call()), plain)
    report = handle.report()
    assert kinds(report) == COMPUTED
    assert not report.notes or all("in place of residual" in note for note in report.notes)
    return report


def vae(**config: Any) -> AutoencoderKL:
    model = AutoencoderKL(
        block_out_channels=(4, 4, 4, 4),
        norm_num_groups=2,
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        **config,
    )
    return tiny.random_(model, 2)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- UNets and what steers them ---


@pytest.fixture(scope="module")
def base() -> Any:
    return tiny.stable_diffusion()


def parts(base: Any, **others: Any) -> dict[str, Any]:
    return {**base.components, "requires_safety_checker": False, **others}


def image(channels: int = 3) -> Tensor:
    return tiny.noise(1, channels, 64, 64, seed=7).sigmoid()


def test_a_unet_whose_guidance_is_in_the_batch(base: Any) -> None:
    report = accelerated(base, lambda: tiny.stable_diffusion_call(STEPS))
    assert report.site == "unet_branch 0"
    assert [row.branch for row in report.branches] == ["0"]


def test_a_unet_without_guidance(base: Any) -> None:
    accelerated(base, lambda: tiny.stable_diffusion_call(STEPS, guidance_scale=1.0))


def test_inpainting_with_nine_channels(base: Any) -> None:
    unet = tiny.unet(
        1,
        in_channels=9,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipe = quiet(StableDiffusionInpaintPipeline(**parts(base, unet=unet)))
    mask = (image(1) > 0.5).float()
    report = accelerated(pipe, lambda: tiny.stable_diffusion_call(STEPS, image=image(), mask_image=mask))
    assert report.site == "unet_branch 0"


def test_a_unet_with_a_controlnet(base: Any) -> None:
    controlnet = ControlNetModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        layers_per_block=1,
        norm_num_groups=4,
        cross_attention_dim=24,
        attention_head_dim=4,
        conditioning_embedding_out_channels=(4, 4, 4, 8),
    )
    pipe = quiet(StableDiffusionControlNetPipeline(**parts(base, controlnet=tiny.random_(controlnet, 9))))

    report = accelerated(pipe, lambda: tiny.stable_diffusion_call(STEPS, image=image()))
    assert report.site == "unet_branch 0"


def test_three_samples_for_one_image(base: Any) -> None:
    unet = tiny.unet(
        1,
        in_channels=8,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    )
    pipe = quiet(StableDiffusionInstructPix2PixPipeline(**parts(base, unet=unet, image_encoder=None)))

    def call() -> dict[str, Any]:
        arguments = tiny.stable_diffusion_call(STEPS, image=image(), image_guidance_scale=1.5)
        return {key: value for key, value in arguments.items() if key not in ("height", "width")}

    accelerated(pipe, call)


def test_guidance_that_ends_on_the_way_costs_a_computed_step(base: Any) -> None:
    """As in diffusers' documentation: from step 5 on there is no unconditional sample in the batch."""

    def on_step_end(pipe: Any, index: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if index == 4:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[-1]
        return kwargs

    call = tiny.stable_diffusion_call(
        12, callback_on_step_end=on_step_end, callback_on_step_end_tensor_inputs=["prompt_embeds"]
    )
    with accelerate(base, "deepcache", interval=4) as handle:
        assert latents(base, call).isfinite().all()
    assert kinds(handle.report()) == "CsssCCssCsss"
    assert handle.report().steps[5].reason == "its input has another shape"


def test_sdxl_with_its_second_text_encoder_and_sizes() -> None:
    unet = tiny.unet(
        1,
        block_out_channels=(8, 16),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        transformer_layers_per_block=(1, 2),
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + 12,
    )
    scheduler = tiny.stable_diffusion().scheduler
    none = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    pipe = quiet(StableDiffusionXLPipeline(vae=vae(), unet=unet, scheduler=scheduler, **none))

    def call() -> dict[str, Any]:
        return tiny.stable_diffusion_call(
            STEPS, pooled_prompt_embeds=tiny.noise(1, 12), negative_pooled_prompt_embeds=tiny.noise(1, 12, seed=1)
        )

    assert accelerated(pipe, call).site == "unet_branch 0"


# --- adapters, loaded and switched between calls ---


def test_an_ip_adapter_is_loaded_weighed_and_taken_off_under_one_handle() -> None:
    pipe = tiny.stable_diffusion()
    call = lambda: tiny.stable_diffusion_call(STEPS)  # noqa: E731
    seen = lambda: call() | {"ip_adapter_image_embeds": [tiny.noise(2, 1, 12)]}  # noqa: E731
    plan: Any = {"interval": 3, "order": 1}
    plain = latents(pipe, call())
    with accelerate(pipe, **plan) as handle:
        without = latents(pipe, call())
        pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
        pipe.set_ip_adapter_scale(1.0)
        full = latents(pipe, seen())
        assert kinds(handle.report()) == COMPUTED
        pipe.set_ip_adapter_scale(0.3)
        less = latents(pipe, seen())
        assert kinds(handle.report()) == COMPUTED
    reference = latents(pipe, seen())
    assert 0 < distance(less, reference) < distance(full, reference)
    with accelerate(pipe, **plan):
        assert torch.equal(latents(pipe, seen()), less)
    with accelerate(pipe, **plan):
        latents(pipe, seen())
        pipe.unload_ip_adapter()
        assert torch.equal(latents(pipe, call()), without)
    assert torch.equal(latents(pipe, call()), plain)


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
@pytest.mark.parametrize("which", ["unet", "transformer"])
def test_a_lora_is_loaded_switched_and_taken_off_under_one_handle(which: str) -> None:
    peft = pytest.importorskip("peft", reason="diffusers needs peft for LoRA")
    if which == "unet":
        pipe, call = tiny.stable_diffusion(), lambda: tiny.stable_diffusion_call(STEPS)
    else:
        pipe, call = tiny.qwen(), lambda: tiny.qwen_call(STEPS)
    model = getattr(pipe, which)
    plan: Any = {"interval": 3, "order": 1}
    plain = latents(pipe, call())
    with accelerate(pipe, **plan) as handle:
        without = latents(pipe, call())
        for name, seed in (("one", 1), ("two", 2)):
            model.add_adapter(peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False), name)
            for key, weight in model.named_parameters():
                if f".{name}." in key:
                    weight.data.copy_(tiny.noise(*weight.shape, seed=seed))
        results = {}
        for name in ("one", "two"):
            model.set_adapters([name], [1.0])
            results[name] = latents(pipe, call())
            assert kinds(handle.report()) == COMPUTED
        model.disable_adapters()
        assert torch.allclose(latents(pipe, call()), without, atol=1e-5)
        model.enable_adapters()
        model.delete_adapters(["one", "two"])
    assert distance(results["one"], results["two"]) > 0.01
    assert torch.allclose(latents(pipe, call()), plain, atol=1e-5)


# --- transformers ---


@pytest.fixture(scope="module")
def sd3() -> Any:
    transformer = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        num_layers=4,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=24,
        caption_projection_dim=32,
        pooled_projection_dim=12,
        out_channels=4,
    )
    none = dict.fromkeys(f"{kind}{number}" for kind in ("text_encoder", "tokenizer") for number in ("", "_2", "_3"))
    pipe = StableDiffusion3Pipeline(
        transformer=tiny.random_(transformer, 5),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=vae(latent_channels=4, shift_factor=0.0, scaling_factor=1.0),
        **none,
    )
    return quiet(pipe)


def sd3_call(steps: int = STEPS, **more: Any) -> dict[str, Any]:
    return tiny.stable_diffusion_call(
        steps,
        pooled_prompt_embeds=tiny.noise(1, 12, seed=1),
        negative_pooled_prompt_embeds=tiny.noise(1, 12, seed=2),
        **more,
    )


def test_a_transformer_whose_guidance_is_in_the_batch(sd3: Any) -> None:
    assert accelerated(sd3, sd3_call).site == "residual"


def test_a_third_pass_that_leaves_blocks_out_and_comes_and_goes(sd3: Any) -> None:
    """Skip-layer guidance: one more call in a part of the run, which takes another way through the blocks."""

    def call() -> dict[str, Any]:
        return sd3_call(12, skip_guidance_layers=[1], skip_layer_guidance_start=0.2, skip_layer_guidance_stop=0.7)

    plain = latents(sd3, call())
    with accelerate(sd3, interval=3, order=1) as handle:
        result = latents(sd3, call())
    report = handle.report()
    assert [row.branch for row in report.branches] == ["0", "1"]
    batch, single = report.branches
    assert batch.computed + batch.skipped == 12
    assert 0 < single.computed + single.skipped < 12
    assert batch.skipped >= 4
    assert single.skipped >= 2
    assert 0 < distance(result, plain) < 1
    assert torch.equal(latents(sd3, call()), plain)


def test_one_pass_two_passes_and_none_at_some_steps() -> None:
    """True guidance in two calls, and no second call where its scale is one."""
    pipe = tiny.qwen()
    accelerated(pipe, lambda: tiny.qwen_call(STEPS, guided=False))
    report = accelerated(pipe, lambda: tiny.qwen_call(STEPS))
    assert [row.branch for row in report.branches] == ["cond", "uncond"]


def test_two_denoisers_that_take_turns() -> None:
    pipe = tiny.wan()
    plain = latents(pipe, tiny.wan_call(12))
    with accelerate(pipe, interval=3, order=1) as handle:
        result = latents(pipe, tiny.wan_call(12))
    names = {row.denoiser for row in handle.report().branches}
    assert names == {"transformer", "transformer_2"}
    assert 0 < distance(result, plain) < 1
    assert torch.equal(latents(pipe, tiny.wan_call(12)), plain)


# --- calls that are broken off ---


@pytest.fixture(scope="module")
def breakable(base: Any) -> dict[str, tuple[Any, Callable[..., dict[str, Any]]]]:
    return {"sd": (base, tiny.stable_diffusion_call), "wan": (tiny.wan(), tiny.wan_call)}


@pytest.mark.parametrize(
    ("which", "plan"),
    [
        ("sd", {"plan": "deepcache"}),
        ("sd", {"plan": "tgate", "gate_step": 4}),
        ("wan", {"plan": "fastercache"}),
        ("wan", {"plan": "easycache", "threshold": 0.5, "first_enhance": 2}),
    ],
    ids=lambda value: value if isinstance(value, str) else value["plan"],
)
def test_after_a_call_that_was_broken_off_the_next_one_is_as_ever(
    breakable: Any, which: str, plan: dict[str, Any]
) -> None:
    pipe, call = breakable[which]

    def broken_off(last: int, error: type[BaseException] | None) -> Callable[..., Any]:
        def on_step_end(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            if index == last and error is not None:
                raise error
            pipe._interrupt = index >= last
            return values

        return on_step_end

    with accelerate(pipe, **plan) as handle:
        good = latents(pipe, call(9))
        fates = kinds(handle.report())
        assert "s" in fates
        for error in (KeyboardInterrupt, RuntimeError):
            with pytest.raises(error):
                latents(pipe, call(9, seed=3, callback_on_step_end=broken_off(6, error)))
            assert torch.equal(latents(pipe, call(9)), good)
        latents(pipe, call(9, callback_on_step_end=broken_off(5, None)))
        assert kinds(handle.report()) == fates[:6]
        assert torch.equal(latents(pipe, call(9)), good)


# --- modular pipelines ---


@pytest.fixture(scope="module")
def modular() -> Any:
    from diffusers.guiders import ClassifierFreeGuidance
    from diffusers.modular_pipelines.qwenimage.modular_blocks_qwenimage import QwenImageCoreDenoiseStep

    base = tiny.qwen()
    pipe = QwenImageCoreDenoiseStep().init_pipeline()
    pipe.update_components(
        transformer=base.transformer, scheduler=base.scheduler, guider=ClassifierFreeGuidance(guidance_scale=3.0)
    )
    return pipe


def modular_latents(pipe: Any, steps: int = STEPS) -> Tensor:
    call = tiny.qwen_call(steps)
    names = ("prompt_embeds", "negative_prompt_embeds", "prompt_embeds_mask", "negative_prompt_embeds_mask")
    inputs = {name: call[name] for name in (*names, "height", "width", "generator", "num_inference_steps")}
    return pipe(**inputs, output="latents")


@pytest.mark.parametrize(("start", "stop"), [(0.0, 1.0), (0.25, 0.75)])
def test_a_modular_pipeline_and_its_guider(modular: Any, start: float, stop: float) -> None:
    from diffusers.guiders import ClassifierFreeGuidance

    modular.update_components(guider=ClassifierFreeGuidance(guidance_scale=3.0, start=start, stop=stop))
    plain = modular_latents(modular)
    with accelerate(modular, interval=1):
        assert torch.equal(modular_latents(modular), plain)
    with accelerate(modular, interval=3, order=1) as handle:
        result = modular_latents(modular)
        assert torch.equal(modular_latents(modular), result)
    report = handle.report()
    assert 0 < distance(result, plain) < 1
    assert torch.equal(modular_latents(modular), plain)
    assert len(report.steps) == STEPS
    assert report.skipped_steps >= 2
    assert len(report.branches) == 2
    if start > 0:  # a guidance interval: the second pass is there in the middle of the run alone
        first, second = report.branches
        assert second.computed + second.skipped < first.computed + first.skipped == STEPS
