"""Convert checkpoints into diffusers folders and into single files, offline; what was written is read back."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hasten.convert.original import original_weights
from hasten.devices import resolve_dtype
from hasten.errors import HastenError, LoadError
from hasten.loading import dtype_keyword, load, quiet_loading
from hasten.models import locate, native_settings
from hasten.plan import load_plan
from hasten.quiet import without_torchaos_noise

with without_torchaos_noise():
    from diffusers import DiffusionPipeline

_PICKLES = (".ckpt", ".pt", ".pth", ".bin")


def convert(
    source: str,
    target: Path,
    *,
    config: Path | None = None,
    dtype: str = "auto",
    shard: str | None = None,
    variant: str | None = None,
) -> int:
    """Write a model as a diffusers folder or as a single file, and read it back to compare every tensor.

    Args:
        source: a bundled name, a diffusers folder, a `.safetensors` file, or a pickle, which is read as weights only.
        target: a folder that is not there yet, or empty; or a `.safetensors` file that is not there yet.
        config: the diffusers folder whose configuration a single file has; beside the file by default.
        dtype: fp32, fp16 or bf16; auto keeps fp32.
        shard: the most that one file of weights holds, such as 500MB; 10GB by default.
        variant: a word in the files' names, such as fp16.

    Returns:
        How many tensors were compared.
    Raises:
        HastenError: the target is in use, or what was read back differs.
        LoadError: the source cannot be read.
    """
    is_file = target.suffix == ".safetensors"
    if is_file and target.exists():
        raise HastenError(f"{target} is there already: name another file")
    if is_file and (shard or variant):
        raise HastenError(
            "--shard and --variant are for folders: a single file is one file, with the name that you give"
        )
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise HastenError(f"{target} is there already and not empty: name another folder")
    with tempfile.TemporaryDirectory() as scratch:
        model = _prepared(Path(source).expanduser(), source, config, Path(scratch))
        plan = load_plan(None, model=model, device="cpu", dtype="fp32" if dtype == "auto" else dtype)
        pipe = load(plan)
        with quiet_loading():
            if is_file:
                return _write_file(pipe, model, target, dtype, Path(scratch))
            pipe.save_pretrained(target, safe_serialization=True, max_shard_size=shard or "10GB", variant=variant)
            keep_native(model, target)
            again = DiffusionPipeline.from_pretrained(
                target,
                **dtype_keyword(resolve_dtype(plan.precision.dtype, torch.device("cpu"))),
                variant=variant,
                use_safetensors=True,
                local_files_only=True,
            )
            return _compare(pipe, again, target)


def _write_file(pipe: Any, model: str, target: Path, dtype: str, scratch: Path) -> int:
    """Write a single file, and read it through diffusers' reader before it gets its name."""
    weights = {name: tensor.contiguous().clone() for name, tensor in original_weights(pipe).items()}
    folder = locate(model).path
    if folder is None or not folder.is_dir():
        raise HastenError(f"{model}: a single file is written from a diffusers folder, or from a bundled model")
    partial = target.with_name(f".{target.name}.partial.safetensors")
    beside = scratch / "again"
    beside.mkdir()
    try:
        save_file(weights, partial, metadata={"format": "pt"})
        (beside / "model.safetensors").symlink_to(partial.resolve())
        (beside / "model").symlink_to(folder.resolve())
        again = load(
            load_plan(
                None, model=str(beside / "model.safetensors"), device="cpu", dtype="fp32" if dtype == "auto" else dtype
            )
        )
        compared = _compare(pipe, again, target)
        partial.replace(target)
        return compared
    finally:
        partial.unlink(missing_ok=True)


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


def keep_native(model: str, target: Path) -> None:
    """Copy a model's own settings (`hasten.json`) into a folder made of it."""
    located = locate(model)
    settings = native_settings(located)
    if settings.model_fields_set and located.path is not None and located.path.is_dir():
        shutil.copyfile(located.path / "hasten.json", target / "hasten.json")


def _compare(pipe: Any, again: Any, target: Path) -> int:
    """What is read back has every tensor that was in memory: the same inputs then give the same outputs."""
    compared = 0
    for name, model in pipe.components.items():
        if not isinstance(model, nn.Module):
            continue
        state = again.components[name].state_dict()
        for key, tensor in model.state_dict().items():
            if key not in state or not torch.equal(state[key], tensor):
                raise HastenError(f"{target}: {name}'s {key} differs from what was read")
            compared += 1
    return compared
