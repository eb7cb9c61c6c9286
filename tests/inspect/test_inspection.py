"""From a model's name or configuration to its layers, stages and rows."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

import tiny
from hasten.errors import HastenError, LoadError
from hasten.inspect.folding import ends, matching, rows_of, sorted_by
from hasten.inspect.inspection import Component, Inspection, Size, Timed, inspect_model
from hasten.inspect.sources import Part, Source, Use, find_source


def source(name: str, pipe: object, **use: int) -> Source:
    """What a pipeline's folder would tell."""
    parts = [
        Part(part, "diffusers", type(model).__name__, dict(model.config))
        for part in ("transformer", "transformer_2", "unet", "vae")
        if (model := getattr(pipe, part, None)) is not None
    ]
    return Source(name, type(pipe).__name__, tuple(parts), Use(**use))


@pytest.fixture(scope="module")
def unet() -> Component:
    found = inspect_model(source("sd", tiny.stable_diffusion(), height=64, width=64, text=7), only=["unet"])
    return found.components[0]


@pytest.fixture(scope="module")
def flux() -> Inspection:
    return inspect_model(source("flux", tiny.flux(), height=32, width=32, text=7, steps=4))


def test_parameters_and_shapes_are_those_of_the_real_module(unet: Component) -> None:
    pipe = tiny.stable_diffusion()
    assert unet.root.parameters == sum(p.numel() for p in pipe.unet.parameters())
    seen: dict[str, object] = {}

    def keep(path: str, module: object, arguments: object, result: object) -> None:
        seen.setdefault(path, result)

    for path, module in pipe.unet.named_modules():
        module.register_forward_hook(partial(keep, path))
    with torch.no_grad():
        pipe.unet(torch.randn(1, 4, 8, 8), 1, torch.randn(1, 7, 24))
    for layer in unet.root.walk():
        result = seen.get(layer.path)
        if layer.path and isinstance(result, torch.Tensor):
            assert layer.outputs == (tuple(result.shape),)
    conv = next(layer for layer in unet.root.walk() if layer.path == "conv_in")
    assert conv.facts == {
        "in_channels": 4, "out_channels": 8, "kernel_size": 3, "stride": 1, "padding": 1, "bias": True,
    }  # fmt: skip


def test_a_unets_skip_connections_are_listed_with_their_lines(unet: Component) -> None:
    assert [(skip.source, skip.target) for skip in unet.skips] == [
        ("down_blocks.1.resnets.0", "up_blocks.0.resnets.0"),
        ("down_blocks.0.downsamplers.0.conv", "up_blocks.0.resnets.1"),
        ("down_blocks.0.attentions.0", "up_blocks.1.resnets.0"),
        ("conv_in", "up_blocks.1.resnets.1"),
    ]
    assert {skip.operation for skip in unet.skips} == {"torch.cat"}
    assert all(str(skip.place).startswith("diffusers/models/unets/unet_2d_blocks.py:") for skip in unet.skips)


def test_stages_hold_all_parameters_and_all_work(unet: Component, flux: Inspection) -> None:
    for component in (unet, *flux.components):
        assert sum(stage.parameters for stage in component.stages) == component.root.parameters
        assert sum(stage.macs for stage in component.stages) == component.root.macs


def test_stages_are_levels_of_a_unet_and_lists_of_a_transformer(unet: Component, flux: Inspection) -> None:
    names = [stage.name for stage in unet.stages if "blocks" in stage.name or "mid" in stage.name]
    assert names == ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    transformer = next(component for component in flux.components if component.role == "denoiser")
    names = [stage.name for stage in transformer.stages]
    assert "transformer_blocks ×2" in names
    assert "modulation of single_transformer_blocks" in names


def test_what_a_pipeline_needs_is_derived_for_every_family() -> None:
    for pipe, use in (
        (tiny.qwen(), {"height": 32, "width": 32}),
        (tiny.flux(), {"height": 32, "width": 32}),
        (tiny.wan(), {"height": 32, "width": 32, "frames": 5}),
        (tiny.stable_diffusion(), {"height": 64, "width": 64}),
    ):
        found = inspect_model(source("tiny", pipe, text=7, **use))
        assert [component.problem for component in found.components] == [None] * len(found.components)
        assert all(component.root.macs > 0 for component in found.components)


