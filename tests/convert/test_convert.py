"""What is converted computes what it computed before."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import load_file

import prompted
from hasten.convert import convert, read_pickle
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
    with pytest.raises(HastenError, match="writes diffusers folders, no single files"):
        convert(str(saved), tmp_path / "x.safetensors")
    torch.save({"a": torch.ones(1)}, tmp_path / "x.ckpt")
    with pytest.raises(LoadError, match="name the diffusers folder whose configuration it has"):
        convert(str(tmp_path / "x.ckpt"), tmp_path / "y")
