"""Models are loaded from wherever they are, and what cannot be loaded says why and what to do."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler

import prompted
from hasten import loading, models
from hasten.errors import DeviceError, HastenError, LoadError
from hasten.generation import generate
from hasten.loading import load, quiet_loading
from hasten.plan import Plan, load_plan
from hasten.sampling.samplers import FlowHeunScheduler


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompted.save(prompted.qwen(), tmp_path_factory.mktemp("models") / "tiny", prompted.NATIVE)


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may break."""
    return Path(shutil.copytree(saved, tmp_path / "tiny"))


def plan_for(model: object, **settings: Any) -> Plan:
    return load_plan(None, model=str(model), **settings)


def weights(module: torch.nn.Module) -> list[torch.Tensor]:
    return list(module.state_dict().values())


def test_a_folder_becomes_the_pipeline_that_diffusers_makes_of_it(saved: Path) -> None:
    pipe = load(plan_for(saved))
    expected = DiffusionPipeline.from_pretrained(saved)
    assert type(pipe) is type(expected)
    assert all(map(torch.equal, weights(pipe.transformer), weights(expected.transformer)))
    assert pipe.device == torch.device("cpu")
    assert pipe.transformer.dtype is torch.float32


def test_the_plans_dtype_and_sampler_are_put_on(saved: Path) -> None:
    pipe = load(plan_for(saved, dtype="bf16", sampler={"name": "flow-heun", "shift": 5.0}))
    assert pipe.transformer.dtype is pipe.vae.dtype is pipe.text_encoder.dtype is torch.bfloat16
    assert type(pipe.scheduler) is FlowHeunScheduler
    assert pipe.scheduler.config.shift == 5.0


def test_fp16_on_the_cpu_is_loaded_without_a_false_alarm(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pipe = load(plan_for(saved, dtype="fp16"))
    assert capfd.readouterr().err == ""
    note = generate(load_plan(None, num_inference_steps=1, width=32, height=32), "x", pipe=pipe)[0].record.notes
    assert note == ("fp16 is slow on most CPUs: fp32 or bf16 is usually faster",)


def test_a_bundled_name_is_loaded_from_the_package(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "bundled_folder", lambda: saved.parent)
    assert type(load(plan_for("tiny"))).__name__ == "QwenImagePipeline"


def test_loading_is_quiet_and_leaves_the_bars_as_they_were(saved: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from diffusers.utils import logging as diffusers_logging

    before = diffusers_logging.is_progress_bar_enabled()
    load(plan_for(saved))
    assert capfd.readouterr().err == ""
    assert diffusers_logging.is_progress_bar_enabled() is before
    assert not any(handler.filters for handler in logging.getLogger("diffusers").handlers)


def test_only_noise_is_dropped(capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("diffusers.anything")
    handler = logging.StreamHandler()
    logging.getLogger("diffusers").addHandler(handler)
    try:
        with quiet_loading():
            logger.warning("Couldn't connect to the Hub: no route")
            logger.warning("weights were not used: extra")
    finally:
        logging.getLogger("diffusers").removeHandler(handler)
    shown = capfd.readouterr().err
    assert "weights were not used" in shown
    assert "connect" not in shown


def test_a_device_that_is_absent_is_found_before_loading(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))
    with pytest.raises(DeviceError, match="torch_npu"):
        load(plan_for(saved, device="npu"))


def test_a_sampler_of_the_other_family_is_refused(tmp_path: Path) -> None:
    folder = prompted.save(prompted.stable_diffusion(), tmp_path / "sd")
    assert type(load(plan_for(folder))).__name__ == "StableDiffusionPipeline"
    with pytest.raises(HastenError, match="Compatible here: default"):
        load(plan_for(folder, sampler="flow-euler"))


def test_cut_off_weights_are_refused(folder: Path) -> None:
    file = folder / "transformer" / "diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(LoadError, match=r"transformer/diffusion_pytorch_model\.safetensors is broken"):
        load(plan_for(folder))


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "cannot be read"),
        ("{}", "cannot be read"),
        ('{"_class_name": "NoSuchPipeline"}', "does not have: upgrade diffusers"),
        ('{"_class_name": ["my_pipeline", "MyPipeline"]}', "asks for code of its own"),
    ],
)
def test_an_index_that_cannot_be_used_says_why(folder: Path, index: str, message: str) -> None:
    (folder / "model_index.json").write_text(index)
    with pytest.raises(LoadError, match=rf"model_index\.json .*{message}"):
        load(plan_for(folder))


def test_a_missing_component_is_named(folder: Path) -> None:
    shutil.rmtree(folder / "vae")
    with pytest.raises(LoadError, match=r"is incomplete: .* names vae"):
        load(plan_for(folder))


