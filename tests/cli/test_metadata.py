"""`hasten metadata`: what an image says of itself."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner, Result

from hasten.cli.main import app
from hasten.plan import load_plan
from hasten.record import Device, Memory, Model, Quality, Record, Steps, Timings

PROMPT = 'a red circle: "big", 红\nand more'


@pytest.fixture
def record() -> Record:
    return Record(
        prompt=PROMPT,
        seed=3,
        width=64,
        height=48,
        method="taylorseer",
        plan=load_plan("taylorseer", interval=4, true_cfg_scale=4.0, num_inference_steps=20, seed=3),
        model=Model(name="scenes-qwen", pipeline="QwenImagePipeline", scheduler="FlowMatchEulerDiscreteScheduler"),
        device=Device(type="cpu", name="a CPU", dtype="float32", threads=2),
        versions={"hasten": "0.1.0"},
        timings=Timings(text=0.1, denoise=1.0, decode=0.2, other=0.0, total=1.3, per_step=0.05),
        steps=Steps(total=20, computed=8, skipped=12),
        memory=Memory(peak_bytes=1 << 28, source="process"),
        notes=("something was changed",),
        quality=Quality(
            psnr=31.25, ssim=0.9876, max_difference=0.1, latent_relative_l2=0.01, identical=False, speedup=2.5, rounds=3
        ),
    )


@pytest.fixture
def image(tmp_path: Path, record: Record) -> Path:
    path = tmp_path / "image.png"
    Image.new("RGB", (64, 48)).save(path, pnginfo=record.png_info())
    return path


@pytest.fixture
def foreign(tmp_path: Path) -> Path:
    info = PngInfo()
    info.add_text("parameters", "a cat\nNegative prompt: dog\nSteps: 20, Sampler: Euler a, Seed: 1")
    Image.new("RGB", (4, 4)).save(tmp_path / "foreign.png", pnginfo=info)
    return tmp_path / "foreign.png"


def run(*arguments: object, code: int = 0) -> Result:
    result = CliRunner().invoke(app, ["metadata", *map(str, arguments)])
    assert result.exit_code == code, result.output
    return result


def test_it_is_printed_for_people(image: Path) -> None:
    text = run(image).stdout
    for part in (
        "image.png",
        'a red circle: "big", 红',
        "scenes-qwen (QwenImagePipeline)",
        "64×48",
        "20: 8 computed, 12 skipped",
        "PSNR 31.25 dB, SSIM 0.9876, 2.50× as fast",
        "something was changed",
    ):
        assert part in text


def test_json_is_the_record(image: Path, record: Record) -> None:
    assert Record.model_validate(json.loads(run(image, "--json").stdout)) == record


def test_json_of_several_files_is_a_list(image: Path, foreign: Path) -> None:
    first, second = json.loads(run(image, foreign, "--json").stdout)
    assert first["prompt"] == PROMPT
    assert second["parameters"]["Prompt"] == "a cat"


def test_the_plan_is_yaml_that_makes_the_image_again(image: Path, record: Record) -> None:
    text = run(image, "--plan").stdout
    assert load_plan(yaml.safe_load(text)) == record.plan
    assert json.loads(text.splitlines()[0].removeprefix("# prompt: ")) == PROMPT


def test_parameters_of_other_programs_are_shown_as_such(foreign: Path) -> None:
    result = run(foreign)
    assert "Euler a" in result.stdout
    assert "dog" in result.stdout
    assert "not made by hasten" in result.stderr


def test_there_is_no_plan_in_another_programs_image(foreign: Path) -> None:
    assert "was not made by hasten" in run(foreign, "--plan", code=2).stderr


def test_an_image_without_texts_is_an_error(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    assert "says nothing about how it was made" in " ".join(run(tmp_path / "plain.png", code=2).stderr.split())


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    assert "no such file" in run(tmp_path / "nothing.png", code=2).stderr


def test_two_forms_at_once_are_refused(image: Path) -> None:
    assert "choose one" in run(image, "--json", "--plan", code=2).stderr
    assert "give one file" in run(image, image, "--plan", code=2).stderr
