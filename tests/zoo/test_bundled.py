"""The bundled models are ordinary diffusers folders, small, and draw what they are told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hasten.loading import load
from hasten.metrics.scenes import read, score
from hasten.models import bundled_folder, bundled_models, locate, native_settings
from hasten.plan import load_plan


def test_both_are_there() -> None:
    assert bundled_models() == ["scenes-qwen", "scenes-sd"]


@pytest.mark.parametrize("name", bundled_models())
def test_a_folder_holds_safetensors_and_settings_and_is_small(name: str) -> None:
    files = [file for file in (bundled_folder() / name).rglob("*") if file.is_file()]
    assert {file.suffix for file in files} <= {".safetensors", ".json", ".txt", ".jinja"}
    assert sum(file.stat().st_size for file in files) < 45e6
    native = native_settings(locate(name))
    assert (native.width, native.height, native.num_inference_steps) == (128, 128, 50)
    assert not any(str(Path.home()) in file.read_text() for file in files if file.suffix == ".json")


def test_scenes_sd_is_a_stable_diffusion_pipeline_with_three_levels_and_cross_attention() -> None:
    index = json.loads((bundled_folder() / "scenes-sd" / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert index["safety_checker"] == [None, None]
    unet = json.loads((bundled_folder() / "scenes-sd" / "unet" / "config.json").read_text())
    assert len(unet["block_out_channels"]) >= 3
    assert sum("CrossAttn" in block for block in unet["down_block_types"]) >= 2


@pytest.mark.parametrize("scheduler", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # diffusers' DPM-Solver on numpy 2
def test_scenes_sd_draws_what_it_is_told(scheduler: str) -> None:
    import diffusers

    prompts = ["a red circle left of a blue square", "a green triangle on a black background"]
    pipe = load(load_plan({"model": "scenes-sd", "device": "cpu"}))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = getattr(diffusers, scheduler).from_config(pipe.scheduler.config)
    native = native_settings(locate("scenes-sd"))
    assert native.guidance_scale
    images = pipe(prompts, guidance_scale=native.guidance_scale, num_inference_steps=12).images
    assert [image.size for image in images] == [(128, 128)] * 2
    assert all(score(prompt, read(image)).right for prompt, image in zip(prompts, images, strict=True))
