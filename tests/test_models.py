"""What a model's name means, and what is said where it means nothing."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest

from hasten import models
from hasten.errors import LoadError, PlanError
from hasten.models import Native, check_weights, complete_plan, locate, native_settings, with_native
from hasten.plan import load_plan


@pytest.fixture
def bundled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installation with one bundled model."""
    folder = tmp_path / "weights" / "scenes-qwen"
    folder.mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    monkeypatch.setattr(models, "bundled_folder", lambda: tmp_path / "weights")
    return folder


@pytest.fixture
def pipeline(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    (folder / "transformer").mkdir(parents=True)
    (folder / "model_index.json").write_text("{}")
    (folder / "transformer" / "config.json").write_text("{}")
    return folder


def safetensors(header: object, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(header).encode() if not isinstance(header, bytes) else header
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def test_a_bundled_name_comes_first(bundled: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scenes-qwen").mkdir()
    assert locate("scenes-qwen") == ("bundled", "scenes-qwen", bundled)


def test_a_folder_a_file_and_a_hub_id_are_told_apart(pipeline: Path) -> None:
    file = pipeline.parent / "weights.safetensors"
    file.touch()
    assert locate(str(pipeline)) == ("folder", "my-model", pipeline)
    assert locate(str(file)) == ("file", "weights", file)
    assert locate("Qwen/Qwen-Image") == ("hub", "Qwen/Qwen-Image", None)


@pytest.mark.usefixtures("bundled")
@pytest.mark.parametrize("name", ["scense-qwen", "Scenes-Qwen", "scenes_qwen", "scenes"])
def test_a_misspelt_bundled_name_is_corrected(name: str) -> None:
    with pytest.raises(LoadError, match="did you mean 'scenes-qwen'"):
        locate(name)


def test_a_missing_bundled_model_is_not_called_a_spelling_mistake(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models, "bundled_folder", lambda: tmp_path)
    with pytest.raises(LoadError, match="not in this installation"):
        locate("scenes-qwen")


@pytest.mark.parametrize("name", ["./nothing", "~/nothing/at/all", "missing.safetensors", "a/b/c", "dir/x.safetensors"])
def test_a_path_with_nothing_there_is_no_hub_id(name: str) -> None:
    with pytest.raises(LoadError, match="not found"):
        locate(name)


def test_a_folder_without_an_index_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no diffusers pipeline: it has no model_index\.json"):
        locate(str(tmp_path))


def test_a_folder_around_the_pipeline_points_inside(pipeline: Path) -> None:
    with pytest.raises(LoadError, match=f"use that folder") as caught:  # noqa: F541
        locate(str(pipeline.parent))
    assert str(pipeline) in str(caught.value)


def test_a_component_points_to_its_pipeline(pipeline: Path) -> None:
    weights = pipeline / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.touch()
    for part in (pipeline / "transformer", weights):
        with pytest.raises(LoadError, match=f"use the folder {pipeline}$"):
            locate(str(part))


def test_a_repository_in_the_hubs_cache_is_a_folder(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "model_index.json").write_text("{}")
    assert locate(str(tmp_path / "models--org--name")).path == snapshot


@pytest.mark.parametrize("name", ["model.ckpt", "model.bin", "model.pt"])
def test_pickles_are_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    with pytest.raises(LoadError, match="pickles, which can run code"):
        locate(str(tmp_path / name))


def test_native_settings_are_read_beside_the_index(pipeline: Path) -> None:
    assert native_settings(locate(str(pipeline))) == Native()
    (pipeline / "hasten.json").write_text('{"width": 128, "true_cfg_scale": 3.5, "trained": "2026"}')
    assert native_settings(locate(str(pipeline))) == Native(width=128, true_cfg_scale=3.5)
    assert native_settings(locate("org/name")) == Native()


def test_a_single_file_takes_the_native_settings_of_the_folder_of_its_name(pipeline: Path) -> None:
    file = pipeline.with_name(pipeline.name + ".safetensors")
    file.touch()
    (pipeline / "hasten.json").write_text('{"width": 128}')
    assert native_settings(locate(str(file))) == Native(width=128)
    alone = pipeline.with_name("alone.safetensors")
    alone.touch()
    assert native_settings(locate(str(alone))) == Native()


@pytest.mark.parametrize("text", ["{", '{"width": "wide"}', "[]"])
def test_broken_native_settings_are_an_error(pipeline: Path, text: str) -> None:
    (pipeline / "hasten.json").write_text(text)
    with pytest.raises(LoadError, match=r"hasten\.json cannot be read"):
        native_settings(locate(str(pipeline)))


NATIVE = Native(width=128, height=96, true_cfg_scale=3.5, num_inference_steps=30, negative_prompt="blurry")


def test_a_plan_takes_from_the_model_what_it_leaves_open() -> None:
    plan = with_native(load_plan("taylorseer", height=64), NATIVE)
    generation = plan.generation
    assert (generation.width, generation.height) == (128, 64)
    assert (generation.true_cfg_scale, generation.num_inference_steps) == (3.5, 30)
    assert generation.negative_prompt == "blurry"
    assert plan.cache == load_plan("taylorseer").cache


def test_what_a_plan_says_stays() -> None:
    plan = load_plan(None, num_inference_steps=50, negative_prompt=None, true_cfg_scale=1.0, width=64, height=64)
    assert with_native(plan, NATIVE).generation == plan.generation


def test_native_steps_too_few_for_the_warm_up_are_an_error() -> None:
    with pytest.raises(PlanError, match="first_enhance"):
        with_native(load_plan("taylorseer", first_enhance=20), Native(num_inference_steps=10))


def test_a_completed_plan_carries_the_models_settings(pipeline: Path) -> None:
    (pipeline / "hasten.json").write_text('{"width": 256}')
    assert complete_plan(load_plan(None, model=str(pipeline))).generation.width == 256


def test_whole_weights_pass(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}, "__metadata__": {"format": "pt"}}
    (tmp_path / "model.safetensors").write_bytes(safetensors(header, b"\0" * 4))
    check_weights(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer.*git lfs pull"),
        (b"", "0 bytes"),
        (b"<!DOCTYPE html><html>Not Found</html>", "no safetensors file, or it is cut off"),
        (safetensors(b"not json"), "header cannot be read"),
        (safetensors([1]), "header cannot be read"),
        (safetensors({"w": {"dtype": "F32"}}), "header cannot be read"),
        (safetensors({"w": {"data_offsets": [0, 4]}}, b"\0\0"), "where its header speaks of"),
    ],
)
def test_broken_weights_are_told_before_they_are_loaded(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "vae").mkdir()
    (tmp_path / "vae" / "model.safetensors").write_bytes(content)
    with pytest.raises(LoadError, match=rf"model\.safetensors is broken: .*{message}"):
        check_weights(tmp_path)
