"""What is known of a model's layers: their facts, their cost, their place in the code, as a tree."""

from __future__ import annotations

import functools
import linecache
import math
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from hasten.inspect.watching import Attention, Place, Seen, Shape, relative_file

Fact = int | float | str | bool | tuple[int, ...]


@dataclass(frozen=True)
class Layer:
    """A module with everything in it.

    Attributes:
        path: from the component's root; "" is the root itself.
        kind: the name of its class.
        place: where the class is defined.
        facts: what it was made with: kernel, stride, channels, groups, features; None of the children's.
        inputs: shapes by argument, at its first call.
        outputs: shapes of what it returned then.
        calls: how often it was called; 0 where it took no part.
        parameters: numbers in its weights and its children's, each weight once.
        own_parameters: those that are not its children's.
        macs: multiply-accumulates in it and its children, over all calls.
        attention_macs: those of them in attention's two products.
        attentions: the calls of attention that it makes itself.
        pooled: whether its weights work on one row per sample.
        seconds: measured, over all calls; None where nothing was.
        first: its place in the order of first calls; None where it took no part.
        children: in the order of their calls, those that took no part last.
    """

    path: str
    kind: str
    place: Place | None
    facts: dict[str, Fact]
    inputs: dict[str, Shape]
    outputs: tuple[Shape, ...]
    calls: int
    parameters: int
    own_parameters: int
    macs: int
    attention_macs: int
    attentions: tuple[Attention, ...] = ()
    pooled: bool = False
    seconds: float | None = None
    first: int | None = None
    children: tuple[Layer, ...] = field(default=(), repr=False)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition(".")[2]

    def walk(self) -> Iterator[Layer]:
        """This layer and all in it, parents first."""
        yield self
        for child in self.children:
            yield from child.walk()


def layers_of(model: nn.Module, seen: dict[str, Seen], seconds: dict[str, float] | None = None) -> Layer:
    """The tree of a model's layers.

    Args:
        model: the module that was watched.
        seen: what was seen, by path; empty where no forward pass went through.
        seconds: measured times, by path.
    """
    counted: set[int] = set()
    return _layer("", model, seen, seconds or {}, counted)


def _layer(path: str, module: nn.Module, seen: dict[str, Seen], seconds: dict[str, float], counted: set[int]) -> Layer:
    own = 0
    for parameter in module.parameters(recurse=False):
        if id(parameter) not in counted:
            counted.add(id(parameter))
            own += parameter.numel()
    prefix = f"{path}." if path else ""
    children = [_layer(f"{prefix}{name}", child, seen, seconds, counted) for name, child in module.named_children()]
    if not isinstance(module, nn.ModuleList):
        children.sort(key=lambda child: math.inf if child.first is None else child.first)
    what = seen.get(path, Seen())
    return Layer(
        path=path,
        kind=type(module).__name__,
        place=place_of(type(module)),
        facts=facts_of(module),
        inputs=what.inputs,
        outputs=what.outputs,
        calls=what.calls,
        parameters=own + sum(child.parameters for child in children),
        own_parameters=own,
        macs=what.macs + sum(child.macs for child in children),
        attention_macs=what.attention_macs + sum(child.attention_macs for child in children),
        attentions=tuple(what.attentions),
        pooled=bool(what.pooled),
        seconds=seconds.get(path),
        # A list is never called: its members stand for it.
        first=what.first if what.calls else min((c.first for c in children if c.first is not None), default=None),
        children=tuple(children),
    )


_FACTS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "in_features",
    "out_features",
    "num_embeddings",
    "embedding_dim",
    "num_groups",
    "num_channels",
    "normalized_shape",
    "dim",
    "eps",
)
# What is as it nearly always is says nothing.
_USUAL: dict[str, Any] = {"dilation": 1, "groups": 1}


def facts_of(module: nn.Module) -> dict[str, Fact]:
    """What a single layer was made with, under torch's names; nothing for a module that only holds others.

    A square kernel is one number: `kernel_size: 3`.
    """
    if next(module.children(), None) is not None and next(module.parameters(recurse=False), None) is None:
        return {}
    facts: dict[str, Fact] = {}
    for name in _FACTS:
        value = vars(module).get(name)  # not getattr: a model looks into its configuration, too
        value = tuple(value) if isinstance(value, list) else value
        if isinstance(value, tuple) and all(isinstance(part, int) for part in value):
            value = value[0] if len(set(value)) == 1 else value
        if isinstance(value, int | float | str | tuple) and _USUAL.get(name) != value:
            facts[name] = value
    if not facts:  # a layer of the model's own: its weights say how large it is
        for name, parameter in module.named_parameters(recurse=False):
            facts[name] = tuple(parameter.shape)
    elif isinstance(module, nn.Linear | nn.modules.conv._ConvNd):
        facts["bias"] = module.bias is not None
        if getattr(module, "transposed", False):
            facts["transposed"] = True
    return facts


def place_of(kind: type) -> Place | None:
    """Where a class is defined; None for torch's own."""
    return _find_class(kind.__module__, kind.__name__)


@functools.cache
def _find_class(module_name: str, name: str) -> Place | None:
    module = sys.modules.get(module_name)
    if module_name.startswith("torch.") or module is None or not module.__file__:
        return None
    # Not inspect.getsourcelines: it parses the whole file for each of its classes.
    begins = re.compile(rf"\s*class {re.escape(name)}\b")
    for number, line in enumerate(linecache.getlines(module.__file__), start=1):
        if begins.match(line):
            return Place(relative_file(module.__file__), number)
    return None
