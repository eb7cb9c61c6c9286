"""The parts of a denoiser's blocks: attention and feed-forward modules, told by how they are built and what they get.

There is no registry of model classes. An attention module has projections to queries, keys and values; what stands
beside it in the block and has at least two weight layers may be a feed-forward network. What kind of attention it is
shows when it is called: cross-attention takes its keys from elsewhere than its queries, and where self-attention looks
at space and time in turns, the length of its sequences tells which.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from hasten.caching.patching import CALL, Tap
from hasten.caching.trees import tensors

Kind = Literal["spatial_attention", "temporal_attention", "cross_attention", "feed_forward", "block"]


class Key(NamedTuple):
    """One call of a module within a call of its denoiser."""

    module: nn.Module
    number: int


_QUERY = frozenset({"q", "query"})
_KEY = frozenset({"k", "key", "kv"})
_FUSED = frozenset({"qkv"})
_TEMPORAL = ("temp", "motion", "time")


def attentions(model: nn.Module) -> dict[str, nn.Module]:
    """The attention modules of the repeated blocks by their names; of those within each other the outermost."""
    return dict(_attentions(model, "", repeated=False))


def _attentions(module: nn.Module, name: str, *, repeated: bool) -> Iterator[tuple[str, nn.Module]]:
    if repeated and any(_says(child, _QUERY | _FUSED) for child in _projections(module)):
        yield name, module
        return
    for child_name, child in module.named_children():
        within = repeated or isinstance(module, nn.ModuleList | nn.ModuleDict)
        yield from _attentions(child, f"{name}.{child_name}".lstrip("."), repeated=within)


def feed_forwards(model: nn.Module) -> dict[str, nn.Module]:
    """Modules beside an attention module that may be feed-forward networks, by their names."""
    found: dict[str, nn.Module] = {}
    heads = attentions(model)
    for name in heads:
        parent = name.rpartition(".")[0]
        block = model.get_submodule(parent)
        if isinstance(block, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            continue
        for child_name, child in block.named_children():
            members = child.named_children() if isinstance(child, nn.ModuleList) else [("", child)]
            for number, member in members:
                if _may_feed_forward(member, heads.values()):
                    found[f"{parent}.{child_name}.{number}".rstrip(".")] = member
    return found


def _may_feed_forward(module: nn.Module, heads: Collection[nn.Module]) -> bool:
    inner = list(module.modules())
    if any(head is one for head in heads for one in inner) or "norm" in type(module).__name__.lower():
        return False
    return sum(_is_layer(one) for one in inner) >= 2


def _is_layer(module: nn.Module) -> bool:
    # By name as well: quantised layers are of other classes.
    name = type(module).__name__
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d) or "Linear" in name or "Conv" in name


def _projections(module: nn.Module) -> Iterator[str]:
    return (name for name, _ in module.named_children() if "norm" not in name)


def _says(name: str, words: frozenset[str]) -> bool:
    return not words.isdisjoint(name.lower().split("_"))


@dataclass
class _Seen:
    """What was seen of one call of a module.

    Attributes:
        sequences, tokens: of the first tensor that it got.
        single: it returned one tensor, of the shape of the first that it got.
        crosses: its keys and values came from elsewhere than its queries.
        others, query, keys: while it runs, its other tensors and what its projections got.
    """

    sequences: int
    tokens: int
    others: tuple[Tensor, ...]
    query: Tensor | None = None
    keys: Tensor | None = None
    single: bool = False
    crosses: bool = False

    @property
    def foreign(self) -> bool:
        """Whether the keys are of another source than the queries."""
        query, keys = self.query, self.keys
        if query is None or keys is None or query is keys:
            return False
        return any(keys is other for other in self.others) or query.shape[:-1] != keys.shape[:-1]


class Spotter:
    """Watches one call of a denoiser and tells what kind of part each of its modules is.

    Use it as a context around the call, pass the calls of attention and feed-forward modules through `watch`, and ask
    for `kinds` afterwards.
    """

    def __init__(self, model: nn.Module) -> None:
        self._attentions = {module: name for name, module in attentions(model).items()}
        self._seen: dict[Key, _Seen] = {}
        self._open: list[_Seen] = []
        self._stack = ExitStack()

    def __enter__(self) -> Spotter:
        for module in self._attentions:
            names = [name for name in _projections(module) if not _says(name, _FUSED)]
            for words, field in ((_QUERY, "query"), (_KEY, "keys")):
                name = next((name for name in names if _says(name, words)), None)
                if name is not None:
                    tap = Tap(module.get_submodule(name), CALL, partial(self._projection, field))
                    self._stack.callback(tap.remove)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()

    def watch(self, key: Key, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """Call a module and learn."""
        given = list(tensors((args, kwargs)))
        shape = given[0].shape if given else torch.Size()
        tokens = shape[1] if len(shape) == 3 else shape[2:].numel()
        seen = _Seen(shape[0] if shape else 0, tokens, others=tuple(given[1:]))
        self._seen[key] = seen
        self._open.append(seen)
        try:
            result = inner(*args, **kwargs)
        finally:
            self._open.pop()
        seen.single = isinstance(result, Tensor) and result.ndim >= 3 and result.shape == shape
        seen.crosses = key.module in self._attentions and seen.foreign
        seen.others, seen.query, seen.keys = (), None, None
        return result

    def _projection(self, field: str, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if self._open and getattr(self._open[-1], field) is None:
            setattr(self._open[-1], field, next(tensors((args, kwargs)), None))
        return inner(*args, **kwargs)

    def may_be(self, key: Key, kinds: Collection[Kind]) -> bool:
        """Whether a call that was just watched can still turn out to be of one of these kinds."""
        seen = self._seen[key]
        if key.module not in self._attentions:
            return seen.single and "feed_forward" in kinds
        return "cross_attention" in kinds if seen.crosses else any("al_attention" in kind for kind in kinds)

    def kinds(self, batch: int) -> dict[Key, Kind]:
        """What each call of a module was, in the order of the calls.

        Args:
            batch: samples in the denoiser's call.
        """
        selves = {
            key: (seen.sequences // max(batch, 1), seen.tokens)
            for key, seen in self._seen.items()
            if key.module in self._attentions and not seen.crosses
        }
        frames = frame_count(selves.values())
        found: dict[Key, Kind] = {}
        for key, seen in self._seen.items():
            if key.module not in self._attentions:
                if seen.single:
                    found[key] = "feed_forward"
            elif key not in selves:
                found[key] = "cross_attention"
            else:
                found[key] = "temporal_attention" if self._over_time(key, *selves[key], frames) else "spatial_attention"
        return found

    def _over_time(self, key: Key, sequences: int, tokens: int, frames: int | None) -> bool:
        if frames is None or tokens != frames:
            return False
        # As many frames as places: the shape does not tell, and the name has to.
        return sequences != frames or any(word in self._attentions[key.module] for word in _TEMPORAL)


def frame_count(seen: Collection[tuple[int, int]]) -> int | None:
    """The frames of a video whose self-attention looks at space and time in turns; None where it does not.

    Args:
        seen: for each call of self-attention, sequences per sample and tokens of a sequence: (frames, places) in
            space, (places, frames) in time, whatever the resolution.

    >>> frame_count([(5, 64), (64, 5), (5, 16), (16, 5)])
    5
    >>> frame_count([(1, 320), (1, 320)]) is None
    True
    """
    for frames in sorted({sequences for sequences, _ in seen}):
        in_time = any(tokens == frames for _, tokens in seen)
        if frames > 1 and in_time and all(frames in pair for pair in seen):
            return frames
    return None
