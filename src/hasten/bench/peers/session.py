"""A peer on a pipeline: put on for one run at a time, taken off without a trace, and its arithmetic counted."""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from hasten.bench.peers import PEERS, Peer, facts
from hasten.bench.schema import PeerChoice, PeerFacts
from hasten.errors import HastenError
from hasten.generation import Progress, Result, Session


@dataclass
class PeerSession:
    """A peer in the place of a plan's session: the same calls, the peer on the pipeline while one runs.

    Attributes:
        shares: for every step of the last `prepare`, its arithmetic over that of the same step of the plain pipeline.
    """

    session: Session
    choice: PeerChoice
    shares: tuple[float, ...] = ()
    _kept: dict[str, Any] = field(default_factory=dict)

    @property
    def peer(self) -> Peer:
        return PEERS[self.choice.name]

    @property
    def device(self) -> torch.device:
        return self.session.device

    @property
    def facts(self) -> PeerFacts:
        """What the report says of it."""
        return facts(self.choice)

    def prepare(self, prompt: str, seed: int) -> None:
        """Runs that are timed by nobody: plain, calibrating where the peer has to, and its own, both counted.

        Raises:
            HastenError: it cannot work on this pipeline, as far as that is seen without trying.
        """
        reason = self.peer.refuses(self.session.pipe)
        if reason is not None:
            raise HastenError(reason)
        with _calls(self.session.pipe) as calls:
            plain = self._count(self.session, prompt, seed)
        self._kept |= calls | {"calls_per_step": calls["calls"] / max(1, len(plain))}
        if self.peer.calibrates:
            self.run(prompt, seed)
        own = self._count(self, prompt, seed)
        self.shares = (
            tuple(a / b for a, b in zip(own, plain, strict=True)) if len(own) == len(plain) and all(plain) else ()
        )

    @property
    def work(self) -> float | None:
        """Its arithmetic in whole steps of the plain pipeline."""
        if not self.shares:
            return None
        return sum(self.shares) / len(self.shares) * self.session.plan.generation.num_inference_steps

    def run(self, prompt: str, seed: int, **more: Any) -> Result:
        """As `Session.run`. Putting the peer on and taking it off is not in the timings."""
        pipe, facts = self.session.pipe, self.facts
        steps = self.session.plan.generation.num_inference_steps
        with pristine(pipe), self.peer.adapter(pipe, facts.settings, steps, self._kept):
            result = self.session.run(prompt, seed, **more)
        note = (
            f"made by {facts.package} {facts.version} ({facts.text}); the plan alone makes the reference of this image"
        )
        record = result.record.model_copy(update={"method": self.peer.name, "notes": (*result.record.notes, note)})
        return replace(result, record=record)

    def _count(self, session: Session | PeerSession, prompt: str, seed: int) -> list[int]:
        """Multiplications and additions of every step; what comes before the first is counted to it."""
        marks: list[int] = []
        counter = Arithmetic()

        def mark(_: Progress) -> None:
            marks.append(counter.total)

        with counter:
            session.run(prompt, seed, progress=mark)
        return [after - before for before, after in zip([0, *marks], marks, strict=False)]


class Arithmetic(TorchDispatchMode):
    """Counts the arithmetic of matrix products, convolutions and attention, whoever calls them and however patched.

    Attributes:
        total: multiplications and additions so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func: Any, types: Sequence[Any], args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            self.total += int(count(*args, **kwargs, out_val=result))
        return result


@contextlib.contextmanager
def pristine(pipe: Any) -> Iterator[None]:
    """Whatever the block does to the pipeline and its denoisers, their attributes and classes are put back after it.

    Many peers have no way back, or leave wrappers behind; some patch classes.
    """
    modules = {id(module): module for part in _denoisers(pipe) for module in part.modules()}
    owners = [pipe, *modules.values()]
    saved = [(owner, type(owner), _shallow(owner)) for owner in owners]
    classes = {kind: dict(vars(kind)) for _, kind, _ in saved}
    try:
        yield
    finally:
        for owner, kind, attributes in saved:
            if type(owner) is not kind:
                owner.__class__ = kind
            vars(owner).clear()
            vars(owner).update({name: value for name, (value, _) in attributes.items()})
            for value, held in attributes.values():
                if held is not None:  # in place: handles of hooks refer to the dictionary itself
                    value.clear()
                    value.update(held)
        for kind, attributes in classes.items():
            for name in set(vars(kind)) - set(attributes):
                delattr(kind, name)
            for name, value in attributes.items():
                if vars(kind).get(name) is not value:
                    setattr(kind, name, value)


def _shallow(owner: Any) -> dict[str, tuple[Any, dict[Any, Any] | None]]:
    """Its attributes, each with what it holds if it is a dictionary, as hooks, children and parameters are in."""
    return {
        name: (value, dict(value) if type(value) in (dict, OrderedDict) else None)
        for name, value in vars(owner).items()
    }


def _denoisers(pipe: Any) -> list[nn.Module]:
    parts = getattr(pipe, "components", {})
    return [
        part for name, part in parts.items() if name.startswith(("transformer", "unet")) and isinstance(part, nn.Module)
    ]


@contextlib.contextmanager
def _calls(pipe: Any) -> Iterator[dict[str, int]]:
    """How often the denoiser is called, and the batch and dimensions of what it is called with."""
    found = {"calls": 0, "batch": 0, "dimensions": 0}

    def look(module: nn.Module, args: Any, named: dict[str, Any]) -> None:
        sample = next((value for value in (*args, *named.values()) if isinstance(value, torch.Tensor)), None)
        found["calls"] += 1
        if sample is not None:
            found["batch"], found["dimensions"] = sample.shape[0], sample.ndim

    hooks = [part.register_forward_pre_hook(look, with_kwargs=True) for part in _denoisers(pipe)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()
