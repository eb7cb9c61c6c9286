"""What a plan's `model` names, and the settings a model was made for; found out without importing torch."""

from __future__ import annotations

import difflib
import json
import re
import struct
from importlib import resources
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from hasten.errors import LoadError
from hasten.plan import Plan, load_plan

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LFS_POINTER = b"version https://git-lfs"


class Located(NamedTuple):
    """Where a model is.

    Attributes:
        kind: what has to be loaded.
        name: what to call it in records.
        path: the folder or file; None for a hub id.
    """

    kind: Literal["bundled", "folder", "file", "hub"]
    name: str
    path: Path | None


class Native(BaseModel):
    """The settings a model was made for: `hasten.json` beside its `model_index.json`. None = the pipeline's default."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    height: int | None = None
    width: int | None = None
    negative_prompt: str | None = None
    true_cfg_scale: float | None = None
    guidance_scale: float | None = None
    num_inference_steps: int | None = None


def bundled_folder() -> Path:
    """The folder that holds the models which come with the package."""
    return Path(str(resources.files("hasten"))) / "zoo" / "weights"


def bundled_models() -> list[str]:
    """Names of the models that came with this installation."""
    folder = bundled_folder()
    return sorted(path.parent.name for path in folder.glob("*/model_index.json"))


def locate(model: str) -> Located:
    """Find out what a plan's `model` means: a bundled name, a folder, a file, or else a hub id.

    Raises:
        LoadError: nothing is there by this name, or it is nothing that can be loaded; with what to do.
    """
    bundled = bundled_models()
    if model in bundled:
        return Located("bundled", model, bundled_folder() / model)
    path = Path(model).expanduser()
    if path.is_dir():
        return Located("folder", path.resolve().name, _pipeline_folder(path))
    if path.is_file():
        return Located("file", path.stem, _weights_file(path))
    if _HUB_ID.fullmatch(model) and not model.startswith((".", "~")) and path.suffix not in (".safetensors", ".gguf"):
        return Located("hub", model, None)
    default = str(Plan.model_fields["model"].default)
    if model == default:
        raise LoadError(
            f"the bundled model {model!r} is not in this installation ({bundled_folder()}): install hasten anew"
        )
    near = difflib.get_close_matches(model.lower(), {default, *bundled}, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    known = f"bundled here: {', '.join(bundled) or 'none'}"
    raise LoadError(
        f"model {model!r} not found{hint} ({known}; otherwise a diffusers folder, a .safetensors or .gguf file, "
        "or a hub id like Qwen/Qwen-Image)"
    )


def _pipeline_folder(path: Path) -> Path:
    if (path / "model_index.json").is_file():
        return path
    inside = sorted(found.parent for found in path.glob("*/model_index.json"))
    if inside:
        raise LoadError(f"{path} has no model_index.json, but {inside[0]} has: use that folder")
    if (path / "config.json").is_file() and (path.parent / "model_index.json").is_file():
        raise LoadError(f"{path} is one component of a pipeline: use the folder {path.parent}")
    snapshots = sorted(path.glob("snapshots/*/model_index.json"))
    if snapshots:
        return snapshots[-1].parent  # a repository's folder in the hub's cache
    raise LoadError(f"{path} is no diffusers pipeline: it has no model_index.json")


def _weights_file(path: Path) -> Path:
    if path.suffix == ".gguf":
        return path
    if path.suffix != ".safetensors":
        raise LoadError(
            f"{path} is no .safetensors or .gguf file. Other formats (.ckpt, .pt, .bin) are pickles, which can run "
            "code when they are opened: convert it to safetensors first"
        )
    if (path.parent / "config.json").is_file() and (path.parent.parent / "model_index.json").is_file():
        raise LoadError(f"{path} holds one component of a pipeline: use the folder {path.parent.parent}")
    return path


def config_folder_of(file: Path) -> Path | None:
    """The diffusers folder that tells how a single file is put together: beside it by its name, or around it."""
    for folder in (file.with_suffix(""), file.parent):
        if (folder / "model_index.json").is_file():
            return folder
    return None


def native_settings(located: Located) -> Native:
    """Read a model's `hasten.json`, where it has one; a single file's is in the folder that holds its configuration.

    Raises:
        LoadError: the file is there and cannot be understood.
    """
    folder = config_folder_of(located.path) if located.path is not None and located.path.is_file() else located.path
    if folder is None:
        return Native()
    file = folder / "hasten.json"
    try:
        return Native.model_validate_json(file.read_bytes())
    except FileNotFoundError:
        return Native()
    except (OSError, ValidationError) as error:
        raise LoadError(f"{file} cannot be read: {error}") from error


def native_of(pipe: Any) -> Native:
    """The settings of the model that a loaded pipeline came from, where its folder says any.

    Raises:
        LoadError: the folder's `hasten.json` cannot be understood.
    """
    folder = Path(getattr(getattr(pipe, "config", None), "_name_or_path", None) or "")
    return native_settings(Located("folder", folder.name, folder)) if folder.name and folder.is_dir() else Native()


def with_native(plan: Plan, native: Native) -> Plan:
    """The plan with what it leaves open filled in from the model's own settings: the plan that a record carries.

    A setting is open where it is None, or where it still is the plan's default and nobody wrote it down.
    """
    generation = plan.generation
    filled = {
        key: value
        for key, value in native.model_dump(exclude_none=True).items()
        if key not in generation.model_fields_set or getattr(generation, key) is None
    }
    # An explicit `negative_prompt: null` says "no negative prompt", it leaves nothing open.
    if "negative_prompt" in generation.model_fields_set:
        filled.pop("negative_prompt", None)
    if not filled:
        return plan
    # Through a mapping and back, so that what depends on the steps is checked again.
    values = plan.to_dict()
    values["generation"] = {**values["generation"], **filled}
    return load_plan(values)


def complete_plan(plan: Plan) -> Plan:
    """The plan with what it leaves open filled in from its model's own settings.

    Raises:
        LoadError: the model is not there.
        PlanError: the model's own number of steps does not go with the rest of the plan.
    """
    return with_native(plan, native_settings(locate(plan.model)))


def check_weights(folder: Path) -> None:
    """Read the header of every weights file under a folder, or of one file: cut-off downloads show here.

    Raises:
        LoadError: names the first file that is broken, and what is wrong with it.
    """
    files = [folder] if folder.is_file() else sorted(folder.rglob("*.safetensors"))
    for file in files:
        problem = _safetensors_problem(file)
        if problem:
            raise LoadError(f"{file} is broken: {problem}")


def _safetensors_problem(file: Path) -> str | None:
    """A safetensors file is an 8-byte length, a JSON header of that length, then the tensors it speaks of."""
    again = "get it again"
    with file.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
        if start == _LFS_POINTER:
            return "it is a git-lfs pointer, not the weights; run `git lfs pull` where it was cloned"
        stream.seek(0)
        size = file.stat().st_size
        if size < 8:
            return f"it has {size} bytes; {again}"
        (length,) = struct.unpack("<Q", stream.read(8))
        if length > size - 8:
            return f"it is no safetensors file, or it is cut off; {again}"
        try:
            header = json.loads(stream.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, AttributeError, KeyError, TypeError, IndexError):
            return f"its header cannot be read; {again}"
    expected = 8 + length + max(ends, default=0)
    return None if size == expected else f"it has {size} bytes where its header speaks of {expected}; {again}"
