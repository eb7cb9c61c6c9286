"""What is decided while a model is loaded: quantized by a loader of diffusers' own, or spread over several devices."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from hasten.devices import available
from hasten.errors import LoadError
from hasten.plan import Plan

Components = Mapping[str, tuple[str, str]]
"""Name of a component → its library and class, as a model_index.json tells."""

# What the loaders import: package, and how it is called where it is installed from.
_PACKAGES = {
    "bitsandbytes_4bit": ("bitsandbytes", "bitsandbytes"),
    "bitsandbytes_8bit": ("bitsandbytes", "bitsandbytes"),
    "gguf": ("gguf", '"hasten[gguf]"'),
    "modelopt": ("modelopt", "nvidia-modelopt"),
    "quanto": ("optimum", "optimum-quanto"),
    "torchao": ("torchao", '"hasten[torchao]"'),
}


def loading_arguments(plan: Plan, components: Components, dtype: torch.dtype) -> dict[str, Any]:
    """What a plan adds to the arguments of `DiffusionPipeline.from_pretrained`.

    Raises:
        LoadError: a loader or component that is not there, settings that it does not take, or no accelerator.
    """
    found: dict[str, Any] = {}
    if plan.quantization.loader is not None:
        found["quantization_config"] = _quantization(plan, components, dtype)
    if plan.memory.device_map is not None:
        if available() == ["cpu"]:
            raise LoadError(
                f"memory.device_map: {plan.memory.device_map} spreads a pipeline over accelerators, and there is none "
                "here"
            )
        found["device_map"] = plan.memory.device_map
        if plan.memory.max_memory is not None:
            found["max_memory"] = {
                int(device) if device.isdigit() else device: int(size)
                for device, size in plan.memory.max_memory.items()
            }
    return found


def _quantization(plan: Plan, components: Components, dtype: torch.dtype) -> Any:
    from diffusers.quantizers import PipelineQuantizationConfig
    from diffusers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as OURS
    from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING as THEIRS

    section = plan.quantization
    loader = str(section.loader)
    if loader == "gguf":
        raise LoadError("quantization.loader: gguf is a format of files: give the .gguf file as the model")
    if loader not in OURS:
        near = get_close_matches(loader, OURS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LoadError(f"quantization.loader: diffusers has no {loader!r}{hint} (it has {', '.join(OURS)})")
    need(f"quantization.loader: {loader}", loader)
    names = section.components or [name for name in components if name.startswith(("transformer", "unet"))]
    strange = [name for name in names if name not in components]
    if strange:
        raise LoadError(
            f"quantization.components: the model has no {', '.join(strange)}; it has {', '.join(components)}"
        )
    options: dict[str, Any] = dict(section.options or {})
    if loader.startswith("bitsandbytes"):
        bits = "4bit" if loader.endswith("4bit") else "8bit"
        options = {f"load_in_{bits}": True, **({"bnb_4bit_compute_dtype": dtype} if bits == "4bit" else {}), **options}
    if loader == "torchao" and isinstance(options.get("quant_type"), str):
        options["quant_type"] = _torchao_type(options["quant_type"])
    mapping = {}
    for name in names:
        kinds = OURS if components[name][0] == "diffusers" else THEIRS
        if loader not in kinds:
            raise LoadError(f"quantization.loader: {components[name][0]} has no {loader!r} for {name}")
        try:
            mapping[name] = kinds[loader](**options)
        except (TypeError, ValueError, ImportError) as error:
            raise LoadError(f"quantization.options: {loader} does not take them: {error}") from error
    return PipelineQuantizationConfig(quant_mapping=mapping)


def _torchao_type(name: str) -> Any:
    """torchao's configuration of that class name, with its defaults: Int8WeightOnlyConfig, …"""
    import torchao.quantization as torchao
    from torchao.core.config import AOBaseConfig

    kinds = {
        key: kind
        for key, kind in vars(torchao).items()
        if isinstance(kind, type) and issubclass(kind, AOBaseConfig) and kind is not AOBaseConfig
    }
    if name not in kinds:
        near = get_close_matches(name, kinds, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise LoadError(f"quantization.options: torchao has no {name!r}{hint} (it has {', '.join(sorted(kinds))})")
    try:
        return kinds[name]()
    except TypeError as error:
        raise LoadError(
            f"quantization.options: {name} cannot be made from its name alone ({error}); give an object from Python"
        ) from error


def need(what: str, loader: str) -> None:
    """Check that a loader's package is installed.

    Raises:
        LoadError: it is not; with how to install it.
    """
    package, install = _PACKAGES.get(loader, (None, None))
    if package is not None and find_spec(package) is None:
        raise LoadError(f"{what} needs the package {package}: pip install {install}")


def gguf_arguments(file: Path, dtype: torch.dtype) -> dict[str, Any]:
    """What `from_single_file` needs for a GGUF file.

    Raises:
        LoadError: the package gguf is not installed.
    """
    need(f"{file.name}", "gguf")
    from diffusers import GGUFQuantizationConfig

    return {"quantization_config": GGUFQuantizationConfig(compute_dtype=dtype)}


def names_in(file: Path) -> list[str]:
    """The names of the tensors in a file of weights.

    Raises:
        LoadError: a GGUF file, and the package gguf is not installed or cannot read it.
    """
    if file.suffix == ".gguf":
        need(f"{file.name}", "gguf")
        import gguf

        try:
            return [tensor.name for tensor in gguf.GGUFReader(file).tensors]
        except (ValueError, OSError, KeyError, IndexError) as error:
            raise LoadError(f"{file} is no GGUF file, or it is cut off: {error}") from error
    from safetensors import safe_open

    with safe_open(file, "pt") as stream:
        return list(stream.keys())
