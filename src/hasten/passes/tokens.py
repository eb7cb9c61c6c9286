"""The pass `tokens`: parts of a denoiser's blocks compute on fewer tokens, those that are alike merged (ToMe)."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from math import ceil, prod, sqrt
from typing import Any

import torch
from torch import Tensor, nn

from hasten.caching.bands import Grid, grid_for, grids_of
from hasten.caching.parts import attentions, feed_forwards
from hasten.caching.patching import CALL, Border
from hasten.errors import PassError
from hasten.passes.change import Change, Done, Figure
from hasten.passes.merging import Matching, Split, match, split
from hasten.passes.target import Target
from hasten.passes.token_parts import Part, sequences
from hasten.plan import Plan
from hasten.plan.speed import Tokens
from hasten.targets import ports_of

NAME = "tokens"
RATIO = 0.5
STRIDE = (2, 2)
MERGED = ("self_attention",)


def tokens(target: Target, plan: Plan) -> Iterator[Change]:
    """Merge tokens in the denoisers.

    Raises:
        PassError: a ratio that the stride does not allow, or a denoiser without such parts.
    """
    section = plan.tokens
    if not section.on:
        return
    ratio, stride = section.ratio or RATIO, section.stride or STRIDE
    most = 1 - 1 / prod(stride)
    if ratio > most:
        raise PassError(
            f"tokens.ratio: of every {stride[0]} × {stride[1]} tokens one is left, so that at most {most:.4g} of them "
            f"can be merged, not {ratio:g}; a larger stride allows more"
        )
    timesteps = {port.name: port.timestep for port in ports_of(target.pipe)} if target.denoisers else {}
    for name in target.denoisers:
        merger = Merger(name, target.modules[name], section, timesteps[name])
        where = ", ".join(word.replace("_", "-") for word in section.merge or MERGED)
        chosen = f"{section.destinations or 'random'} destinations in cells of {stride[0]} × {stride[1]}"
        what = f"{ratio:.0%} merged for {where}, {chosen}"
        yield Change(NAME, name, what, merger.install)


class Block:
    """A block around parts, and which of its tokens are merged while it runs.

    Attributes:
        source: which of the grids that the arguments of the denoiser's call tell, and how many times fewer tokens
            there are than that has places; None where it fits none.
        shared: all samples are merged alike, because a part takes positions, which they have in common.
    """

    def __init__(self, merger: Merger) -> None:
        self.parts: list[Part] = []
        self.tokens = 0
        self.source: tuple[int, int] | None = None
        self.shared = False
        self._merger = merger
        self._given: Tensor | None = None
        self._matching: Matching | None = None

    @property
    def learning(self) -> bool:
        return self._merger.learning

    @property
    def merges(self) -> bool:
        return any(part.rule is not None for part in self.parts)

    def is_of(self, x: Tensor) -> bool:
        return x.shape[1] == self.tokens

    def matching_for(self, x: Tensor) -> Matching | None:
        if self._given is not None:  # the first call: only now it is known whether all samples are merged alike
            self._matching, self._given = self._merger.match(self, self._given), None
        matching = self._matching
        return matching if matching is not None and matching.into.shape == x.shape[:2] else None

    def enter(self, block: nn.Module, args: Any, kwargs: Any) -> None:
        """The block is called: find out which of its tokens are alike."""
        x = next((value for _, value in sequences(args, kwargs)), None)
        if x is None:
            self.tokens = 0
        elif self._merger.learning:
            self.tokens, self.source = x.shape[1], self._merger.source_of(x)
            self._given = x
        elif self.merges:
            self._matching = self._merger.match(self, x)

    def leave(self, block: nn.Module, args: Any, result: Any) -> None:
        self._matching = self._given = None


class Merger:
    """Merging at work in one denoiser.

    Attributes:
        learning: until one call has shown which parts take merged tokens. That call is not compiled.
    """

    def __init__(self, name: str, model: nn.Module, section: Tokens, timestep: Callable[[Any, Any], object]) -> None:
        self.learning = True
        self._title = f"{name} ({type(model).__name__})"
        self._model = model
        self._ratio, self._stride = section.ratio or RATIO, section.stride or STRIDE
        self._kinds = tuple(section.merge or MERGED)
        self._random = section.destinations != "fixed"
        self._coarsest = section.max_downsample or 1
        self._timestep = timestep
        self._blocks: dict[nn.Module, Block] = {}
        self._grids: tuple[Grid, ...] = ()
        self._drawn = ""
        self._splits: dict[int, Split] = {}
        for kind, modules in (("attention", attentions(model)), ("feed_forward", feed_forwards(model))):
            for path, module in modules.items():
                owner = model.get_submodule(path.rpartition(".")[0])
                while isinstance(owner, nn.ModuleList | nn.Sequential):  # a list of feed-forward networks
                    path = path.rpartition(".")[0]
                    owner = model.get_submodule(path.rpartition(".")[0])
                if owner is not model:
                    block = self._blocks.setdefault(owner, Block(self))
                    block.parts.append(Part(module, path, kind, self._kinds))
        if not self._blocks:
            raise PassError(f"tokens: {self._title} has no blocks with attention or feed-forward networks")

    def install(self) -> Done:
        """Stand around the denoiser's call, its blocks and their parts."""
        with contextlib.ExitStack() as stack:
            stack.callback(Border(self._model, CALL, self._around).remove)
            for module, block in self._blocks.items():
                stack.callback(module.register_forward_pre_hook(block.enter, with_kwargs=True).remove)
                stack.callback(module.register_forward_hook(block.leave).remove)
                for part in block.parts:
                    stack.callback(part.install(block))
            return Done(stack.pop_all().close, live=self._figures)

    def _figures(self) -> dict[str, Figure]:
        if self.learning:
            return {}
        # Attention that was never told apart works on other tokens than its block.
        attention = "attention" if any("attention" in kind for kind in self._kinds) else None
        parts = [part for block in self._blocks.values() for part in block.parts]
        wanted = [part for part in parts if part.kind in (*self._kinds, attention)]
        return {"merged_in": f"{len(self._merging())} of {len(wanted)} parts"}

    def _merging(self) -> list[Part]:
        blocks = (block for block in self._blocks.values() if not self._is_coarse(block))
        return [part for block in blocks for part in block.parts if part.rule is not None]

    def _is_coarse(self, block: Block) -> bool:
        """Counted from the finest attention there is: models that have none at full size merge, too."""
        finest = max(other.tokens for other in self._blocks.values())
        return not block.tokens or ceil(sqrt(finest // block.tokens)) > self._coarsest

    def _around(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        self._grids = grids_of(args, kwargs)
        # The calls of one step draw the same destinations, and nobody's random numbers are touched.
        self._drawn = f"{_number(self._timestep(args, kwargs))}"
        if not self.learning:
            self._prepare(args, kwargs)
            return inner(*args, **kwargs)
        self._splits = {}
        with torch.compiler.set_stance("force_eager"):
            result = inner(*args, **kwargs)
        self.learning = False
        if not self._merging():
            self.learning = True
            raise PassError(self._nothing())
        return result

    def _nothing(self) -> str:
        parts = [part for block in self._blocks.values() for part in block.parts]
        reasons = {part.reason for part in parts if part.kind in self._kinds}
        has = ", ".join(sorted({part.kind for part in parts}))
        why = "; ".join(sorted(reasons)) or f"it has {has}"
        return f"tokens.merge: {self._title} has no {' or '.join(self._kinds)} that takes merged tokens: {why}"

    def source_of(self, x: Tensor) -> tuple[int, int] | None:
        """Which of the grids that the call tells the tokens lie on, and how many times finer it is."""
        fits = ((number, prod(grid) // x.shape[1]) for number, grid in enumerate(self._grids) if grid_for(x, (grid,)))
        return next(fits, None)

    def match(self, block: Block, x: Tensor) -> Matching | None:
        """Which tokens of a block are merged, None where it is too coarse for that."""
        if self.learning and x.shape[1] not in self._splits:
            self._splits[x.shape[1]] = self._split(x.shape[1])
        parts = self._splits.get(x.shape[1])
        count = int(x.shape[1] * self._ratio)
        if parts is None or not len(parts.destinations) or not count or self._is_coarse(block):
            return None
        return match(x, parts, count, shared=block.shared)

    def _prepare(self, args: Any, kwargs: Any) -> None:
        """Choose the destinations for every length of a sequence in this call, before anything that is compiled."""
        given = next((value.shape[1] for _, value in sequences(args, kwargs)), 0)
        counts = set()
        for block in self._blocks.values():
            if block.merges and block.source is None:
                counts.add(given)
            elif block.merges and block.source is not None and block.source[0] < len(self._grids):
                counts.add(prod(self._grids[block.source[0]]) // block.source[1])
        self._splits = {count: self._split(count) for count in counts if count}

    def _split(self, count: int) -> Split:
        fit = grid_for(torch.empty(0).expand(1, count, 0), self._grids) or (1, count)
        generator = None
        if self._random:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self._drawn} {count}".encode()))
        made = split((prod(fit[:-2]), fit[-2], fit[-1]), self._stride, generator)
        device = next(self._model.parameters()).device
        return Split(*(index.to(device) for index in made))


def _number(timestep: object) -> float:
    if isinstance(timestep, Tensor):
        return float(timestep.detach().flatten()[0]) if timestep.numel() else 0.0
    return float(timestep) if isinstance(timestep, int | float) else 0.0
