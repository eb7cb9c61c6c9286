"""A pipeline as the passes see it: its modules by their names, and which of them are denoisers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.errors import CacheError, PassError
from hasten.targets import components_of, ports_of

DENOISER = "denoiser"
"""The name by which a plan means every denoiser of a pipeline, whatever it is called there."""


@dataclass(frozen=True)
class Target:
    """What a plan is applied to.

    Attributes:
        pipe: the pipeline, or the bare denoiser.
        modules: its parts that compute, by their names in the pipeline.
        denoisers: the names of those that are called at every step.
        keeps: whether weights that are replaced by others are kept, to be put back.
    """

    pipe: Any
    modules: dict[str, nn.Module]
    denoisers: tuple[str, ...]
    keeps: bool = True

    @classmethod
    def of(cls, pipe: Any, *, keeps: bool = True) -> Target:
        """Look at a pipeline, or at a bare denoiser."""
        try:
            denoisers = {port.name: port.module for port in ports_of(pipe)}
        except CacheError:  # there is none, which is no matter as long as the plan says nothing of one
            denoisers = {}
        found = {} if isinstance(pipe, nn.Module) else components_of(pipe)
        modules = {name: part for name, part in found.items() if isinstance(part, nn.Module)}
        return cls(pipe, modules or denoisers, tuple(denoisers), keeps)

    @property
    def title(self) -> str:
        return type(self.pipe).__name__

    @property
    def is_pipeline(self) -> bool:
        return not isinstance(self.pipe, nn.Module)

    @property
    def device(self) -> torch.device:
        """Where it computes, also while its weights are elsewhere."""
        device = getattr(self.pipe, "_execution_device", None) or getattr(self.pipe, "device", None)
        if device is None:
            tensor = next((parameter for part in self.modules.values() for parameter in part.parameters()), None)
            device = torch.device("cpu") if tensor is None else tensor.device
        return torch.device(device)

    def named(self, key: str, name: str) -> tuple[str, ...]:
        """The modules that a component's name in a plan means.

        Args:
            key: the plan's key, for the message.
            name: "denoiser", or a name of the pipeline.

        Raises:
            PassError: there is no such module.
        """
        if name == DENOISER and self.denoisers:
            return self.denoisers
        if name in self.modules:
            return (name,)
        raise PassError(f"{key}: {self.title} has no {name}; it has {', '.join(self.modules)}")

    def per_component(self, section: str, values: object, names: Sequence[str]) -> dict[str, Any]:
        """What a section of the plan says of each module: a module's own name wins over `denoiser`.

        Args:
            values: the section, whose attributes are the names.

        Raises:
            PassError: it speaks of a module that is not there.
        """
        found: dict[str, Any] = {}
        for name in sorted(names, key=lambda name: name != DENOISER):
            value = getattr(values, name)
            if value is not None:
                found |= dict.fromkeys(self.named(f"{section}.{name}", name), value)
        return {name: found[name] for name in self.modules if name in found}


def floating_dtype(module: nn.Module) -> torch.dtype | None:
    """The format that a module computes in: of its first floating-point parameter, as diffusers tells it."""
    dtype = getattr(module, "dtype", None)  # knows of weights that are stored in another format than they are used in
    if isinstance(dtype, torch.dtype):
        return dtype if dtype.is_floating_point else None
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), None)


def bytes_of(module: nn.Module) -> int:
    """The memory that parameters and buffers take; what shares memory counts once."""
    storages = {}
    for tensor in (*module.parameters(), *module.buffers()):
        for plain in _plain(tensor):
            storages[plain.untyped_storage().data_ptr()] = plain.numel() * plain.element_size()
    return sum(storages.values())


def _plain(tensor: torch.Tensor) -> list[torch.Tensor]:
    """The plain tensors that a tensor subclass, such as a quantized one, is made of."""
    flatten: Callable[[], tuple[list[str], Any]] | None = getattr(tensor, "__tensor_flatten__", None)
    if flatten is None:
        return [tensor]
    return [plain for name in flatten()[0] for plain in _plain(getattr(tensor, name))]