def test_decoded_sizes_follow_from_the_autoencoder(flux: Inspection) -> None:
    vae = next(component for component in flux.components if component.role == "decoder")
    assert vae.inputs["z"] == (1, 4, 4, 4)
    assert vae.outputs == ((1, 3, 32, 32),)
    encoder = next(layer for layer in vae.root.children if layer.name == "encoder")
    assert (encoder.calls, encoder.macs) == (0, 0)


def test_work_grows_with_the_size_and_the_batch() -> None:
    pipe = source("qwen", tiny.qwen(), text=7)
    small = inspect_model(pipe, Size(32, 32), ["transformer"]).components[0]
    large = inspect_model(pipe, Size(64, 64), ["transformer"]).components[0]
    both = inspect_model(pipe, Size(32, 32, batch=2), ["transformer"]).components[0]
    assert both.root.macs == 2 * small.root.macs
    assert large.root.attention_macs == small.root.attention_macs * (16 + 7) ** 2 / (4 + 7) ** 2


def test_repeated_blocks_are_one_row_and_rows_add_up(flux: Inspection) -> None:
    root = next(component.root for component in flux.components if component.role == "denoiser")
    rows = rows_of(root, 1)[1:]
    assert [row.path for row in rows if row.count > 1] == ["transformer_blocks.0…1", "single_transformer_blocks.0…2"]
    assert sum(row.parameters for row in rows) == root.parameters
    assert sum(row.macs for row in ends(rows_of(root))) == pytest.approx(root.macs, rel=0.7)  # less blocks' own
    assert len(rows_of(root, fold=False)) == len([x for x in root.walk() if x.kind != "ModuleList"])


def test_rows_are_found_by_path_or_class_and_sorted(flux: Inspection) -> None:
    root = next(component.root for component in flux.components if component.role == "denoiser")
    rows = rows_of(root)
    assert {row.layer.kind for row in matching(rows, "fluxattention")} == {"FluxAttention"}
    assert all("to_q" in row.path for row in matching(rows, r"to_q$"))
    by_size = sorted_by(rows, "parameters")
    assert by_size[0].parameters == root.parameters


def test_a_component_alone_is_found_by_its_config(tmp_path: Path) -> None:
    vae = tiny.stable_diffusion().vae
    assert isinstance(vae, AutoencoderKL)
    vae.save_config(tmp_path)
    found = inspect_model(find_source(str(tmp_path / "config.json")), Size(64, 64))
    assert found.components[0].kind == "AutoencoderKL"
    assert found.components[0].outputs == ((1, 3, 64, 64),)


def test_what_cannot_be_run_is_named_with_its_reason() -> None:
    config = dict(tiny.qwen_transformer(1).config) | {"in_channels": 17}
    found = inspect_model(
        Source("odd", None, (Part("transformer", "diffusers", "QwenImageTransformer2DModel", config),))
    )
    component = found.components[0]
    assert component.problem is None or "QwenImageTransformer2DModel" in component.problem
    broken = Source("odd", None, (Part("m", "diffusers", "ControlNetModel", {"_class_name": "ControlNetModel"}),))
    component = inspect_model(broken, Size(64, 64)).components[0]
    assert component.problem is not None
    assert component.problem.startswith("ControlNetModel: no inputs were found that it takes (")
    assert component.root.parameters > 0


def test_errors_say_what_is_there(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match="did you mean 'sdxl'"):
        find_source("sdlx")
    with pytest.raises(LoadError, match=r"holds neither a model_index.json nor a config.json"):
        find_source(str(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"a": 1}))
    with pytest.raises(LoadError, match="has no `_class_name` and no `architectures`"):
        find_source(str(tmp_path))
    with pytest.raises(HastenError, match="no component 'unett'; it has unet, vae, text_encoder"):
        inspect_model(find_source("sd15"), only=["unett"])
    with pytest.raises(HastenError, match="height 60: this model's latents are 8 pixels wide"):
        inspect_model(source("sd", tiny.stable_diffusion()), Size(64, 60), ["unet"])
    with pytest.raises(LoadError, match="times need weights"):
        inspect_model(source("sd", tiny.stable_diffusion()), Size(64, 64), ["unet"], Timed("cpu"))
