"""What is decided while a model is loaded: diffusers' quantizers, GGUF files, shards, several devices."""

from __future__ import annotations

import importlib.util
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import prompted
from hasten import accelerate, generate, loaders
from hasten.errors import LoadError, PassError, PlanError
from hasten.loading import load
from hasten.models import complete_plan
from hasten.passes.target import bytes_of
from hasten.plan import Plan, load_plan


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # Blocks of quantized numbers have 32 in a row.
    pipe = prompted.qwen(blocks=2, num_attention_heads=2, attention_head_dim=16)
    return prompted.save(pipe, tmp_path_factory.mktemp("models") / "tiny", prompted.NATIVE)


def plan_for(model: object, **settings: Any) -> Plan:
    return load_plan(None, model=str(model), **settings)


def test_shards_are_put_together(saved: Path, tmp_path: Path) -> None:
    pipe = DiffusionPipeline.from_pretrained(saved)
    pipe.save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded" / "transformer").glob("*.safetensors"))) > 2
    loaded = load(plan_for(tmp_path / "sharded"))
    for ours, theirs in zip(loaded.transformer.parameters(), pipe.transformer.parameters(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_torchaos_loader_quantizes_what_it_loads(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torchao", reason="torchao is not installed: pip install 'hasten[torchao]'")
    from torchao.core.config import AOBaseConfig

    section = {"loader": "torchao", "options": {"quant_type": "Int8WeightOnlyConfig"}}
    loaded = load(plan_for(saved, quantization=section))
    kinds = {
        type(layer.weight).__name__ for layer in loaded.transformer.modules() if isinstance(layer, torch.nn.Linear)
    }
    assert any(kind.startswith("Int8") for kind in kinds)
    with pytest.raises(LoadError, match=r"torchao has no 'Int8WeightOnly'; did you mean 'Int8WeightOnlyConfig'"):
        load(plan_for(saved, quantization={**section, "options": {"quant_type": "Int8WeightOnly"}}))

    @dataclass
    class NeedsBits(AOBaseConfig):
        bits: int

    monkeypatch.setattr("torchao.quantization.NeedsBits", NeedsBits, raising=False)
    with pytest.raises(LoadError, match=r"NeedsBits cannot be made from its name alone \(.*'bits'"):
        load(plan_for(saved, quantization={**section, "options": {"quant_type": "NeedsBits"}}))


def test_a_loader_is_handed_to_diffusers_for_the_components_that_it_is_for(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def from_pretrained(source: Any, **arguments: Any) -> Any:
        given.update(arguments)
        raise RuntimeError("No GPU found. A GPU is needed for quantization.")

    monkeypatch.setattr(loaders, "find_spec", lambda name: object())
    monkeypatch.setattr("importlib.metadata.version", lambda name: "1.0.0")
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    section = {
        "loader": "bitsandbytes_4bit",
        "options": {"bnb_4bit_quant_type": "nf4"},
        "components": ["transformer", "text_encoder"],
    }
    # What diffusers says of a machine without GPU comes through.
    with pytest.raises(LoadError, match=r"by quantization.loader: bitsandbytes_4bit: No GPU found"):
        load(plan_for(saved, dtype="bf16", quantization=section))
    mapping = given["quantization_config"].quant_mapping
    assert set(mapping) == {"transformer", "text_encoder"}
    assert {type(config).__module__.partition(".")[0] for config in mapping.values()} == {"diffusers", "transformers"}
    assert mapping["transformer"].bnb_4bit_quant_type == "nf4"
    assert mapping["transformer"].bnb_4bit_compute_dtype is torch.bfloat16
    assert mapping["text_encoder"].load_in_4bit


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"loader": "bitsandbytes_3bit"}, r"diffusers has no 'bitsandbytes_3bit'; did you mean 'bitsandbytes_"),
        ({"loader": "gguf"}, r"give the \.gguf file as the model"),
        ({"loader": "bitsandbytes_8bit", "components": ["unet"]}, r"the model has no unet; it has .*transformer"),
        ({"loader": "bitsandbytes_8bit", "options": {"bits": 3, "load_in_4bit": True}}, r"quantization\.options: "),
    ],
)
def test_what_no_loader_can_is_refused(
    saved: Path, section: Any, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loaders, "find_spec", lambda name: object())
    with pytest.raises(LoadError, match=message):
        load(plan_for(saved, quantization=section))


def test_a_loader_whose_package_is_absent_says_what_to_install(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loaders, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"bitsandbytes_4bit needs the package bitsandbytes: pip install bitsandbytes"):
        load(plan_for(saved, quantization={"loader": "bitsandbytes_4bit"}))


def test_a_loader_comes_too_late_for_a_pipeline_that_is_loaded(saved: Path) -> None:
    pipe = load(plan_for(saved))
    with pytest.raises(PassError, match=r"quantization\.loader: transformer was loaded without it"):
        accelerate(pipe, "none", quantization={"loader": "bitsandbytes_4bit"})


def test_settings_of_loaders_are_checked_as_any_other() -> None:
    plan = load_plan({"quantization": {"loader": "bitsandbytes_4bit", "options": {"bnb_4bit_quant_type": "nf4"}}})
    assert load_plan(plan.to_dict()) == plan
    with pytest.raises(PlanError, match=r"quantization\.loadr"):
        load_plan({"quantization": {"loadr": "gguf"}})


