"""What is converted computes what it computed before."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.loaders.single_file_utils import convert_open_clip_checkpoint
from safetensors.torch import load_file
from transformers import CLIPTextConfig, CLIPTextModelWithProjection

import prompted
from hasten.convert import convert, read_pickle
from hasten.convert.original import open_clip
from hasten.errors import HastenError, LoadError


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prompted.save(prompted.qwen(), tmp_path_factory.mktemp("models") / "tiny")


def weights(folder: Path, name: str = "transformer") -> dict[str, torch.Tensor]:
    return {key: t for file in sorted((folder / name).glob("*.safetensors")) for key, t in load_file(file).items()}


def test_a_folder_is_cast_sharded_and_named(saved: Path, tmp_path: Path) -> None:
    target = tmp_path / "half"
    assert convert(str(saved), target, dtype="bf16", shard="100KB", variant="bf16") > 0
    files = list((target / "transformer").glob("*.safetensors"))
    assert len(files) > 1
    assert all(".bf16" in file.name for file in files)
    before, after = weights(saved), weights(target)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key].to(torch.bfloat16), after[key]) for key in before)
    pipe = DiffusionPipeline.from_pretrained(target, variant="bf16", local_files_only=True)
    assert type(pipe).__name__ == "QwenImagePipeline"


def test_a_pickle_of_weights_becomes_the_same_folder(saved: Path, tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": weights(saved), "step": 3}, file)
    target = tmp_path / "folder"
    convert(str(file), target, config=saved)
    assert all(torch.equal(value, weights(saved)[key]) for key, value in weights(target).items())


class Anything:
    pass


def test_a_pickle_of_more_than_weights_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.ckpt"
    torch.save({"state_dict": {"a": torch.ones(1)}, "code": Anything()}, file)
    with pytest.raises(LoadError, match="is refused: torch's weights-only reader"):
        read_pickle(file)
    torch.save({"step": 3}, file)
    with pytest.raises(LoadError, match="holds no weights"):
        read_pickle(file)


def test_what_cannot_be_written_is_said_before_anything_is_loaded(saved: Path, tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="is there already and not empty"):
        convert(str(saved), saved)
    with pytest.raises(HastenError, match="are for folders"):
        convert(str(saved), tmp_path / "x.safetensors", shard="1MB")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.ckpt")
    with pytest.raises(LoadError, match="name the diffusers folder whose configuration it has"):
        convert(str(tmp_path / "x.ckpt"), tmp_path / "y")


@pytest.mark.parametrize(("pipe", "least"), [(prompted.stable_diffusion, 100), (prompted.qwen, 50)])
def test_a_folder_becomes_a_single_file_and_a_folder_again(pipe: Callable[[], Any], least: int, tmp_path: Path) -> None:
    folder = prompted.save(pipe(), tmp_path / "tiny")
    file = tmp_path / "one.safetensors"
    assert convert(str(folder), file) > least
    again = tmp_path / "again"
    convert(str(file), again, config=folder)
    before, after = (DiffusionPipeline.from_pretrained(path, local_files_only=True) for path in (folder, again))
    for name, part in before.components.items():
        if isinstance(part, torch.nn.Module):
            state = after.components[name].state_dict()
            assert all(torch.equal(tensor, state[key]) for key, tensor in part.state_dict().items())


def test_a_stable_diffusion_file_has_the_names_it_was_published_with(tmp_path: Path) -> None:
    folder = prompted.save(prompted.stable_diffusion(), tmp_path / "tiny")
    file = tmp_path / "one.safetensors"
    convert(str(folder), file, dtype="fp16")
    state = load_file(file)
    assert {name.split(".")[0] for name in state} == {"model", "first_stage_model", "cond_stage_model"}
    assert state["model.diffusion_model.input_blocks.0.0.weight"].dtype is torch.float16
    with pytest.raises(HastenError, match="is there already"):
        convert(str(folder), file)


def test_queries_keys_and_values_are_one_matrix_for_open_clip() -> None:
    config = CLIPTextConfig(
        vocab_size=9, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    config.projection_dim = 8
    encoder = CLIPTextModelWithProjection(config)
    prefix = "conditioner.embedders.1.model."
    written = {f"{prefix}{name}": tensor for name, tensor in open_clip(encoder.state_dict())}
    assert written[f"{prefix}transformer.resblocks.0.attn.in_proj_weight"].shape == (24, 8)
    read = convert_open_clip_checkpoint(encoder, written, prefix)
    assert read.keys() == encoder.state_dict().keys() - {"text_model.embeddings.position_ids"}
    assert all(torch.equal(tensor, encoder.state_dict()[name]) for name, tensor in read.items())
