"""Records survive JSON and PNG, and say what is wrong with the ones that do not."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from hasten.errors import HastenError
from hasten.plan import load_plan
from hasten.record import (
    Device,
    Memory,
    Model,
    Quality,
    Record,
    Steps,
    Timings,
    parse_parameters,
    read_png,
)


def make_record(prompt: str = "a red circle", **changes: object) -> Record:
    values: dict[str, object] = {
        "prompt": prompt,
        "seed": 3,
        "width": 64,
        "height": 48,
        "method": "taylorseer",
        "plan": load_plan("taylorseer", interval=4, order=1, true_cfg_scale=4.0, num_inference_steps=20),
        "model": Model(name="scenes-qwen", pipeline="QwenImagePipeline", scheduler="FlowMatchEulerDiscreteScheduler"),
        "device": Device(type="cpu", name="a CPU", dtype="float32", threads=2),
        "versions": {"hasten": "0.1.0"},
        "timings": Timings(text=0.1, denoise=1.0, decode=0.2, other=0.0, total=1.3, per_step=0.05),
        "steps": Steps(total=20, computed=8, skipped=12),
        "memory": Memory(peak_bytes=1 << 28, source="process"),
    }
    return Record.model_validate(values | changes)


def save(folder: Path, record: Record) -> Path:
    path = folder / "image.png"
    Image.new("RGB", (64, 48)).save(path, pnginfo=record.png_info())
    return path


def test_json_brings_the_record_back() -> None:
    record = make_record(notes=("a note",), report={"steps": [{"index": 0, "computed": True}]})
    assert Record.from_json(record.to_json()) == record


@pytest.mark.parametrize(
    "prompt", ["a red circle", "一只红色的圆", "naïve", "🐱\nsecond line", 'commas, "quotes": {}', ""]
)
def test_a_png_brings_the_record_back_whatever_the_prompt(tmp_path: Path, prompt: str) -> None:
    record = make_record(prompt)
    found = read_png(save(tmp_path, record))
    assert found.record == record
    assert found.parameters == record.parameters()


def test_an_identical_image_is_stored_without_infinity() -> None:
    quality = Quality(psnr=None, ssim=1.0, max_difference=0.0, latent_relative_l2=0.0, identical=True)
    stored = json.loads(make_record(quality=quality).to_json())
    assert stored["quality"]["psnr"] is None
    assert stored["quality"]["identical"] is True


def test_parameters_read_as_other_programs_write_them() -> None:
    lines = make_record().parameters().splitlines()
    assert lines[0] == "a red circle"
    assert len(lines) == 2  # a blank negative prompt is none
    assert lines[1].startswith(
        "Steps: 20, Sampler: FlowMatchEulerDiscreteScheduler, CFG scale: 4.0, Seed: 3, Size: 64x48"
    )
    assert "Computed steps: 8/20" in lines[1]


@given(
    prompt=st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1).map(str.strip).filter(bool),
    negative=st.sampled_from([None, "blurry, dark", "a: b"]),
)
def test_parameters_are_parsed_into_what_they_were_made_of(prompt: str, negative: str | None) -> None:
    plan = load_plan("taylorseer", num_inference_steps=20, negative_prompt=negative)
    values = parse_parameters(make_record(prompt, plan=plan).parameters())
    assert values.get("Negative prompt") == negative
    assert values["Seed"] == "3"
    if not prompt.startswith("Negative prompt:"):
        assert values["Prompt"] == prompt


def test_parameters_of_another_program_are_parsed() -> None:
    text = (
        "masterpiece, a cat\non two lines\nNegative prompt: ugly,\nbad\nSteps: 28, Sampler: DPM++ 2M Karras, "
        'CFG scale: 7, Seed: 1, Size: 512x512, Lora hashes: "a: 1, b: 2", Version: v1.9.4'
    )
    assert parse_parameters(text) == {
        "Prompt": "masterpiece, a cat\non two lines",
        "Negative prompt": "ugly,\nbad",
        "Steps": "28",
        "Sampler": "DPM++ 2M Karras",
        "CFG scale": "7",
        "Seed": "1",
        "Size": "512x512",
        "Lora hashes": "a: 1, b: 2",
        "Version": "v1.9.4",
    }


def test_parameters_without_settings_are_a_prompt() -> None:
    assert parse_parameters("just a prompt") == {"Prompt": "just a prompt"}
    assert parse_parameters("") == {"Prompt": ""}


def test_a_png_of_another_program_has_parameters_alone(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("parameters", "a cat\nSteps: 20, Seed: 1")
    Image.new("RGB", (4, 4)).save(tmp_path / "other.png", pnginfo=info)
    found = read_png(tmp_path / "other.png")
    assert found.record is None
    assert found.parameters == "a cat\nSteps: 20, Seed: 1"


def test_an_image_that_says_nothing_is_an_error(tmp_path: Path) -> None:
    for name in ("plain.png", "plain.jpg"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
        with pytest.raises(HastenError, match="says nothing about how it was made"):
            read_png(tmp_path / name)


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_what_is_no_image_is_an_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "file.png").write_bytes(content)
    with pytest.raises(HastenError, match="no image that can be read"):
        read_png(tmp_path / "file.png")


def test_a_cut_off_image_is_an_error(tmp_path: Path) -> None:
    file = io.BytesIO()
    Image.effect_noise((64, 64), 50).save(file, "PNG")
    (tmp_path / "cut.png").write_bytes(file.getvalue()[: len(file.getvalue()) // 2])
    with pytest.raises(HastenError, match="no image that can be read"):
        read_png(tmp_path / "cut.png")


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="no such file"):
        read_png(tmp_path / "nothing.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not json", "Invalid JSON"),
        ("[]", "should be an object"),
        ('{"version": 99}', "version"),
    ],
)
def test_a_record_that_cannot_be_read_says_why(tmp_path: Path, text: str, message: str) -> None:
    info = PngInfo()
    info.add_itxt("hasten", text)
    Image.new("RGB", (4, 4)).save(tmp_path / "odd.png", pnginfo=info)
    with pytest.raises(HastenError, match=f"odd.png: this is no record .*{message}"):
        read_png(tmp_path / "odd.png")
