"""Build a component from its configuration alone, on the meta device."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from hasten.errors import LoadError
from hasten.inspect.known import META, KnownValues
from hasten.inspect.sources import Part


def build(part: Part) -> nn.Module:
    """The component as a module without weights, in evaluation mode.

    Raises:
        LoadError: the class is not installed, or does not take this configuration.
    """
    kind = find_class(part)
    with _quiet(), torch.device(META), torch.no_grad(), KnownValues():
        try:
            model = _from_config(kind, part)
        except Exception as error:
            raise LoadError(f"{part.name}: {part.kind} cannot be built from this configuration: {error}") from error
    model.eval().requires_grad_(False)
    return model


def find_class(part: Part) -> type[Any]:
    """The installed class of a component.

    Raises:
        LoadError: there is none, or it is no model.
    """
    library = __import__(part.library)
    kind = getattr(library, part.kind, None)
    if kind is None:
        raise LoadError(f"{part.name}: {part.library} {library.__version__} has no {part.kind}: upgrade {part.library}")
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise LoadError(f"{part.name}: {part.kind} is no model: there is nothing to inspect")
    return kind


def _from_config(kind: type[Any], part: Part) -> nn.Module:
    if part.library == "diffusers":
        model: nn.Module = kind.from_config(part.config)
        return model
    config = kind.config_class.from_dict(part.config)
    return kind._from_config(config)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings of keys that an older or newer version wrote."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
