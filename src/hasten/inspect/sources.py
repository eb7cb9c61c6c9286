"""From a name to the configurations of a model's parts; no weights are opened, and torch is not imported."""

from __future__ import annotations

import difflib
import json
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from hasten.errors import LoadError
from hasten.models import bundled_folder, bundled_models

_FILE = "config.json"
_INDEX = "model_index.json"


@dataclass(frozen=True)
class Part:
    """One component of a pipeline.

    Attributes:
        name: as the pipeline calls it: `unet`, `vae`, `text_encoder_2`.
        library: `diffusers` or `transformers`.
        kind: the class's name.
        config: its configuration.
        folder: where its weights would lie; None for a configuration alone.
        tokens: how many tokens of a prompt it reads, where it is not as many as the denoiser takes.
    """

    name: str
    library: str
    kind: str
    config: dict[str, Any]
    folder: Path | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Use:
    """How a model is used where nobody says otherwise; None = found out from the pipeline's class.

    Attributes:
        height, width: pixels.
        frames: of a film.
        text: tokens of a prompt, as the denoiser reads them.
        steps: calls of the scheduler for an image.
        passes: calls of the denoiser in a step, counted per sample: 2 with guidance.
    """

    height: int | None = None
    width: int | None = None
    frames: int | None = None
    text: int | None = None
    steps: int | None = None
    passes: int | None = None


@dataclass(frozen=True)
class Source:
    """What there is to inspect.

    Attributes:
        name: what to call it.
        pipeline: name of the pipeline's class; None for a component alone.
        parts: its components that have weights.
        left_out: components that cannot be inspected, and why.
    """

    name: str
    pipeline: str | None
    parts: tuple[Part, ...]
    use: Use = field(default_factory=Use)
    folder: Path | None = None
    left_out: tuple[tuple[str, str], ...] = ()


def architectures() -> dict[str, Any]:
    """The named architectures: name → file."""
    folder = resources.files("hasten.inspect") / "architectures"
    return {file.name.removesuffix(".yaml"): file for file in sorted(folder.iterdir(), key=lambda file: file.name)}


def find_source(model: str) -> Source:
    """Find what a name means: a bundled model, a named architecture, a folder, a config file, or a cached hub id.

    Raises:
        LoadError: nothing is there by this name, or it cannot be understood; with what to do.
    """
    if model in bundled_models():
        return replace(_pipeline(bundled_folder() / model), name=model)
    named = architectures()
    if model in named:
        return _architecture(model)
    path = Path(model).expanduser()
    if path.is_dir():
        return _folder(path)
    if path.is_file():
        return _file(path)
    if model.count("/") == 1 and not model.startswith((".", "~", "/")) and path.suffix != ".json":
        return replace(_folder(_hub(model)), name=model)
    known = [*bundled_models(), *named]
    near = difflib.get_close_matches(model.lower(), known, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise LoadError(
        f"model {model!r} not found{hint} (known by name: {', '.join(known)}; otherwise a diffusers folder, "
        f"a {_FILE}, or a hub id like Qwen/Qwen-Image)"
    )


def _architecture(name: str) -> Source:
    text = _read_architecture(name)
    base = _read_architecture(text["like"]) if "like" in text else text
    parts = tuple(
        Part(
            part,
            config.pop("_library", "diffusers"),
            config.pop("_class_name"),
            config,
            tokens=config.pop("_tokens", None),
        )
        for part, config in base["components"].items()
    )
    return Source(name, base["pipeline"], parts, Use(**text["use"]))


def _read_architecture(name: str) -> dict[str, Any]:
    text: dict[str, Any] = yaml.safe_load(architectures()[name].read_text("utf-8"))
    return text


def _hub(name: str) -> Path:
    """A repository's snapshot in the hub's cache; its configuration files are fetched if they are not there."""
    from huggingface_hub import snapshot_download

    configs = ["*.json", "*/*.json"]
    try:
        return Path(snapshot_download(name, allow_patterns=configs, local_files_only=True))
    except Exception:
        pass
    try:
        return Path(snapshot_download(name, allow_patterns=configs))
    except Exception as error:
        raise LoadError(
            f"{name} is not in the hub's cache on this machine, and its configuration cannot be fetched "
            f"({str(error).splitlines()[0]}). Give a folder or a {_FILE} instead, or one of the known "
            f"architectures: {', '.join(architectures())}"
        ) from error


def _folder(path: Path) -> Source:
    if (path / _INDEX).is_file():
        return _pipeline(path)
    if (path / _FILE).is_file():
        return _component(path / _FILE)
    snapshots = sorted(path.glob(f"snapshots/*/{_INDEX}"))
    if snapshots:
        return _pipeline(snapshots[-1].parent)
    raise LoadError(f"{path} holds neither a {_INDEX} nor a {_FILE}: it is no diffusers folder")


def _file(path: Path) -> Source:
    if path.name == _INDEX:
        return _pipeline(path.parent)
    if path.suffix == ".json":
        return _component(path)
    raise LoadError(f"{path} is no configuration: give a {_FILE}, a {_INDEX} or a folder (weights are not needed)")


def _component(file: Path) -> Source:
    config = read_json(file)
    library, kind = _kind_of(config, file)
    name = file.parent.name if file.name == _FILE else file.stem
    return Source(kind, None, (Part(name or "model", library, kind, config, file.parent),), folder=file.parent)


def _kind_of(config: dict[str, Any], file: Path) -> tuple[str, str]:
    if isinstance(config.get("_class_name"), str):
        return "diffusers", config["_class_name"]
    names = config.get("architectures")
    if isinstance(names, list) and names and isinstance(names[0], str):
        return "transformers", names[0]
    raise LoadError(f"{file} does not say what it configures: it has no `_class_name` and no `architectures`")


def _pipeline(folder: Path) -> Source:
    index = read_json(folder / _INDEX)
    parts: list[Part] = []
    left_out: list[tuple[str, str]] = []
    for name, value in index.items():
        if not (isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)):
            continue
        library, kind = value
        file = folder / name / _FILE
        if not file.is_file():
            continue  # schedulers and tokenizers have no weights
        if library not in ("diffusers", "transformers"):
            left_out.append((name, f"{kind} is code of {library}; hasten runs none but diffusers' and transformers'"))
            continue
        parts.append(Part(name, library, kind, read_json(file), folder / name))
    if not parts:
        raise LoadError(f"{folder} has a {_INDEX}, but none of its components has a {_FILE}")
    kind = index.get("_class_name")
    return Source(
        folder.name, kind if isinstance(kind, str) else None, tuple(parts), _native(folder), folder, tuple(left_out)
    )


def _native(folder: Path) -> Use:
    from hasten.models import Located, native_settings

    native = native_settings(Located("folder", folder.name, folder))
    scale = native.true_cfg_scale if native.true_cfg_scale is not None else native.guidance_scale
    passes = None if scale is None else 2 if scale > 1 else 1
    return Use(native.height, native.width, steps=native.num_inference_steps, passes=passes)


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        LoadError: it cannot be read, or is something else.
    """
    try:
        value = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise LoadError(f"{file} cannot be read: {error}") from error
    if not isinstance(value, dict):
        raise LoadError(f"{file} holds no configuration: it is a list or a bare value")
    return value
