"""What can be accelerated: the denoisers of a pipeline, found by what they take."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import nn

from hasten.caching.denoiser import Port
from hasten.errors import CacheError

# What a denoiser's forward calls the noise level it is given. Nothing but a denoiser, and what steers one, takes one.
_TIMESTEP = ("timestep", "timesteps", "t", "sigma", "sigmas", "timestep_ratio")
_TIMESTEP_ENDS = ("_timestep", "_timesteps", "_time")  # for one of several modalities
# What pipelines call a denoiser that takes no noise level at all: it reads it from the masked tokens.
_DENOISER = ("transformer", "unet")
_STEERING = ("controlnet", "adapter", "vae", "encoder", "embed", "guider")


def components_of(target: Any) -> dict[str, Any]:
    """The parts of a pipeline by their names in it; the attributes of anything else."""
    components = getattr(target, "components", None)
    if isinstance(components, Mapping):
        return dict(components)
    return dict(vars(target)) if hasattr(target, "__dict__") else {}


def ports_of(target: Any) -> Iterator[Port]:
    """The denoisers of a pipeline, or the module that is one.

    Raises:
        CacheError: there is none.
    """
    if isinstance(target, nn.Module):
        yield Port("denoiser", target, _timestep_of(target) or (lambda args, kwargs: None))
        return
    components = components_of(target)
    found = False
    for name, component in components.items():
        if isinstance(component, nn.Module) and not any(word in name for word in _STEERING):
            timestep = _timestep_of(component)
            if timestep is not None:
                found = True
                yield Port(name, component, timestep)
    for name in _DENOISER if not found else ():
        if isinstance(components.get(name), nn.Module):
            found = True
            yield Port(name, components[name], lambda args, kwargs: None)
    if not found:
        names = ", ".join(name for name, part in components.items() if isinstance(part, nn.Module)) or "no modules"
        raise CacheError(
            f"{type(target).__name__} has no denoiser: none of its modules takes a timestep (it has {names}); "
            "pass the denoiser itself to accelerate()"
        )


def _timestep_of(module: nn.Module) -> Callable[[Any, Any], object] | None:
    """How to find the timestep among the arguments of a module's call; None if it takes none."""
    module = getattr(module, "_orig_mod", module)  # torch.compile's wrapper takes anything
    # What replaces `forward` on the instance may not tell what it passes on.
    signatures = [list(inspect.signature(forward).parameters) for forward in (module.forward, type(module).forward)]
    signatures[1] = signatures[1][1:]  # self
    found = [(name, names.index(name)) for names in signatures for name in _TIMESTEP if name in names]
    found += [(name, names.index(name)) for names in signatures for name in names if name.endswith(_TIMESTEP_ENDS)]
    if not found:
        return None
    name, position = found[0]

    def timestep(args: Any, kwargs: Any) -> object:
        return kwargs[name] if name in kwargs else args[position] if position < len(args) else None

    return timestep
