"""Prune a pipeline's denoiser to a share of its cost, and write the pipeline as an ordinary diffusers folder."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._pytree import tree_map_only

from hasten.errors import HastenError, LoadError
from hasten.generation import Session
from hasten.inspect.building import build
from hasten.inspect.known import known
from hasten.inspect.sources import Part
from hasten.inspect.watching import Watch, on_meta
from hasten.prune.blocks import Choice, leave_out, without
from hasten.prune.calls import Call, call_again, effect, record
from hasten.prune.diff_pruning import gather_gradients
from hasten.prune.siblings import Gone, depths_of, part_of, renumbered, shortened, sibling
from hasten.prune.widths import narrow, narrowed
from hasten.targets import ports_of

Cost = Literal["macs", "parameters", "time"]
What = Literal["blocks", "widths"]
Importance = Literal["effect", "magnitude", "taylor"]

_ROUNDS = 5


@dataclass(frozen=True)
class Goal:
    """What to reach, and how.

    Attributes:
        ratio: the share of the cost that is to go.
        cost: multiply-accumulates, parameters, or measured time of one call.
        what: whole blocks, or widths: channels, heads, feed-forward.
        importance: blocks go by their effect on the output; widths by magnitude, or by Taylor (Diff-Pruning).
        threshold: Diff-Pruning's share of the largest loss below which a timestep says nothing.
        only: the widths of the configuration that may be lowered; all where it is empty.
        steps: of the runs on which it is judged.
        seed: of the first of them.
    """

    ratio: float = 0.3
    cost: Cost = "macs"
    what: What = "blocks"
    importance: Importance | None = None
    threshold: float = 0.05
    only: tuple[str, ...] = ()
    steps: int = 8
    seed: int = 30_000

    def __post_init__(self) -> None:
        if not 0 < self.ratio < 1:
            raise HastenError(f"--ratio {self.ratio}: a share that is to go, between 0 and 1")
        if self.what == "blocks" and self.importance not in (None, "effect"):
            raise HastenError(f"--importance {self.importance} is for widths: blocks go by their effect on the output")
        if self.what == "blocks" and self.only:
            raise HastenError(f"--only {self.only[0]} is for widths: of blocks, whichever matters least goes")
        if self.what == "widths" and self.importance == "effect":
            raise HastenError("--importance effect is for blocks: widths go by magnitude or taylor")


@dataclass(frozen=True)
class Pruned:
    """What became of a denoiser.

    Attributes:
        name, kind: of the denoiser.
        model: the pruned one, an ordinary module of its class.
        changed: the sizes in its configuration that changed, before and after.
        gone: blocks that went, by list.
        left: the share that is left of each cost.
        error: of its outputs, relative to what they were, before any recovery.
        notes: what else there is to know.
    """

    name: str
    kind: str
    model: nn.Module
    changed: dict[str, tuple[Any, Any]]
    gone: dict[str, tuple[int, ...]]
    left: dict[Cost, float]
    error: float
    notes: tuple[str, ...] = ()


def prune(
    session: Session, goal: Goal, denoiser: str | None = None, told: Callable[[str], None] = lambda text: None
) -> Pruned:
    """Prune a denoiser of a session's pipeline; the pipeline itself is left as it is.

    Args:
        session: opened with the prompts on which the pruning is judged.
        denoiser: its name in the pipeline, where there are several.
        told: hears of each choice.

    Raises:
        HastenError: there is no such denoiser, or it cannot be made as small as that.
    """
    name, model = _find(session.pipe, denoiser)
    part = part_of(name, model, by_level=goal.what == "blocks")
    calls = record(session, model, goal.seed, goal.steps)
    notes: list[str] = []
    if goal.what == "blocks":
        made, part_after, gone = _without_blocks(model, part, calls, goal, told)
    else:
        if goal.importance == "taylor":
            count = gather_gradients(model, session.pipe.scheduler, calls, goal.threshold, goal.seed)
            notes.append(f"gradients of {count} of {len(calls)} calls: the others' loss is below the threshold")
        share = partial(_share, model, part, calls, goal.cost)
        part_after = narrowed(part, share, 1 - goal.ratio, told, goal.only)
        try:
            made, gone = narrow(model, part_after, calls, goal.importance == "taylor"), {}
        finally:
            model.requires_grad_(False).zero_grad(set_to_none=True)
    costs: tuple[Cost, ...] = ("macs", "parameters", "time")
    return Pruned(
        name=name,
        kind=type(model).__name__,
        model=made,
        changed={
            key: (part.config.get(key), value) for key, value in part_after.config.items() if part.config[key] != value
        },
        gone={path: tuple(sorted(members)) for path, members in gone.items()},
        left={cost: _left(model, part, made, part_after, calls[0], cost) for cost in costs},
        error=effect(made, calls),
        notes=tuple(notes),
    )


def save(session: Session, pruned: Pruned, folder: Path) -> Path:
    """Write the pipeline with the pruned denoiser as a diffusers folder, with the model's own settings beside it.

    Raises:
        HastenError: the folder is in use.
    """
    from hasten.convert import keep_native
    from hasten.loading import quiet_loading

    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise HastenError(f"{folder} is there already and not empty: name another folder")
    original = getattr(session.pipe, pruned.name)
    setattr(session.pipe, pruned.name, pruned.model)
    try:
        with quiet_loading():
            session.pipe.save_pretrained(folder, safe_serialization=True)
    finally:
        setattr(session.pipe, pruned.name, original)
    with suppress(LoadError):  # a pipeline that was handed in may come from nowhere
        keep_native(session.plan.model, folder)
    return folder


def _find(pipe: Any, wanted: str | None) -> tuple[str, nn.Module]:
    ports = {port.name: port.module for port in ports_of(pipe)}
    if wanted is None and len(ports) == 1:
        return next(iter(ports.items()))
    if wanted not in ports:
        raise HastenError(f"{type(pipe).__name__} has the denoisers {', '.join(ports)}: name one with --component")
    return wanted, ports[wanted]


def _without_blocks(
    model: nn.Module, part: Part, calls: Sequence[Call], goal: Goal, told: Callable[[str], None]
) -> tuple[nn.Module, Part, Gone]:
    depths = depths_of(part)
    if not depths:
        raise HastenError(f"{part.kind}: no number in its configuration says how many blocks it has")
    costs: dict[str, float] = {}
    if goal.cost == "time":

        def left(gone: Gone) -> float:
            def shorter() -> None:
                with without(model, gone):
                    call_again(model, calls[0])

            return _time_left(lambda: call_again(model, calls[0]), shorter, model)
    else:
        costs = _members(part, model, calls, goal.cost)

        def left(gone: Gone) -> float:
            return 1 - sum(costs.get(f"{path}.{index}", 0) for path, members in gone.items() for index in members)

    def say(choice: Choice) -> None:
        told(f"{choice.last} left out: {choice.left:.1%} of {goal.cost} left, outputs are off by {choice.error:.2%}")

    choice = leave_out(model, depths, calls, left, 1 - goal.ratio, say)
    used = [depth for depth in depths if any(choice.gone.get(path) for path in depth.lists)]
    smaller = shortened(part, used, choice.gone)
    return sibling(model, smaller, renumbered(model.state_dict(), choice.gone)), smaller, choice.gone


def _members(part: Part, model: nn.Module, calls: Sequence[Call], cost: Cost) -> dict[str, float]:
    """The share of the whole that each module has, by path."""
    if cost == "parameters":
        whole = _parameters(model)
        return {path: _parameters(module) / whole for path, module in model.named_modules()}
    seen = _watched(part, calls[0]).seen
    whole = sum(found.macs for found in seen.values())
    shares: dict[str, float] = {}
    for path, found in seen.items():
        parents = [path[:at] for at, letter in enumerate(path) if letter == "."]
        for parent in (*parents, path):
            shares[parent] = shares.get(parent, 0.0) + found.macs / whole
    return shares


def _left(whole: nn.Module, part: Part, made: nn.Module | None, trial: Part, call: Call, cost: Cost) -> float:
    """The share of a cost that is left: of the model `whole` in `made`, or in what `trial` describes.

    Args:
        made: needed for the time.
    """
    if cost == "macs":
        before, after = (sum(found.macs for found in _watched(one, call).seen.values()) for one in (part, trial))
        return after / before
    if cost == "parameters":
        return _parameters(made or build(trial)) / _parameters(whole)
    assert made is not None
    return _time_left(lambda: call_again(whole, call), lambda: call_again(made, call), whole)


def _share(model: nn.Module, part: Part, calls: Sequence[Call], cost: Cost, trial: Part) -> float | None:
    """What a configuration costs of what the model does; None where it cannot be called in its place."""
    made: nn.Module | None = None
    try:
        if _watched(trial, calls[0]).output != tuple(calls[0].output.shape):
            return None
        if cost == "time":
            made = type(model).from_config(trial.config).to(next(model.parameters()).dtype)  # type: ignore[attr-defined]
    except (RuntimeError, ValueError, TypeError, HastenError):
        return None
    return _left(model, part, made, trial, calls[0], cost)


class _Watched(Watch):
    output: tuple[int, ...] = ()


def _watched(part: Part, call: Call) -> _Watched:
    """The same call on the meta device."""
    model = build(part)
    watch = _Watched(model)
    with on_meta(watch):
        watch.output = tuple(call_again(model, _meta(call)).shape)
    return watch


def _meta(call: Call) -> Call:
    """The call with its tensors on the meta device: whole numbers with their values, others as shapes of float32."""

    def one(tensor: torch.Tensor) -> torch.Tensor:
        if not tensor.is_floating_point() or tensor.numel() <= 64:
            return known(tensor.cpu().float() if tensor.is_floating_point() else tensor.cpu())
        return torch.empty(tensor.shape, device="meta")

    args, kwargs = tree_map_only(torch.Tensor, one, (call.args, call.kwargs))
    return Call(args, kwargs, call.output, call.step, call.timestep)


def _parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def _time_left(whole: Callable[[], Any], part: Callable[[], Any], model: nn.Module) -> float:
    """The time of one call over that of another: the median of a few pairs after one to warm up.

    They run by turns: a machine that is busy for a while slows down both.
    """
    from hasten.devices import synchronize

    device = next(model.parameters()).device
    ratios = []
    with torch.inference_mode():
        for _ in range(_ROUNDS + 1):
            stamps = []
            for run in (part, whole):
                synchronize(device)
                began = time.perf_counter()
                run()
                synchronize(device)
                stamps.append(time.perf_counter() - began)
            ratios.append(stamps[0] / stamps[1])
    return statistics.median(ratios[1:])
