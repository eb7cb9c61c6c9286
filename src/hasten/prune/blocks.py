"""Leave out whole blocks: those first without which the output changes least."""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import product

from torch import nn

from hasten.errors import HastenError
from hasten.prune.calls import Call, effect
from hasten.prune.siblings import Depth, Gone


@dataclass(frozen=True)
class Choice:
    """One more block to leave out.

    Attributes:
        gone: all that are gone then.
        depth: the size that it lowers.
        error: of the outputs, relative; see `effect`.
        left: the share of the cost that is left.
    """

    gone: Gone
    depth: Depth
    error: float
    left: float

    @property
    def last(self) -> str:
        """What is gone, in words: `transformer_blocks.3, .5`."""
        return "; ".join(f"{path}.{{{','.join(map(str, sorted(members)))}}}" for path, members in self.gone.items())


@contextmanager
def without(model: nn.Module, gone: Gone) -> Iterator[None]:
    """The model without some members of its lists, for a while."""
    with ExitStack() as undo:
        for path, members in gone.items():
            blocks = model.get_submodule(path)
            whole = blocks._modules
            kept = [module for index, module in enumerate(whole.values()) if index not in members]
            blocks._modules = OrderedDict((str(index), module) for index, module in enumerate(kept))
            undo.callback(setattr, blocks, "_modules", whole)
        yield


def leave_out(
    model: nn.Module,
    depths: Sequence[Depth],
    calls: Sequence[Call],
    left: Callable[[Gone], float],
    goal: float,
    told: Callable[[Choice], None] = lambda choice: None,
) -> Choice:
    """Leave out one block after the other until so much of the cost is left.

    Each time every block that could go is tried, and that one goes whose loss costs least for what it saves.

    Args:
        left: the share of the cost that is left without some blocks.
        goal: the share that may be left.
        told: hears of each choice.

    Raises:
        HastenError: no further block can go, and the goal is not reached.
    """
    gone: dict[str, frozenset[int]] = {}
    spent, whole = 0.0, 1.0
    while True:
        choices = [
            Choice(more, depth, error, left(more))
            for depth in depths
            for more in _candidates(model, depth, gone)
            if (error := _tried(model, more, calls)) is not None
        ]
        choices = [choice for choice in choices if choice.left < whole]
        if not choices:
            raise HastenError(
                f"{type(model).__name__}: no further block can be left out: {whole:.0%} are left, "
                f"{goal:.0%} were the goal"
            )
        reached = [choice for choice in choices if choice.left <= goal]
        best = min(reached or choices, key=lambda choice: (choice.error - spent) / (whole - choice.left))
        told(best)
        if best.left <= goal:
            return best
        gone, spent, whole = dict(best.gone), best.error, best.left


def _tried(model: nn.Module, gone: Gone, calls: Sequence[Call]) -> float | None:
    """The error without these blocks; None where what is left does not fit together."""
    with without(model, gone):
        try:
            return effect(model, calls)
        except (RuntimeError, HastenError, IndexError, ValueError, TypeError):
            return None


def _candidates(model: nn.Module, depth: Depth, gone: Gone) -> Iterator[dict[str, frozenset[int]]]:
    """Each way to take one block more from the lists of a size; lists in one module lose the same one."""
    parents: defaultdict[str, list[str]] = defaultdict(list)
    for path in depth.lists:
        parents[path.rpartition(".")[0]].append(path)
    ways = []
    for paths in parents.values():
        count = len(model.get_submodule(paths[0]))  # type: ignore[arg-type]
        there = [index for index in range(count) if index not in gone.get(paths[0], ())]
        if len(there) < 2:
            return
        ways.append([(paths, index) for index in there])
    for chosen in product(*ways):
        more = dict(gone)
        for paths, index in chosen:
            for path in paths:
                more[path] = frozenset({*more.get(path, ()), index})
        yield more
