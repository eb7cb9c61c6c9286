"""Make a model narrower: channels, heads and feed-forward width, as far as its configuration can say so."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from hasten.errors import HastenError, LoadError
from hasten.inspect.building import build
from hasten.inspect.sources import Part
from hasten.prune.calls import Call, call_again
from hasten.prune.graph import Coupled, Graph
from hasten.prune.siblings import Number, numbers, shapes_of, sibling

_LEAST, _TRIED = 0.34, 4
_HEADS = "head"


def widths_of(part: Part) -> list[Number]:
    """The sizes that make layers narrower and leave their number as it is."""
    whole = shapes_of(part)
    found = []
    for number in numbers(part.config):
        if _HEADS in number.key and "block_out_channels" in part.config:
            continue  # a UNet's numbers of heads follow its channels
        if any(_narrower(whole, config) is not None for config in islice(_lowered(part, number), _TRIED)):
            found.append(number)
    return found


def narrowed(
    part: Part,
    left: Callable[[Part], float | None],
    goal: float,
    told: Callable[[str], None] = lambda text: None,
    only: Sequence[str] = (),
) -> Part:
    """The configuration of a sibling of which so much of the cost is left, all its widths lowered alike.

    Args:
        left: the share of the cost of a configuration; None where it cannot be called as the model is.
        only: the keys of the configuration that may be lowered; all where it is empty.

    Raises:
        HastenError: no configuration is as small as that, or there is no such width.
    """
    found = widths_of(part)
    unknown = set(only) - {number.key for number in found}
    if unknown:
        names = ", ".join(dict.fromkeys(number.key for number in found))
        raise HastenError(f"{part.kind}: {min(unknown)} is no width of its configuration; widths: {names}")
    open_ = {number: list(_lowered(part, number)) for number in found if not only or number.key in only}
    values = {number: number.of(part.config) for number in open_}
    current, share = part, 1.0
    while share > goal:
        # The one that is widest still, of its own width.
        able = [number for number, lower in open_.items() if lower]
        if not able:
            raise HastenError(
                f"{part.kind}: its configuration lets no width be lowered further: {share:.0%} are left, "
                f"{goal:.0%} were the goal; widths: {', '.join(map(str, values)) or 'none'}"
            )
        number = max(able, key=lambda number: values[number] / number.of(part.config))
        step = open_[number].pop(0)
        changes = {key: value for key, value in step.config.items() if value != part.config.get(key)}
        trial = replace(current, config=_merged(current.config, part.config, changes))
        try:
            now = left(trial)
        except LoadError:
            now = None
        if now is None or now >= share:
            continue
        current, share, values[number] = trial, now, number.of(trial.config)
        told(f"{number} {number.of(part.config)} → {values[number]}: {share:.1%} left")
    return current


def narrow(model: nn.Module, part: Part, calls: Sequence[Call], gradients: bool) -> nn.Module:
    """The model with this narrower configuration, with the channels that matter most.

    Args:
        part: of `narrowed`.
        gradients: go by the Taylor importance of the weights' gradients, which are there; otherwise by magnitude.

    Raises:
        HastenError: torch-pruning's graph and the configuration do not agree on what goes together.
    """
    smaller = build(part)
    wanted = {name: tuple(tensor.shape) for name, tensor in smaller.state_dict().items()}
    work = copy.deepcopy(model)
    for mine, theirs in zip(work.parameters(), model.parameters(), strict=True):
        mine.grad = theirs.grad
    names = {module: name for name, module in work.named_modules()}
    graph = Graph(work, calls[0])
    try:
        plans = []
        for coupled in graph.groups():
            count = coupled.size - _wanted(coupled, names, wanted)
            if count > 0:
                chosen = _least(coupled.scores(gradients), count, _sections(coupled, names, work, smaller))
                plans.append((coupled, chosen))
        for coupled, chosen in plans:
            graph.take(coupled, chosen)
    except (IndexError, KeyError, ValueError, RuntimeError) as error:
        raise HastenError(f"{part.kind}: torch-pruning cannot follow what goes together in it: {error}") from error
    state = dict(work.state_dict())
    for name, tensor in list(state.items()):
        shape = wanted.get(name, tuple(tensor.shape))
        if tensor.ndim == 2 and tensor.shape[0] == shape[0] and tensor.shape[1] > shape[1]:
            refitted = _refitted(model, part, name.rpartition(".")[0], tensor, calls[0])
            state[name] = tensor if refitted is None else refitted
    return sibling(model, part, {name: tensor.detach().clone() for name, tensor in state.items()})


def _lowered(part: Part, number: Number) -> Iterator[Part]:
    """Configurations with a smaller value, the largest first; a level's heads go with its channels."""
    value = number.of(part.config)
    groups = part.config.get("norm_num_groups") if "channels" in number.key else None
    step = groups if isinstance(groups, int) else max(1, value // 16)
    for lower in range(value - step, int(_LEAST * value), -step):
        config = number.changed(part.config, lower)
        if number.key == "block_out_channels":
            heads = next((key for key in ("num_attention_heads", "attention_head_dim") if config.get(key)), None)
            per_level = config.get(heads) if heads else None
            if heads and isinstance(per_level, list | tuple) and number.at is not None:
                fewer = lower * per_level[number.at] / value
                if fewer == int(fewer):  # as wide as before; otherwise as many, each narrower
                    config = Number(heads, number.at).changed(config, int(fewer))
        yield replace(part, config=config)


def _narrower(whole: Mapping[str, tuple[int, ...]], part: Part) -> dict[str, tuple[int, ...]] | None:
    """The shapes of a configuration that has the same weights and some of them smaller; None for any other."""
    try:
        less = shapes_of(part)
    except LoadError:
        return None
    if less.keys() != whole.keys() or less == whole:
        return None
    smaller = all(
        len(less[name]) == len(whole[name]) and all(a <= b for a, b in zip(less[name], whole[name], strict=True))
        for name in whole
    )
    return less if smaller else None


def _merged(current: Mapping[str, Any], original: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with further changes to the original; of a list, only the entries that differ from it."""
    merged = dict(current)
    for key, value in changes.items():
        if isinstance(value, list):
            now = list(merged[key])
            for at, one in enumerate(value):
                if one != original[key][at]:
                    now[at] = one
            merged[key] = now
        else:
            merged[key] = value
    return merged


def _wanted(coupled: Coupled, names: Mapping[nn.Module, str], wanted: Mapping[str, tuple[int, ...]]) -> int:
    """How many of the coupled channels the configuration leaves."""
    for module, is_output, channels, _ in coupled.members:
        weight: Any = getattr(module, "weight", None)
        if weight is None:
            continue
        dim = 0 if is_output or weight.ndim == 1 else 1
        if weight.shape[dim] == len(channels) == coupled.size:
            return wanted[f"{names[module]}.weight"][dim]
    return coupled.size


def _sections(coupled: Coupled, names: Mapping[nn.Module, str], model: nn.Module, smaller: nn.Module) -> int:
    """Into how many equal parts the channels are divided, each to lose as many; negative: whole parts are lost."""
    groups = 1
    for module, is_output, channels, _ in coupled.members:
        parent = names[module].rpartition(".")[0]
        heads = getattr(model.get_submodule(parent), "heads", None) if is_output and parent else None
        if isinstance(heads, int) and heads > 1 and isinstance(module, nn.Linear) and len(channels) == coupled.size:
            left: Any = smaller.get_submodule(parent).heads
            return heads if left == heads else -heads
        if isinstance(module, nn.GroupNorm) and module.num_channels == len(channels) == coupled.size:
            groups = module.num_groups
    return groups


def _least(scores: Tensor, count: int, sections: int) -> list[int]:
    """Which `count` channels are worth least: as many of each section, or whole sections where it is negative.

    >>> _least(torch.tensor([1.0, 2.0, 4.0, 3.0]), 2, 2)
    [0, 3]
    >>> _least(torch.tensor([1.0, 2.0, 4.0, 3.0]), 2, -2)
    [0, 1]
    """
    size = len(scores) // abs(sections)
    table = scores.unflatten(0, (abs(sections), size))
    if sections < 0:
        lost = table.sum(1).argsort()[: count // size]
        return sorted(int(head) * size + at for head in lost for at in range(size))
    lost = table.argsort(1)[:, : count // sections]
    return sorted(int(at) + section * size for section, row in enumerate(lost) for at in row)


def _refitted(model: nn.Module, part: Part, path: str, weight: Tensor, call: Call) -> Tensor | None:
    """A layer on features that no weights make and that have become fewer, as the sines of a timestep: its weights by
    least squares, so that it returns what it returned before. None where its inputs are made by weights.
    """
    maker = _maker(model, path, call)
    if maker is None:
        return None
    first = next(model.parameters())
    made: nn.Module = type(model).from_config(part.config)  # type: ignore[attr-defined]
    times = torch.linspace(0, 1000, 1001)
    before, after = (module.get_submodule(maker)(times).double() for module in (model, made))
    mapping = torch.linalg.lstsq(after, before).solution  # after @ mapping ≈ before
    return (weight.double().cpu() @ mapping.T).to(first.device, first.dtype)


def _maker(model: nn.Module, path: str, call: Call) -> str | None:
    """The module without weights whose results a layer is given."""
    results: dict[str, Tensor] = {}
    given: list[Tensor] = []

    def keep(name: str, module: nn.Module, arguments: Any, result: Any) -> None:
        if isinstance(result, Tensor) and name not in results:
            results[name] = result.detach()

    hooks = [
        module.register_forward_hook(partial(keep, name))
        for name, module in model.named_modules()
        if name and next(module.parameters(), None) is None and next(module.children(), None) is None
    ]
    hooks.append(model.get_submodule(path).register_forward_pre_hook(lambda module, args: given.append(args[0])))
    try:
        with torch.no_grad():
            call_again(model, call)
    finally:
        for hook in hooks:
            hook.remove()
    for name, result in results.items():
        if given and result.shape == given[0].shape and torch.allclose(result.float(), given[0].float(), atol=1e-2):
            return name
    return None