@pytest.fixture
def gguf_file(saved: Path, tmp_path: Path) -> Path:
    """The denoiser's weights in blocks of 8 bits where they have rows of 32, beside the folder."""
    gguf = pytest.importorskip("gguf")
    folder = Path(shutil.copytree(saved, tmp_path / "tiny"))
    writer = gguf.GGUFWriter(tmp_path / "tiny.gguf", "qwen_image")
    kind = gguf.GGMLQuantizationType.Q8_0
    for name, tensor in DiffusionPipeline.from_pretrained(folder).transformer.state_dict().items():
        array = tensor.float().numpy()
        fits = tensor.ndim == 2 and array.shape[-1] % 32 == 0 and "transformer_blocks" in name
        if fits:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return tmp_path / "tiny.gguf"


def test_a_gguf_file_is_a_denoiser_with_the_rest_from_the_folder_beside_it(gguf_file: Path, saved: Path) -> None:
    pipe, plain = load(plan_for(gguf_file)), load(plan_for(saved))
    assert type(pipe.transformer.transformer_blocks[0].attn.to_q).__name__ == "GGUFLinear"
    assert bytes_of(pipe.transformer) < 0.6 * bytes_of(plain.transformer)
    call = {"num_inference_steps": 2, "width": 32, "height": 32, "output_type": "latent"}
    one, other = (
        one("a red circle", generator=torch.Generator().manual_seed(0), **call).images for one in (pipe, plain)
    )
    assert 0 < float((one - other).norm() / other.norm()) < 0.1
    with accelerate(pipe, interval=2, first_enhance=1) as handle:
        pipe("a red circle", generator=torch.Generator().manual_seed(0), **call | {"num_inference_steps": 5})
        assert handle.report().skipped_steps > 0


def test_a_gguf_file_without_its_package_says_what_to_install(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(saved, tmp_path / "tiny")
    (tmp_path / "tiny.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr(loaders, "find_spec", lambda name: None)
    with pytest.raises(LoadError, match=r"tiny\.gguf needs the package gguf: pip install \"hasten\[gguf\]\""):
        load(plan_for(tmp_path / "tiny.gguf"))


def test_a_broken_gguf_file_is_refused(saved: Path, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    shutil.copytree(saved, tmp_path / "tiny")
    (tmp_path / "tiny.gguf").write_bytes(b"no GGUF file at all, but long enough to be read")
    with pytest.raises(LoadError, match=r"is no GGUF file, or it is cut off"):
        load(plan_for(tmp_path / "tiny.gguf"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is an accelerator")
def test_spreading_needs_something_to_spread_over(saved: Path) -> None:
    with pytest.raises(LoadError, match=r"memory\.device_map: balanced spreads a pipeline over accelerators"):
        load(plan_for(saved, memory={"device_map": "balanced"}))


def test_device_maps_and_their_limits_are_handed_to_diffusers(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {}
    pipe = load(plan_for(saved))

    def from_pretrained(source: Any, **arguments: Any) -> Any:
        given.update(arguments)
        return pipe

    monkeypatch.setattr(loaders, "available", lambda: ["cuda", "cpu"])
    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", from_pretrained)
    monkeypatch.setattr(pipe, "to", lambda device: pytest.fail("it is where it is to be"))
    memory = {"device_map": "balanced", "max_memory": {0: "1GiB", "cpu": "2GB"}}
    assert load(plan_for(saved, memory=memory)) is pipe
    assert (given["device_map"], given["max_memory"]) == ("balanced", {0: 2**30, "cpu": 2 * 10**9})


def test_generate_keeps_no_second_copy_of_weights_that_it_replaces(
    saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[bool] = []
    from hasten.passes import precision

    real = precision.reversible

    def watched(root: Any, operation: Any, *, weights: bool = False, keeps: bool = True) -> Any:
        kept.append(keeps)
        return real(root, operation, weights=weights, keeps=keeps)

    monkeypatch.setattr(precision, "reversible", watched)
    plan = complete_plan(plan_for(saved, precision={"denoiser": "fp8"}, num_inference_steps=2))
    once = generate(plan, "a red circle")[0]
    assert set(kept) == {False}
    kept.clear()
    again = generate(plan, "a red circle", pipe=load(plan))[0]
    assert set(kept) == {True}
    assert torch.equal(once.latents, again.latents)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="it is installed")
def test_bitsandbytes_is_named_where_it_is_missing(saved: Path) -> None:
    with pytest.raises(LoadError, match="pip install bitsandbytes"):
        load(plan_for(saved, quantization={"loader": "bitsandbytes_8bit"}))


@pytest.mark.gpu
def test_bitsandbytes_quantizes_while_it_loads(saved: Path) -> None:
    pytest.importorskip("bitsandbytes")
    plan = plan_for(saved, dtype="bf16", quantization={"loader": "bitsandbytes_8bit"}, num_inference_steps=2)
    result = generate(plan, "a red circle")[0]
    assert "by bitsandbytes_8bit, while it was loaded" in str(result.record.passes)
