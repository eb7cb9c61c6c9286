"""From a plan's `model` to a diffusers pipeline on its device: safetensors unless asked, and no code but diffusers'."""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from hasten.devices import DTYPES, resolve_device, resolve_dtype
from hasten.errors import LoadError
from hasten.loaders import gguf_arguments, loading_arguments, names_in
from hasten.models import Located, check_weights, config_folder_of, locate
from hasten.plan import Plan
from hasten.quiet import without_torchaos_noise
from hasten.sampling.samplers import apply_sampler

with without_torchaos_noise():
    import diffusers
    from diffusers import DiffusionPipeline
    from diffusers.pipelines import pipeline_utils


def load(plan: Plan, *, pickle: bool = False) -> Any:
    """Load the pipeline that a plan names, in the plan's dtype, on its device, with its sampler.

    Args:
        plan: `model`, `device`, `precision` and `sampler` are used, and of `quantization` and `memory` what is done
            while loading.
        pickle: also accept weights in pickle files (.bin), read with torch's weights-only reader.

    Returns:
        A diffusers pipeline, its own progress bar switched off.
    Raises:
        LoadError: the model cannot be found or read; with what to do.
        DeviceError: the device is absent, or cannot compute in this dtype.
    """
    located = locate(plan.model)
    device = resolve_device(plan.device)
    dtype = resolve_dtype(plan.precision.dtype, device)
    own = component_dtypes(plan, device)
    with quiet_loading():
        if located.kind == "hub":
            pipe = _load_hub(located.name, plan, dtype, own, pickle)
        elif located.kind == "file":
            pipe = _load_file(_there(located), plan, dtype)
        else:
            pipe = _load_folder(_there(located), plan, dtype, own, pickle)
        apply_sampler(pipe, plan.sampler)
        pipe.set_progress_bar_config(disable=True)
        if plan.memory.device_map is not None:
            return pipe
        try:
            return pipe.to(device)
        except torch.OutOfMemoryError as error:
            raise LoadError(f"{plan.model} in {str(dtype)[6:]} does not fit into the memory of {device}") from error


def _there(located: Located) -> Path:
    if located.path is None:
        raise LoadError(f"{located.name} is not on this machine")
    return located.path


def component_dtypes(plan: Plan, device: torch.device) -> dict[str, torch.dtype]:
    """The components that are to compute in a format of their own: what is rounded in loading stays rounded."""
    section = plan.precision
    names = {name: getattr(section, name) for name in section.COMPONENTS}
    general = names.pop("denoiser")
    for name in ("unet", "transformer", "transformer_2"):
        names[name] = names[name] or general
    return {name: resolve_dtype(value, device) for name, value in names.items() if value in DTYPES}


def dtype_keyword(dtype: torch.dtype, own: Mapping[str, torch.dtype] | None = None) -> dict[str, Any]:
    """The keyword for a dtype: diffusers 0.42 renamed it, and warns of the old one."""
    value = {"default": dtype, **own} if own else dtype
    return {"dtype" if hasattr(pipeline_utils, "_resolve_dtype") else "torch_dtype": value}


class _NoNoise(logging.Filter):
    """Drops messages about things that are as they should be, or that an error of our own says better."""

    noise = (
        "requires torchvision (not installed)",
        "Couldn't connect to the Hub",
        "Will try to load from local cache",
        "cannot run with `cpu` device",  # said of fp16 without trying it; resolve_dtype has tried
    )

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return not any(text in message for text in self.noise)


@contextlib.contextmanager
def quiet_loading() -> Iterator[None]:
    """Switch off the loading bars of diffusers and transformers for a while, and known noise; their warnings stay."""
    import diffusers.utils.logging as diffusers_logging
    import transformers.utils.logging as transformers_logging

    shown = [
        module
        for module in (diffusers_logging, transformers_logging)
        if getattr(module, "is_progress_bar_enabled", lambda: True)()
    ]
    for module in shown:
        module.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    noise = _NoNoise()
    handlers = [handler for name in ("diffusers", "transformers") for handler in logging.getLogger(name).handlers]
    for handler in handlers:
        handler.addFilter(noise)
    try:
        yield
    finally:
        for handler in handlers:
            handler.removeFilter(noise)
        for module in shown:
            module.enable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]


def pipeline_class(folder: Path) -> type[Any]:
    """The diffusers class that a folder's model_index.json names.

    Raises:
        LoadError: the file is broken, or names code that is not part of the installed diffusers.
    """
    file = folder / "model_index.json"
    try:
        name = json.loads(file.read_text("utf-8"))["_class_name"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"{file} cannot be read: {error or type(error).__name__}") from error
    if not isinstance(name, str):
        raise LoadError(f"{file} asks for code of its own ({name}); hasten runs none but the installed diffusers'")
    kind = getattr(diffusers, name, None)
    if kind is None:
        raise LoadError(
            f"{file} names {name}, which diffusers {diffusers.__version__} does not have: upgrade diffusers"
        )
    return kind


def _components(folder: Path) -> dict[str, tuple[str, str]]:
    """The components that a folder's model_index.json names, each with its library and class."""
    return _indexed(json.loads((folder / "model_index.json").read_text("utf-8")))


def _indexed(index: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    return {
        name: (value[0], value[1])
        for name, value in index.items()
        if isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)
    }


