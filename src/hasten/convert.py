"""Convert checkpoints into diffusers folders, offline: formats, number formats, shards and variants."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor, nn

from hasten.devices import resolve_dtype
from hasten.errors import HastenError, LoadError
from hasten.loading import dtype_keyword, load, quiet_loading
from hasten.models import locate, native_settings
from hasten.plan import load_plan

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def convert(
    source: str,
    target: Path,
    *,
    config: Path | None = None,
    dtype: str = "auto",
    shard: str = "10GB",
    variant: str | None = None,
) -> int:
    """Write a model as a diffusers folder, and read it back to compare every tensor.

    Args:
        source: a bundled name, a diffusers folder, a `.safetensors` file, or a pickle, which is read as weights only.
        target: a folder that is not there yet, or empty.
        config: the diffusers folder whose configuration a single file has; beside the file by default.
        dtype: fp32, fp16 or bf16; auto keeps fp32.
        shard: the most that one file of weights holds, such as 500MB.
        variant: a word in the files' names, such as fp16.

    Returns:
        How many tensors were compared.
    Raises:
        HastenError: the target is in use, or what was read back differs.
        LoadError: the source cannot be read.
    """
    if target.suffix == ".safetensors":
        raise HastenError(f"{target}: hasten writes diffusers folders, no single files")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HastenError(f"{target} is there already and not empty: name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        model = _prepared(Path(source).expanduser(), source, config, Path(scratch))
        plan = load_plan(None, model=model, device="cpu", dtype="fp32" if dtype == "auto" else dtype)
        pipe = load(plan)
        with quiet_loading():
            pipe.save_pretrained(target, safe_serialization=True, max_shard_size=shard, variant=variant)
            _keep_native(model, target)
            return _compare(pipe, target, resolve_dtype(plan.precision.dtype, torch.device("cpu")), variant)


def _prepared(path: Path, source: str, config: Path | None, scratch: Path) -> str:
    """What to load: the source itself, or a safetensors file with its configuration beside it."""
    if not path.is_file():
        if config is not None:
            raise HastenError("--config is for single files: a folder has its own configuration")
        return source
    file = scratch / "model.safetensors"
    if path.suffix in _PICKLES:
        save_file(read_pickle(path), file)
    else:
        file.symlink_to(path.resolve())
    folder = config or next(
        (f for f in (path.with_suffix(""), path.parent) if (f / "model_index.json").is_file()), None
    )
    if folder is None or not (folder / "model_index.json").is_file():
        raise LoadError(
            f"{path} holds weights alone: name the diffusers folder whose configuration it has (--config FOLDER; its "
            ".json and tokenizer files are enough where the file holds all weights)"
        )
    (scratch / "model").symlink_to(folder.resolve())
    return str(file)


def read_pickle(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.ckpt`, read with torch's weights-only reader: nothing in the file is run.

    Raises:
        LoadError: the file holds more than weights, or no weights.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise LoadError(
            f"{path} is refused: torch's weights-only reader does not open it, so it holds more than weights or is "
            "broken; get the .safetensors file"
        ) from error
    state = content.get("state_dict", content) if isinstance(content, dict) else content
    tensors = {k: v.contiguous() for k, v in state.items() if isinstance(v, Tensor)} if isinstance(state, dict) else {}
    if not tensors:
        raise LoadError(f"{path} holds no weights: neither tensors nor a `state_dict` of them")
    return {name: tensor.clone() for name, tensor in tensors.items()}  # safetensors refuses shared memory


def _keep_native(model: str, target: Path) -> None:
    located = locate(model)
    settings = native_settings(located)
    if settings.model_fields_set and located.path is not None and located.path.is_dir():
        shutil.copyfile(located.path / "hasten.json", target / "hasten.json")


def _compare(pipe: Any, target: Path, dtype: torch.dtype, variant: str | None) -> int:
    """What is read back has every tensor that was in memory: the same inputs then give the same outputs."""
    again = DiffusionPipeline.from_pretrained(
        target, **dtype_keyword(dtype), variant=variant, use_safetensors=True, local_files_only=True
    )
    compared = 0
    for name, model in pipe.components.items():
        if not isinstance(model, nn.Module):
            continue
        state = again.components[name].state_dict()
        for key, tensor in model.state_dict().items():
            if key not in state or not torch.equal(state[key], tensor):
                raise HastenError(f"{target / name}: {key} differs from what was read")
            compared += 1
    return compared
