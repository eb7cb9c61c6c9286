"""What figures hold for: a model, its scheduler and its adapters. Other weights, and they are no figures at all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

from hasten.caching.denoiser import Port

# So many weights stand for all of them.
_SAMPLES = 12
# Number formats round; another training moves further.
_TOLERANCE = 0.02
# What adapters bring along is no part of the model itself.
_OF_ADAPTERS = ("lora_", "_ip.", "encoder_hid_proj")


class Weights(BaseModel):
    """A denoiser: its class, its configuration, and a few of its weights."""

    model_config = ConfigDict(frozen=True, extra="ignore")
    kind: str
    config: str
    sample: tuple[float, ...] = ()

    def same(self, other: Weights) -> bool:
        """Whether it is the same network, in whatever number format."""
        if (self.kind, self.config) != (other.kind, other.config):
            return False
        pairs = zip(self.sample, other.sample, strict=False)  # offloaded weights cannot be looked at: nothing differs
        return all(abs(one - two) <= _TOLERANCE * max(abs(one), abs(two)) + 1e-6 for one, two in pairs)


class Key(BaseModel):
    """What figures were measured on.

    Attributes:
        model: its name, for people.
        denoisers: by their names in the pipeline.
        scheduler: class and configuration.
        adapters: LoRAs and the like that are active, with their scales.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")
    model: str
    denoisers: dict[str, Weights]
    scheduler: str
    adapters: tuple[str, ...] = ()

    def differences(self, other: Key) -> tuple[str, ...]:
        """In what the two are not the same, in words: this one's, then the other's."""
        found = []
        if self.denoisers.keys() != other.denoisers.keys() or not all(
            weights.same(other.denoisers[name]) for name, weights in self.denoisers.items()
        ):
            found.append(f"other weights ({self.model}, here {other.model})")
        if self.scheduler != other.scheduler:
            found.append(f"another scheduler ({self.scheduler}, here {other.scheduler})")
        if self.adapters != other.adapters:
            mine, others = (", ".join(adapters) or "none" for adapters in (self.adapters, other.adapters))
            found.append(f"other adapters ({mine}; here {others})")
        return tuple(found)

    @property
    def filename(self) -> str:
        """`scenes-qwen-1a2b3c4d.json`: the same for the same key."""
        weights = {name: (part.kind, part.config) for name, part in self.denoisers.items()}
        return f"{self.model}-{_digest([weights, self.scheduler, self.adapters])}.json"


def key_of(target: Any, ports: Iterable[Port]) -> Key:
    """The key of a pipeline, or of a bare denoiser, as it is now."""
    ports = list(ports)
    source = getattr(getattr(target, "config", None), "_name_or_path", None)
    return Key(
        model=Path(str(source)).name if source else type(ports[0].module).__name__,
        denoisers={port.name: _weights(port.module) for port in ports},
        scheduler=_scheduler(getattr(target, "scheduler", None)),
        adapters=adapters_of(ports),
    )


def adapters_of(ports: Iterable[Port]) -> tuple[str, ...]:
    """Active adapters with their scale where it is used first, and a mark of all their scales and of their weights.

    `style 0.8 1a2b3c4d` is a LoRA, `image-prompt-0 0.6 5e6f7a8b` an IP-Adapter.
    """
    scales: dict[str, list[float]] = {}
    weights: dict[str, tuple[float, ...]] = {}
    for port in ports:
        for module in port.module.modules():
            for name, scale, part in (*_loras(module), *_image_prompts(module)):
                scales.setdefault(name, []).append(scale)
                if name not in weights:
                    weights[name] = _sample(part.parameters())
    return tuple(f"{name} {own[0]:g} {_digest([own, weights[name]])}" for name, own in scales.items())


def _loras(module: nn.Module) -> Iterator[tuple[str, float, nn.Module]]:
    """What PEFT has laid over a module and is active: name, scale, weights."""
    lora, active = getattr(module, "lora_A", None), getattr(module, "active_adapters", None)
    if isinstance(lora, nn.ModuleDict) and not getattr(module, "disable_adapters", False):
        for name in active if isinstance(active, (list, tuple)) else ():
            if name in lora:
                yield name, float(getattr(module, "scaling", {}).get(name, 1.0)), lora[name]


def _image_prompts(module: nn.Module) -> Iterator[tuple[str, float, nn.Module]]:
    """What an attention processor has of IP-Adapters: a number, scale, weights."""
    keys = getattr(module, "to_k_ip", None)
    if not isinstance(keys, nn.Module):
        return
    parts = list(keys) if isinstance(keys, nn.ModuleList) else [keys]
    scale = getattr(module, "scale", 1.0)
    scales = list(scale) if isinstance(scale, (list, tuple)) else [scale] * len(parts)
    for number, (part, one) in enumerate(zip(parts, scales, strict=False)):
        several = one if isinstance(one, (list, tuple)) else [one]  # one for each of several images
        for place, value in enumerate(several):
            yield f"image-prompt-{number}" + (f".{place}" if len(several) > 1 else ""), float(value), part


def _weights(module: nn.Module) -> Weights:
    config = {name: value for name, value in dict(getattr(module, "config", {})).items() if not name.startswith("_")}
    if config.get("encoder_hid_dim_type") in ("ip_image_proj", "text_proj"):  # which loading an IP-Adapter exchanges
        config["encoder_hid_dim_type"] = None
    plain = (
        parameter for name, parameter in module.named_parameters() if not any(part in name for part in _OF_ADAPTERS)
    )
    return Weights(kind=type(module).__name__, config=_digest(config), sample=_sample(plain))


def _scheduler(scheduler: Any) -> str:
    if scheduler is None:
        return "none"
    config = {name: value for name, value in dict(getattr(scheduler, "config", {})).items() if not name.startswith("_")}
    return f"{type(scheduler).__name__} {_digest(config)}"


def _sample(parameters: Iterable[Tensor]) -> tuple[float, ...]:
    """One number from each of a few parameters, spread over all of them."""
    floats = [parameter for parameter in parameters if parameter.is_floating_point() and parameter.numel()]
    chosen = floats[:: max(len(floats) // _SAMPLES, 1)][:_SAMPLES]
    if any(parameter.device.type == "meta" for parameter in chosen):
        return ()
    values = [parameter.detach().flatten()[parameter.numel() // 2] for parameter in chosen]
    return tuple(float(f"{float(value.to(torch.float32)):.4g}") for value in values)


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode()).hexdigest()[:8]