def _load_folder(folder: Path, plan: Plan, dtype: torch.dtype, own: Mapping[str, torch.dtype], pickle: bool) -> Any:
    pipeline_class(folder)
    known = _components(folder)
    missing = [name for name in known if not (folder / name).is_dir()]
    if missing:
        raise LoadError(f"{folder} is incomplete: its model_index.json names {', '.join(missing)}, which is not there")
    check_weights(folder)
    more = loading_arguments(plan, known, dtype)
    try:
        return DiffusionPipeline.from_pretrained(
            folder,
            **dtype_keyword(dtype, {name: value for name, value in own.items() if name in known}),
            **more,
            use_safetensors=None if pickle else True,
            local_files_only=True,
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        if not pickle and any(folder.glob("*/*.bin")):
            raise LoadError(
                f"{folder} has weights in pickle files (.bin), which hasten does not open unless asked: get the "
                "safetensors files, or in Python hasten.loading.load(plan, pickle=True)"
            ) from error
        raise LoadError(f"{folder} cannot be loaded{_by(plan)}: {_first_line(error)}") from error


def _by(plan: Plan) -> str:
    return "" if plan.quantization.loader is None else f" by quantization.loader: {plan.quantization.loader}"


def _load_hub(name: str, plan: Plan, dtype: torch.dtype, own: Mapping[str, torch.dtype], pickle: bool) -> Any:
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    try:
        more = {}
        if plan.quantization.loader is not None or plan.memory.device_map is not None:
            more = loading_arguments(plan, _indexed(DiffusionPipeline.load_config(name)), dtype)
        return DiffusionPipeline.from_pretrained(
            name, **dtype_keyword(dtype, own), **more, use_safetensors=None if pickle else True
        )
    except (OSError, ValueError, RuntimeError, KeyError, ImportError) as error:
        causes = list(_causes(error))
        if any(isinstance(cause, GatedRepoError) for cause in causes):
            raise LoadError(
                f"{name} asks for its terms to be accepted on its hub page; then `hf auth login`"
            ) from error
        if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
            raise LoadError(f"{name} is no repository on the hub, or a private one: check the spelling") from error
        if any("Connect" in type(cause).__name__ or "Offline" in type(cause).__name__ for cause in causes):
            raise LoadError(_offline(name)) from error
        raise LoadError(f"{name} cannot be loaded{_by(plan)}: {_first_line(error)}") from error


def _offline(name: str) -> str:
    return (
        f"{name} is not on this machine and the hub cannot be reached. Either\n"
        f"  - download it on a machine with a network (hf download {name} --local-dir FOLDER), copy the folder here "
        "and give its path as the model;\n"
        "  - set HF_HOME to a cache that holds it;\n"
        "  - or use a bundled model (--model scenes-qwen)"
    )


def _load_file(file: Path, plan: Plan, dtype: torch.dtype) -> Any:
    """A single file holds weights only; how they are put together is read from a diffusers folder."""
    for key, value in (
        ("quantization.loader", plan.quantization.loader),
        ("memory.device_map", plan.memory.device_map),
    ):
        if value is not None:
            raise LoadError(f"{key}: diffusers loads no single file so; use its diffusers folder")
    is_gguf = file.suffix == ".gguf"
    if not is_gguf:
        check_weights(file)
    folder = _config_folder(file)
    kind = pipeline_class(folder)
    denoiser = _denoiser_only(file, folder)
    more = gguf_arguments(file, dtype) if is_gguf else {}
    if denoiser is None and not hasattr(kind, "from_single_file"):
        raise LoadError(f"diffusers cannot load a {kind.__name__} from a single file: use its diffusers folder")
    try:
        if denoiser is None:
            return kind.from_single_file(str(file), config=str(folder), **dtype_keyword(dtype), local_files_only=True)
        name, cls = denoiser
        module = cls.from_single_file(
            str(file), config=str(folder), subfolder=name, **dtype_keyword(dtype), **more, local_files_only=True
        )
        return DiffusionPipeline.from_pretrained(
            folder, **dtype_keyword(dtype), use_safetensors=True, local_files_only=True, **{name: module}
        )
    except (OSError, ValueError, RuntimeError, KeyError, AttributeError, ImportError) as error:
        raise LoadError(f"{file} cannot be loaded as a {kind.__name__} of {folder}: {_first_line(error)}") from error


def _config_folder(file: Path) -> Path:
    """The folder whose configs fit a single file: beside it by name, around it, or its base model's from the hub."""
    folder = config_folder_of(file)
    if folder is not None:
        return folder
    from diffusers.loaders.single_file_utils import fetch_diffusers_config, load_single_file_checkpoint
    from huggingface_hub import snapshot_download

    base = str(fetch_diffusers_config(load_single_file_checkpoint(str(file)))["pretrained_model_name_or_path"])
    beside = file.with_suffix("")
    configs = ["*.json", "**/*.json", "**/*.txt", "**/*.model"]
    try:
        return Path(snapshot_download(base, allow_patterns=configs))
    except Exception as error:
        raise LoadError(
            f"{file} holds weights alone; it looks like a {base}, whose configuration is not on this machine and "
            f"cannot be fetched ({_first_line(error)}). Put the diffusers folder of {base} beside the file as "
            f"{beside}/ (the .json and tokenizer files are enough where the file holds all weights)"
        ) from error


def _denoiser_only(file: Path, folder: Path) -> tuple[str, type[Any]] | None:
    """The denoiser's name and class, where the file holds nothing else: the other weights then come from the folder."""
    keys = names_in(file)
    others = ("first_stage_model.", "cond_stage_model.", "conditioner.", "text_encoder", "vae.")
    if any(key.startswith(others) for key in keys):
        return None
    components = _components(folder)
    for name in ("transformer", "unet"):
        if name in components and components[name][0] == "diffusers":
            return name, getattr(diffusers, components[name][1])
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__