def test_pickled_weights_are_opened_only_when_asked(folder: Path, saved: Path) -> None:
    module = DiffusionPipeline.from_pretrained(saved).transformer
    shutil.rmtree(folder / "transformer")
    module.save_pretrained(folder / "transformer", safe_serialization=False)
    with pytest.raises(LoadError, match=r"pickle files \(\.bin\).*pickle=True"):
        load(plan_for(folder))
    pipe = load(plan_for(folder), pickle=True)
    assert all(map(torch.equal, weights(pipe.transformer), weights(module)))


def test_no_code_of_a_model_is_run(folder: Path) -> None:
    (folder / "evil.py").write_text("raise SystemExit('code of the model ran')")
    index = json.loads((folder / "model_index.json").read_text())
    index["scheduler"] = ["evil", "Scheduler"]
    (folder / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(LoadError, match="cannot be loaded"):
        load(plan_for(folder))


def test_a_hub_model_that_cannot_be_fetched_says_what_to_do() -> None:
    with pytest.raises(LoadError, match="the hub cannot be reached") as caught:
        load(plan_for("org/name"))
    for way in ("hf download org/name", "HF_HOME", "--model scenes-qwen"):
        assert way in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "message"), [("GatedRepoError", "terms to be accepted"), ("RepositoryNotFoundError", "no repository")]
)
def test_what_the_hub_answers_is_passed_on(monkeypatch: pytest.MonkeyPatch, kind: str, message: str) -> None:
    import huggingface_hub.errors as hub_errors

    error = getattr(hub_errors, kind)

    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError("wrapped") from error.__new__(error)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", refuse)
    with pytest.raises(LoadError, match=message):
        load(plan_for("org/name"))


def test_a_hub_model_is_asked_for_safetensors_and_no_code(monkeypatch: pytest.MonkeyPatch, saved: Path) -> None:
    original, asked = DiffusionPipeline.from_pretrained, []

    def fetch(name: str, **kwargs: Any) -> Any:
        asked.append((name, kwargs))
        return original(saved, **kwargs)

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", fetch)
    load(plan_for("org/name"))
    name, kwargs = asked[0]
    assert name == "org/name"
    assert kwargs["use_safetensors"] is True
    assert not kwargs.get("trust_remote_code")


def test_a_denoiser_in_one_file_takes_the_rest_from_the_folder_beside_it(folder: Path, saved: Path) -> None:
    file = folder.parent / "tiny.safetensors"
    shutil.copy(folder / "transformer" / "diffusion_pytorch_model.safetensors", file)
    shutil.rmtree(folder / "transformer")
    shutil.copytree(saved / "transformer", folder / "transformer", ignore=shutil.ignore_patterns("*.safetensors"))
    pipe = load(plan_for(file))
    expected = DiffusionPipeline.from_pretrained(saved)
    assert type(pipe).__name__ == "QwenImagePipeline"
    assert all(map(torch.equal, weights(pipe.transformer), weights(expected.transformer)))
    assert all(map(torch.equal, weights(pipe.vae), weights(expected.vae)))


def test_a_whole_checkpoint_in_one_file_goes_through_diffusers_own_reader(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors.torch import save_file

    file = folder.parent / "tiny.safetensors"
    save_file({"first_stage_model.x": torch.zeros(1), "model.diffusion_model.y": torch.zeros(1)}, file)
    asked: list[Any] = []

    def read(path: str, **kwargs: Any) -> Any:
        asked.append((path, kwargs))
        return DiffusionPipeline.from_pretrained(folder)

    monkeypatch.setattr(diffusers.QwenImagePipeline, "from_single_file", read, raising=False)
    load(plan_for(file))
    assert asked[0][0] == str(file)
    assert asked[0][1]["config"] == str(folder)


def test_a_single_file_without_configuration_says_where_to_put_it(tmp_path: Path, saved: Path) -> None:
    file = tmp_path / "alone.safetensors"
    shutil.copy(saved / "transformer" / "diffusion_pytorch_model.safetensors", file)
    with pytest.raises(LoadError, match="holds weights alone") as caught:
        load(plan_for(file))
    assert f"{tmp_path / 'alone'}/" in str(caught.value)


def test_a_single_file_of_something_else_is_refused(folder: Path) -> None:
    from safetensors.torch import save_file

    file = folder.parent / "tiny.safetensors"
    save_file({"weight": torch.zeros(1)}, file)
    with pytest.raises(LoadError, match=r"tiny\.safetensors cannot be loaded as a QwenImagePipeline"):
        load(plan_for(file))


def test_a_model_too_large_for_its_device_says_so(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Any, device: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(DiffusionPipeline, "to", full)
    with pytest.raises(LoadError, match="float32 does not fit into the memory of cpu"):
        load(plan_for(saved))


def test_the_scheduler_of_the_folder_is_kept_by_default(saved: Path) -> None:
    pipe = load(plan_for(saved))
    assert type(pipe.scheduler) is FlowMatchEulerDiscreteScheduler
    assert loading.pipeline_class(saved).__name__ == "QwenImagePipeline"
