"""Plans become the arguments that a pipeline has, whatever it is called."""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from hasten.calling import call_arguments, pixels_of
from hasten.errors import HastenError
from hasten.plan import Plan, load_plan


class QwenLike:
    image_processor = SimpleNamespace(config={"vae_scale_factor": 16})

    def __call__(
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        true_cfg_scale: float = 4.0,
        height: Any = None,
        width: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: Any = None,
        generator: Any = None,
        output_type: str = "pil",
    ) -> None: ...


class StableLike:
    def __call__(
        self,
        prompt: Any = None,
        height: Any = None,
        width: Any = None,
        num_inference_steps: int = 50,
        guidance_scale: float = 7.5,
        negative_prompt: Any = None,
        generator: Any = None,
        output_type: str = "pil",
    ) -> None: ...


class FluxLike(QwenLike):
    def __call__(  # type: ignore[override]
        self,
        prompt: Any = None,
        negative_prompt: Any = None,
        true_cfg_scale: float = 1.0,
        num_inference_steps: int = 28,
        guidance_scale: float = 3.5,
        generator: Any = None,
        output_type: str = "pil",
    ) -> None: ...


class Unconditional:
    def __call__(self, batch_size: int = 1, generator: Any = None, num_inference_steps: int = 1000) -> None: ...


class NeedsAnImage:
    def __call__(self, image: Any, prompt: Any = None, **kwargs: Any) -> None: ...


def arguments(pipe: Any, **settings: Any) -> dict[str, Any]:
    found = call_arguments(pipe, load_plan(None, **settings), "a red circle", 7).arguments
    assert set(found) <= set(inspect.signature(pipe.__call__).parameters)
    return found


def test_qwen_gets_its_own_names() -> None:
    found = arguments(QwenLike(), true_cfg_scale=2.5, num_inference_steps=20, width=64, height=48)
    assert found["prompt"] == "a red circle"
    assert found["true_cfg_scale"] == 2.5
    assert found["negative_prompt"] == " "
    assert (found["width"], found["height"], found["num_inference_steps"]) == (64, 48, 20)
    assert found["output_type"] == "pt"
    assert "guidance_scale" not in found


def test_a_seed_means_the_same_noise_on_every_device() -> None:
    generator = arguments(QwenLike())["generator"]
    assert generator.device.type == "cpu"
    assert generator.initial_seed() == 7


def test_what_a_plan_leaves_open_is_left_to_the_pipeline() -> None:
    found = arguments(QwenLike())
    assert not {"true_cfg_scale", "guidance_scale", "width", "height"} & set(found)


@pytest.mark.parametrize("pipe", [QwenLike(), FluxLike()])
def test_without_true_guidance_no_negative_prompt_is_passed(pipe: Any) -> None:
    assert "negative_prompt" not in arguments(pipe, true_cfg_scale=1.0)


def test_distilled_guidance_and_true_guidance_are_two_things() -> None:
    assert "negative_prompt" not in arguments(FluxLike())
    found = arguments(FluxLike(), guidance_scale=3.0, true_cfg_scale=2.0, negative_prompt="blurry")
    assert (found["guidance_scale"], found["true_cfg_scale"], found["negative_prompt"]) == (3.0, 2.0, "blurry")


def test_where_there_is_one_scale_true_cfg_scale_is_it_and_that_is_noted() -> None:
    call = call_arguments(StableLike(), load_plan(None, true_cfg_scale=5.0), "x", 0)
    assert call.arguments["guidance_scale"] == 5.0
    assert "true_cfg_scale is called guidance_scale in StableLike" in call.notes


def test_the_blank_default_negative_prompt_is_not_pressed_on_other_models() -> None:
    assert "negative_prompt" not in arguments(StableLike())
    assert arguments(StableLike(), negative_prompt="blurry")["negative_prompt"] == "blurry"


def test_two_scales_for_one_are_refused() -> None:
    with pytest.raises(HastenError, match="one guidance scale"):
        arguments(StableLike(), true_cfg_scale=5.0, guidance_scale=6.0)


def test_a_pipeline_without_prompt_or_guidance_says_so() -> None:
    call = call_arguments(Unconditional(), load_plan(None, num_inference_steps=9), "x", 0)
    assert set(call.arguments) == {"generator", "num_inference_steps"}
    assert call.notes == ("Unconditional takes no prompt",)
    with pytest.raises(HastenError, match="has no guidance"):
        arguments(Unconditional(), true_cfg_scale=3.0)


def test_a_pipeline_that_needs_more_than_a_prompt_is_refused() -> None:
    with pytest.raises(HastenError, match=r"also needs image, .* hasten\.accelerate"):
        arguments(NeedsAnImage())


@pytest.mark.parametrize(("width", "near"), [(130, "128 or 144"), (8, "use 16")])
def test_a_size_between_the_grid_names_its_neighbours(width: int, near: str) -> None:
    with pytest.raises(HastenError, match=f"multiples of 16 pixels.*{near}"):
        arguments(QwenLike(), width=width)


@pytest.mark.parametrize(
    "images",
    [
        torch.full((1, 3, 4, 5), 0.5),
        [Image.new("RGB", (5, 4), (127, 127, 127))],
        np.full((1, 4, 5, 3), 0.5, dtype=np.float32),
        torch.full((1, 3, 4, 5), 0.5, dtype=torch.bfloat16),
    ],
)
def test_images_of_every_form_become_float_pixels(images: Any) -> None:
    for output in (SimpleNamespace(images=images), (images,)):
        pixels = pixels_of(output)
        assert pixels.shape == (1, 3, 4, 5)
        assert pixels.dtype is torch.float32
        assert pixels.mean().item() == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    "frames",
    [
        torch.zeros(1, 7, 3, 4, 5),
        [[Image.new("RGB", (5, 4))] * 7],
        np.zeros((1, 7, 4, 5, 3), dtype=np.float32),
    ],
)
def test_films_of_every_form_become_frames(frames: Any) -> None:
    assert pixels_of(SimpleNamespace(frames=frames)).shape == (7, 3, 4, 5)


def test_an_output_without_images_is_refused() -> None:
    with pytest.raises(HastenError, match="neither images nor frames"):
        pixels_of(SimpleNamespace(audios=[1]))


def test_every_key_of_the_plans_generation_section_is_used() -> None:
    """A key that is added to the plan and not to the call would be ignored in silence."""
    handled = {"num_inference_steps", "negative_prompt", "true_cfg_scale", "guidance_scale", "width", "height"}
    assert set(type(Plan().generation).model_fields) == handled | {"num_images"}
