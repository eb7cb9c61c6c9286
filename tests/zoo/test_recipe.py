"""The recipe runs from nothing to a folder that diffusers loads, and goes on where it stopped."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hasten.zoo.family import PROBED, Family, pack, unpack
from hasten.zoo.qwen import PREFIX_TOKENS, TEMPLATE, FlatVAE, Qwen, build_tokenizer, build_transformer, build_vae
from hasten.zoo.qwen_denoiser import TrainingQwen, rotary
from hasten.zoo.recipe import Recipe, train
from hasten.zoo.sd import StableDiffusion, build_scheduler, build_unet
from hasten.zoo.train_denoiser import Schedule, Trainer
from hasten.zoo.training import Optimizer, flat_then_linear

TINY = Recipe(
    vae_steps=2,
    vae_batch=8,
    decoder_steps=1,
    text_steps=2,
    text_batch=8,
    width=64,
    layers=4,
    workers=1,
    compiled=False,
    looks=1,
    denoiser=Schedule(low_steps=2, high_steps=2, low_batch=4, high_batch=4),
)


def test_the_recipe_ends_in_a_pipeline_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    from diffusers import QwenImagePipeline

    short = replace(TINY, denoiser=Schedule(low_steps=2, high_steps=1, low_batch=4, high_batch=4))
    train(tmp_path, short, quiet=True)
    stopped = torch.load(tmp_path / "denoiser.pt", weights_only=True)
    assert stopped["step"] == 3
    pipeline = train(tmp_path, TINY, quiet=True)
    assert torch.load(tmp_path / "denoiser.pt", weights_only=True)["step"] == 4
    curve = (tmp_path / "denoiser.csv").read_text().splitlines()
    assert curve[0].startswith("step,size,seconds,loss")
    assert [row.split(",")[0] for row in curve[1:]] == ["3", "4"]
    assert json.loads((tmp_path / "recipe.json").read_text())["denoiser"]["high_steps"] == 2
    assert json.loads((pipeline / "hasten.json").read_text())["height"] == 128

    pipe = QwenImagePipeline.from_pretrained(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.transformer.dtype == torch.float32
    image = pipe("a red circle", negative_prompt=" ", height=128, width=128, num_inference_steps=2).images[0]
    assert image.size == (128, 128)


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' DPM-Solver on numpy 2
def test_the_other_family_ends_in_its_pipeline(tmp_path: Path) -> None:
    from diffusers import DPMSolverMultistepScheduler, StableDiffusionPipeline

    recipe = replace(TINY, family="scenes-sd", finish_steps=1, width=32, layers=1, denoiser=Schedule(0, 1, 4, 4))
    pipeline = train(tmp_path, recipe, quiet=True)
    pipe = StableDiffusionPipeline.from_pretrained(pipeline, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    assert pipe.safety_checker is None
    assert pipe.unet.config.sample_size * pipe.vae_scale_factor == 128
    images = pipe(["a red circle", "a star"], num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 128, 128, 3)
    pipe.scheduler = DPMSolverMultistepScheduler.from_config(pipe.scheduler.config)
    assert pipe("a red circle", num_inference_steps=2).images[0].size == (128, 128)


def test_the_prompt_templates_prefix_is_what_the_pipeline_drops() -> None:
    tokenizer = build_tokenizer()
    prefix, suffix = TEMPLATE.split("{}")
    ids = tokenizer(TEMPLATE.format("a red circle")).input_ids
    assert tokenizer.decode(ids[:PREFIX_TOKENS]) == prefix
    assert tokenizer.decode(ids[PREFIX_TOKENS:]) == "a red circle" + suffix
    assert tokenizer.decode(tokenizer("红色的圆 🙂").input_ids) == "红色的圆 🙂"


def test_training_computes_what_diffusers_computes() -> None:
    torch.manual_seed(0)
    model = build_transformer(64, 4)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    training = TrainingQwen(build_transformer(64, 4), dtype=torch.float32, compiled=False)
    training.model.load_state_dict(model.state_dict())
    noisy, sigma, text = torch.randn(2, 256, 16), torch.rand(2), torch.randn(2, 32, 128)
    mask = torch.arange(32) < torch.tensor([[20], [32]])
    with torch.no_grad():
        ours, _ = training(noisy, sigma, text, mask)
        theirs = model(
            hidden_states=noisy, encoder_hidden_states=text, encoder_hidden_states_mask=mask, timestep=sigma,
            img_shapes=[[(1, 16, 16)]] * 2, return_dict=False,
        )[0]  # fmt: skip
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_the_training_unet_computes_what_diffusers_computes() -> None:
    torch.manual_seed(0)
    model = build_unet(32)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    training = StableDiffusion().training_denoiser(build_unet(32), torch.float32)
    training.model.load_state_dict(model.state_dict())
    noisy, time, text = torch.randn(2, 256, 8), torch.tensor([999, 5]), torch.randn(2, 32, 128)
    with torch.no_grad():
        ours, probe = training(noisy, time, text, torch.ones(2, 32, dtype=torch.bool))
        theirs = model(unpack(noisy, 1), time, encoder_hidden_states=text).sample
    assert torch.allclose(unpack(ours, 1), theirs, atol=1e-5)
    assert probe.shape == (2, 256, PROBED)


def test_normalised_latents_have_mean_0_and_deviation_1_and_mean_the_same_picture() -> None:
    torch.manual_seed(0)
    flat = StableDiffusion().training_vae(StableDiffusion().build_vae())
    pixels = torch.rand(4, 3, 32, 32) * 2 - 1
    with torch.no_grad():
        latents, log_variance = flat.encode(pixels)
        mean, std = latents.mean((0, 2, 3)), latents.std((0, 2, 3))
        picture = flat.decode(latents)
        StableDiffusion().finish_vae(flat, mean, std)
        normalised, smaller = flat.encode(pixels)
        assert torch.allclose(normalised.mean((0, 2, 3)), torch.zeros(8), atol=1e-4)
        assert torch.allclose(normalised.std((0, 2, 3)), torch.ones(8), atol=1e-4)
        assert torch.allclose(smaller + 2 * std.log()[:, None, None], log_variance, atol=1e-4)
        assert torch.allclose(flat.decode(normalised), picture, atol=1e-3)


def test_the_noise_goes_all_the_way_down() -> None:
    family, x = StableDiffusion(), torch.zeros(4, 256, 8)
    torch.manual_seed(0)
    noised = family.add_noise(x)
    kept = build_scheduler().alphas_cumprod[noised.level, None, None]
    assert torch.allclose(noised.noisy, (1 - kept).sqrt() * noised.target / kept.sqrt(), atol=1e-4)  # of nothing
    assert build_scheduler().alphas_cumprod[-1] == 0


@pytest.mark.parametrize("family", [Qwen(), StableDiffusion()])
def test_the_target_gives_the_latents_back(family: Family) -> None:
    x = torch.randn(4, 256, 8)
    noised = family.add_noise(x, faint=True)
    assert torch.allclose(noised.recover(noised.target), x, atol=1e-4)


def test_every_byte_is_a_clip_token() -> None:
    tokenizer = StableDiffusion().build_tokenizer()
    assert tokenizer("a red circle", padding="max_length").input_ids[-1] == tokenizer.eos_token_id
    assert len(tokenizer("a red circle").input_ids) == 5
    assert tokenizer.decode(tokenizer("红色的圆 🙂").input_ids, skip_special_tokens=True).strip() == "红色的圆 🙂"


def test_kernels_of_convolutions_are_matrices_to_muon() -> None:
    convolution = torch.nn.Conv2d(16, 32, 3)
    before = convolution.weight.detach().clone()
    optimizer = Optimizer(convolution.named_parameters())
    convolution(torch.randn(1, 16, 8, 8)).square().mean().backward()
    optimizer.step(1.0)
    change = (convolution.weight - before).flatten(1)
    assert convolution.weight.grad is None
    assert torch.linalg.cond(change.double()) < 10  # orthogonalised: no direction is neglected


def test_flat_convolutions_are_the_videos_for_one_frame() -> None:
    torch.manual_seed(0)
    pixels = torch.rand(1, 3, 64, 64) * 2 - 1
    flat = FlatVAE(build_vae())
    with torch.no_grad():
        mean, _ = flat.encode(pixels)
        decoded = flat.decode(mean)
        vae = flat.write_back()
        assert torch.allclose(vae.encode(pixels[:, :, None]).latent_dist.mode()[:, :, 0], mean, atol=1e-4)
        assert torch.allclose(vae.decode(mean[:, :, None]).sample[:, :, 0], decoded, atol=1e-4)
    assert not any("forward" in vars(module) for module in vae.modules())


def test_places_keep_their_angles_across_sizes() -> None:
    large, small = rotary(16, 4)[0], rotary(8, 4)[0]
    angle = torch.atan2(large[1], large[0]).view(16, 16, 32)[:, :, 8]  # the first, fastest row angle
    coarse = torch.atan2(small[1], small[0]).view(8, 8, 32)[:, :, 8]
    between = torch.atan2(torch.sin(coarse - angle[::2, ::2]), torch.cos(coarse - angle[::2, ::2]))
    assert torch.allclose(between, torch.full_like(between, 0.5), atol=1e-4)  # halfway between rows 2k and 2k + 1


def test_packing_is_the_pipelines() -> None:
    from diffusers import QwenImagePipeline

    latents = torch.randn(2, 4, 32, 32)
    packed = pack(latents, 2)
    assert torch.equal(packed, QwenImagePipeline._pack_latents(latents, 2, 4, 32, 32))
    assert torch.equal(unpack(packed, 2), latents)


def test_a_trainers_state_survives_saving(tmp_path: Path) -> None:
    trainer = Trainer(Qwen(), tmp_path, "cpu", 0, Qwen().build_denoiser(64, 4), compiled=False)
    trainer.save(7)
    other = Trainer(Qwen(), tmp_path, "cpu", 1, Qwen().build_denoiser(64, 4), compiled=False)
    assert not torch.equal(other.master.model.img_in.weight, trainer.master.model.img_in.weight)
    assert other.load() == 7
    assert torch.equal(other.master.model.img_in.weight, trainer.master.model.img_in.weight)
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize(("step", "factor"), [(0, 0.02), (49, 1.0), (500, 1.0), (999, 1 / 350)])
def test_the_learning_rate_warms_up_stays_and_falls(step: int, factor: float) -> None:
    assert flat_then_linear(step, 1000) == pytest.approx(factor)
