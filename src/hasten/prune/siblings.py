"""Smaller siblings: what a class's own configuration can express decides what may be pruned.

A pruned model has to be an ordinary diffusers folder, so that only sizes count which a configuration can name. They are
found by trying: each number in it is lowered, the class is built on the meta device, and the shapes tell what became
smaller. No table of models says what their keys mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from hasten.errors import HastenError, LoadError
from hasten.inspect.building import build
from hasten.inspect.sources import Part

Config = dict[str, Any]
Gone = Mapping[str, frozenset[int]]
"""Path of a list of modules → numbers of the members that are left out."""

_LEVELS = "block_out_channels"


@dataclass(frozen=True)
class Number:
    """A size in a configuration.

    Attributes:
        key: its name.
        at: its place, where the key has a list.
    """

    key: str
    at: int | None = None

    def __str__(self) -> str:
        return self.key if self.at is None else f"{self.key}[{self.at}]"

    def of(self, config: Mapping[str, Any]) -> int:
        """Its value."""
        value = config[self.key]
        return int(value if self.at is None else value[self.at])

    def changed(self, config: Mapping[str, Any], value: int) -> Config:
        """The configuration with another value."""
        if self.at is None:
            return {**config, self.key: value}
        values = list(config[self.key])
        values[self.at] = value
        return {**config, self.key: values}


@dataclass(frozen=True)
class Depth:
    """A size that says how many blocks there are.

    Attributes:
        number: where it stands.
        lists: paths of the lists of modules that get one shorter with it.
    """

    number: Number
    lists: tuple[str, ...]


def part_of(name: str, model: nn.Module, *, by_level: bool = False) -> Part:
    """What builds a model of this class anew: its configuration.

    Args:
        by_level: with a number of layers for each level, where the class understands a list of them.
    """
    given: Any = model.config
    config = {key: value for key, value in dict(given).items() if not key.startswith("_")}
    part = Part(name, "diffusers", type(model).__name__, config)
    levels = config.get(_LEVELS)
    if not by_level or not isinstance(levels, Sequence):
        return part
    shapes = shapes_of(part)
    for key, value in config.items():
        if isinstance(value, int) and not isinstance(value, bool) and value > 1 and "layers" in key:
            spread = replace(part, config={**part.config, key: [value] * len(levels)})
            try:
                if shapes_of(spread) == shapes:
                    part = spread
            except LoadError:
                continue
    return part


def numbers(config: Mapping[str, Any]) -> Iterator[Number]:
    """Every whole number of a configuration that could be lowered."""
    for key, value in config.items():
        if key.startswith("_"):
            continue
        if isinstance(value, int) and not isinstance(value, bool) and value > 1:
            yield Number(key)
        elif isinstance(value, list | tuple):
            for at, one in enumerate(value):
                if isinstance(one, int) and not isinstance(one, bool) and one > 1:
                    yield Number(key, at)


def depths_of(part: Part) -> list[Depth]:
    """The sizes that say how many blocks there are, and which lists of modules they mean."""
    whole = _lists(build(part))
    found = []
    for number in numbers(part.config):
        config = number.changed(part.config, number.of(part.config) - 1)
        try:
            less = _lists(build(replace(part, config=config)))
        except LoadError:
            continue
        shorter = tuple(path for path, count in whole.items() if less.get(path) == count - 1)
        others = [path for path in whole if not any(path == at or path.startswith(f"{at}.") for at in shorter)]
        if shorter and all(less.get(path) == whole[path] for path in others):
            found.append(Depth(number, shorter))
    return found


def shapes_of(part: Part) -> dict[str, tuple[int, ...]]:
    """The shapes of all weights of a configuration.

    Raises:
        LoadError: nothing can be built from it.
    """
    return {name: tuple(tensor.shape) for name, tensor in build(part).state_dict().items()}


def shortened(part: Part, depths: Sequence[Depth], gone: Gone) -> Part:
    """The configuration of the model without the blocks that are gone."""
    config: Config = dict(part.config)
    for depth in depths:
        taken = {len(gone.get(path, ())) for path in depth.lists}
        if len(taken) != 1:
            raise HastenError(f"{depth.number}: {', '.join(depth.lists)} have to lose as many blocks each")
        config = depth.number.changed(config, depth.number.of(part.config) - taken.pop())
    sizes = {path: count for path, count in _lists(build(part)).items() if gone.get(path)}
    for key, value in config.items():
        for path, count in sizes.items():
            if _names_blocks(key, value, count):
                kept = [index for index in range(count) if index not in gone[path]]
                config[key] = type(value)(kept.index(index) for index in value if index in kept)
                break
    return replace(part, config=config)


def renumbered(state: Mapping[str, Tensor], gone: Gone) -> dict[str, Tensor]:
    """The weights of the blocks that stay, under their new numbers."""
    kept: dict[str, Tensor] = {}
    for name, tensor in state.items():
        new: str | None = name
        for path, members in gone.items():
            prefix = f"{path}."
            if new is not None and new.startswith(prefix):
                number, _, rest = new.removeprefix(prefix).partition(".")
                index = int(number)
                before = sum(member < index for member in members)
                new = None if index in members else f"{prefix}{index - before}.{rest}"
        if new is not None:
            kept[new] = tensor
    return kept


def sibling(model: nn.Module, part: Part, state: Mapping[str, Tensor]) -> nn.Module:
    """A model of the same class with this configuration and these weights.

    Raises:
        HastenError: the weights do not fit, with the first that does not.
    """
    wanted = shapes_of(part)
    for name in wanted.keys() | state.keys():
        got = tuple(state[name].shape) if name in state else None
        if got != wanted.get(name):
            raise HastenError(
                f"{part.kind}: pruned weights do not fit its configuration: {name} is {got or 'missing'} "
                f"where {wanted.get(name) or 'nothing'} is expected"
            )
    first = next(model.parameters())
    made: nn.Module = type(model).from_config(part.config)  # type: ignore[attr-defined]
    made.load_state_dict(dict(state))
    return made.to(first.device, first.dtype).train(model.training).requires_grad_(first.requires_grad)


def _names_blocks(key: str, value: Any, count: int) -> bool:
    """Whether a list holds numbers of blocks, as `dual_attention_layers` does."""
    return (
        ("layers" in key or "blocks" in key or "layer_ids" in key)
        and isinstance(value, list | tuple)
        and bool(value)
        and all(isinstance(one, int) and not isinstance(one, bool) and 0 <= one < count for one in value)
        and len(set(value)) == len(value)
        and list(value) == sorted(value)
    )


def _lists(model: nn.Module) -> dict[str, int]:
    return {path: len(module) for path, module in model.named_modules() if isinstance(module, nn.ModuleList)}
