"""Plans and prompts become images with records; nothing is lost, overwritten or left behind."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hasten
import prompted
import tiny
from hasten import generation
from hasten.errors import HastenError, PlanError
from hasten.generation import Progress, Session, generate, stream
from hasten.plan import Plan, load_plan
from hasten.record import Record, read_png

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted.qwen()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompted.save(prompted.qwen(), tmp_path_factory.mktemp("models") / "tiny-qwen", prompted.NATIVE)


def small(source: Any = "taylorseer", **settings: Any) -> Plan:
    return load_plan(source, **{"num_inference_steps": 10, "width": 32, "height": 32} | settings)


def plain(pipe: Any, seed: int = 0, prompt: str = PROMPT, steps: int = 10, **more: Any) -> Any:
    """The same image by diffusers alone."""
    return pipe(
        prompt,
        negative_prompt=" ",
        num_inference_steps=steps,
        width=32,
        height=32,
        generator=torch.Generator().manual_seed(seed),
        **more,
    ).images


def test_with_nothing_skipped_the_image_is_diffusers_own_bit_for_bit(pipe: Any) -> None:
    result = generate(small(None), PROMPT, pipe=pipe)[0]
    assert torch.equal(result.pixels, plain(pipe, output_type="pt").float())
    assert torch.equal(result.latents, plain(pipe, output_type="latent"))
    assert np.array_equal(np.array(result.image), np.array(plain(pipe)[0]))


def test_an_accelerated_image_is_what_accelerate_makes(pipe: Any) -> None:
    result = generate(small(), PROMPT, pipe=pipe)[0]
    with hasten.accelerate(pipe, "taylorseer"):
        expected = plain(pipe, output_type="latent")
    assert torch.equal(result.latents, expected)
    assert not torch.equal(result.latents, plain(pipe, output_type="latent"))


def test_nothing_is_left_on_the_pipeline(pipe: Any) -> None:
    generate(small(None), PROMPT, pipe=pipe)
    parts = [pipe, *pipe.components.values(), *pipe.transformer.modules()]
    before = [set(vars(part)) for part in parts]
    generate(small(), PROMPT, pipe=pipe)
    assert [set(vars(part)) for part in parts] == before


def test_every_prompt_gets_its_images_and_every_image_its_seed(pipe: Any) -> None:
    results = generate(small(num_images=2, seed=5), ["one", "two"], pipe=pipe)
    assert [(r.record.prompt, r.record.seed) for r in results] == [("one", 5), ("one", 6), ("two", 5), ("two", 6)]
    again = generate(small(seed=6), "two", pipe=pipe)[0]
    assert torch.equal(again.pixels, results[3].pixels)


def test_the_record_says_what_was_done(pipe: Any) -> None:
    record = generate(small(), PROMPT, pipe=pipe)[0].record
    assert (record.prompt, record.seed, record.width, record.height) == (PROMPT, 0, 32, 32)
    assert record.method == "taylorseer"
    assert record.steps.total == 10
    assert record.steps.computed + record.steps.skipped == 10
    assert record.steps.skipped > 0
    assert record.report is not None
    assert record.report["snapshot_bytes"] > 0
    assert record.model.pipeline == "QwenImagePipeline"
    assert record.model.denoisers == ("QwenImageTransformer2DModel",)
    assert record.model.scheduler == "FlowMatchEulerDiscreteScheduler"
    assert record.device.dtype == "float32"
    assert set(record.versions) >= {"hasten", "torch", "diffusers", "transformers", "python"}
    assert record.memory.peak_bytes > 1 << 20
    assert record.timings.text > 0
    assert record.timings.denoise > 0
    assert record.timings.decode > 0


def test_a_reference_has_no_report_and_no_skipped_steps(pipe: Any) -> None:
    record = generate(small(None), PROMPT, pipe=pipe)[0].record
    assert (record.method, record.report) == ("reference", None)
    assert (record.steps.total, record.steps.computed, record.steps.skipped) == (10, 10, 0)


def test_the_records_plan_makes_the_image_again(folder: Path) -> None:
    first = generate(load_plan("taylorseer", model=str(folder), num_images=2, seed=3), PROMPT)[1]
    plan = first.record.plan
    assert (plan.seed, plan.generation.num_images, plan.precision.dtype) == (4, 1, "fp32")
    assert plan.cache is not None
    assert plan.cache.interval is not None  # the default of today, written down
    second = generate(load_plan(plan.to_dict()), PROMPT)[0]
    assert torch.equal(second.pixels, first.pixels)
    assert second.record.plan == plan


def test_native_settings_of_a_model_hold_where_the_plan_is_open(folder: Path) -> None:
    record = generate(load_plan(None, model=str(folder), width=64), PROMPT)[0].record
    assert (record.width, record.height, record.steps.total) == (64, 32, 10)
    assert record.plan.generation.true_cfg_scale == 3.0
    assert record.model.name == "tiny-qwen"


def test_a_pipeline_that_was_given_is_not_called_by_the_default_name(pipe: Any) -> None:
    assert generate(small(None), PROMPT, pipe=pipe)[0].record.model.name == "QwenImagePipeline"


def test_files_are_written_with_their_record_and_never_over_each_other(pipe: Any, tmp_path: Path) -> None:
    plan = small(out=tmp_path / "new" / "folder")
    results = [generate(plan, "一只红色的圆 / ..", pipe=pipe, save=True)[0] for _ in range(2)]
    names = [result.path.name for result in results if result.path]
    assert names == ["taylorseer_一只红色的圆_0.png", "taylorseer_一只红色的圆_0-2.png"]
    for result in results:
        assert result.path is not None
        assert read_png(result.path).record == result.record
        with Image.open(result.path) as image:
            assert np.array_equal(np.array(image), np.array(result.image))


def test_a_record_does_not_tell_where_its_user_lives(pipe: Any, tmp_path: Path) -> None:
    result = generate(small(out=tmp_path), PROMPT, pipe=pipe, save=True)[0]
    assert str(tmp_path) not in result.record.to_json()


def test_nothing_is_written_unless_asked(pipe: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = generate(small(), PROMPT, pipe=pipe)[0]
    assert result.path is None
    assert list(tmp_path.iterdir()) == []
    saved = result.save(tmp_path)
    assert saved.path is not None
    assert saved.path.exists()


def test_progress_counts_to_the_end(pipe: Any) -> None:
    told: list[Progress] = []
    results = generate(small(num_images=2), PROMPT, progress=told.append, pipe=pipe)
    assert [(now.image, now.step) for now in told] == [(i, s) for i in (1, 2) for s in range(1, 11)]
    assert {(now.images, now.steps, now.label) for now in told} == {(2, 10, "taylorseer")}
    assert (told[-1].computed, told[-1].skipped) == (results[1].record.steps.computed, results[1].record.steps.skipped)


class Interrupt:
    """Ctrl-C at one step of one image."""

    def __init__(self, image: int, step: int) -> None:
        self.at = (image, step)

    def __call__(self, now: Progress) -> None:
        if (now.image, now.step) == self.at:
            raise KeyboardInterrupt


def test_an_interrupt_keeps_finished_images_and_leaves_nothing_half_done(pipe: Any, tmp_path: Path) -> None:
    plan = small(num_images=3, out=tmp_path)
    expected = generate(plan, PROMPT, pipe=pipe)
    finished: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        finished.extend(result.path for result in stream(plan, PROMPT, Interrupt(2, 5), pipe=pipe, save=True))
    assert list(tmp_path.iterdir()) == finished
    assert len(finished) == 1
    good = generate(plan, PROMPT, pipe=pipe)
    assert [torch.equal(a.latents, b.latents) for a, b in zip(good, expected, strict=True)] == [True] * 3


def test_a_closed_door_is_found_before_any_computing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HastenError, match="cannot write to"):
        generate(load_plan(None, model="not/loaded", out=tmp_path / "file"), PROMPT, save=True)


@pytest.mark.parametrize(
    ("prompts", "message"), [([], "no prompt"), ("\udcff", "not valid UTF-8"), (["fine", "\ud800"], "not valid UTF-8")]
)
def test_prompts_that_are_none_are_refused(pipe: Any, prompts: Any, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        generate(small(), prompts, pipe=pipe)


def test_mistakes_in_the_plan_are_told_by_the_plan(pipe: Any) -> None:
    with pytest.raises(PlanError, match="intervall"):
        generate({"cache": {"intervall": 3}}, PROMPT, pipe=pipe)


def test_what_a_pipeline_refuses_is_an_error_for_people(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def check_inputs(*args: Any, **kwargs: Any) -> None:
        raise ValueError("`max_sequence_length` cannot be greater than 1024")

    monkeypatch.setattr(pipe, "check_inputs", check_inputs, raising=False)
    with pytest.raises(HastenError, match="QwenImagePipeline refuses these settings: `max_sequence_length`"):
        generate(small(), PROMPT, pipe=pipe)


def test_an_error_while_computing_keeps_its_own_trace(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr(pipe.scheduler, "step", broken, raising=False)
    with pytest.raises(ValueError, match=r"^a bug$"):
        generate(small(), PROMPT, pipe=pipe)


def test_running_out_of_memory_says_what_helps(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(pipe.vae, "decode", full, raising=False)
    with pytest.raises(HastenError, match=r"out of memory: .*--width.*--dtype.*--cache-size"):
        generate(small(), PROMPT, pipe=pipe)


def test_an_operation_that_a_dtype_lacks_names_the_way_out(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("\"slow_conv3d\" not implemented for 'Half'")

    monkeypatch.setattr(pipe.vae, "decode", lacking, raising=False)
    with pytest.raises(HastenError, match=r"lacks in this dtype .*slow_conv3d.*use --dtype fp32"):
        generate(small(), PROMPT, pipe=pipe)


def test_a_run_that_skips_nothing_says_so_in_its_record(pipe: Any) -> None:
    assert generate(small(interval=1), PROMPT, pipe=pipe)[0].record.notes == ("nothing was skipped",)


def test_an_image_that_is_not_finite_is_noted(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    original = generation.pixels_of
    monkeypatch.setattr(generation, "pixels_of", lambda output: original(output) * float("nan"))
    result = generate(small(None), PROMPT, pipe=pipe)[0]
    assert any("NaN or infinity" in note for note in result.record.notes)
    assert result.image.getpixel((0, 0)) == (0, 0, 0)


def test_memory_is_cleaned_before_and_after(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned: list[torch.device] = []
    monkeypatch.setattr(generation, "clean_up", cleaned.append)
    generate(small(), PROMPT, pipe=pipe)
    assert cleaned == [torch.device("cpu")] * 2


def test_heun_makes_two_calls_a_step(folder: Path) -> None:
    plan = load_plan(None, model=str(folder), sampler="flow-heun", num_inference_steps=4)
    record = generate(plan, PROMPT)[0].record
    assert record.model.scheduler == "FlowHeunScheduler"
    assert record.steps.total == 7


@pytest.mark.parametrize(
    ("build", "size", "frames"),
    [
        pytest.param(prompted.stable_diffusion, (64, 64), 1, id="stable-diffusion"),
        pytest.param(lambda: prompted.embedded(tiny.flux(), tiny.flux_call()), (32, 32), 1, id="flux"),
        pytest.param(lambda: prompted.embedded(tiny.wan(), tiny.wan_call()), (32, 32), 81, id="wan"),
    ],
)
def test_other_pipelines_work_without_being_known(
    build: Any, size: tuple[int, int], frames: int, tmp_path: Path
) -> None:
    width, height = size
    plan = small(width=width, height=height, num_inference_steps=8, out=tmp_path)
    result = generate(plan, PROMPT, pipe=build(), save=True)[0]
    assert result.pixels.shape == (frames, 3, height, width)
    assert result.record.steps.skipped > 0
    assert result.path is not None
    with Image.open(result.path) as image:
        assert getattr(image, "n_frames", 1) == frames
    assert read_png(result.path).record == Record.from_json(result.record.to_json())


def test_images_make_a_grid(pipe: Any, tmp_path: Path) -> None:
    results = generate(small(None, num_images=3), PROMPT, pipe=pipe)
    path = generation.save_grid([result.image for result in results], results[0].record, tmp_path)
    assert path.name == "grid_reference_a_red_circle_0.png"
    with Image.open(path) as image:
        assert image.size == (68, 68)


def test_a_pipeline_that_was_given_keeps_its_models_own_settings() -> None:
    plan = {"model": "scenes-qwen", "generation": {"num_inference_steps": 2}}
    opened = Session.open(plan, "a red circle")
    given = Session.open({"generation": {"num_inference_steps": 2}}, "a red circle", pipe=opened.pipe)
    assert given.plan.generation == opened.plan.generation
    assert given.plan.generation.width == 128
    other = Session.open({"generation": {"width": 64}}, "a red circle", pipe=opened.pipe)
    assert (other.plan.generation.width, other.plan.generation.height) == (64, 128)
