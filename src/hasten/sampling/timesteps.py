"""Timesteps that a running loop reads one by one, so that those to come may still change.

A pipeline takes `scheduler.timesteps` once and then iterates over it. An ordinary tensor hands out all of its entries
at that moment. This one hands out each when it is its turn, ends when its schedule ends, and is in all else, at any
moment, the tensor of the schedule as it then is: its length, its slices, what is computed with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map


class Schedule:
    """The timesteps of one run, which may change from the next one on.

    Attributes:
        current: an ordinary tensor, shape (steps,).
        start: where the loop began, such as in the middle of an image-to-image run.
        position: of the timestep that was handed out last; None where no loop asks for them one by one.
    """

    def __init__(self, timesteps: Tensor, before_next: Callable[[], None] = lambda: None) -> None:
        """Begin.

        Args:
            before_next: called before each timestep is handed out, the last chance to change it.
        """
        self.current = timesteps
        self.start = 0
        self.position: int | None = None
        self._before_next = before_next
        self._walks = 0

    def view(self, start: int = 0) -> Timesteps:
        """The timesteps from one of them on."""
        made = torch.Tensor._make_subclass(Timesteps, self.current[start:])
        made.schedule, made.first = self, start
        return made

    def walk(self, start: int) -> Iterator[Tensor]:
        """Hand the timesteps out one by one; the loop that began last is the one that counts."""
        self._walks += 1
        walk, position = self._walks, start
        self.start, self.position = start, None
        while True:
            if walk == self._walks:
                self._before_next()
            if position >= len(self.current):
                return
            if walk == self._walks:
                self.position = position
            yield self.current[position]
            position += 1


class Timesteps(Tensor):
    """A part of a schedule, from one timestep to the end; see this module's text."""

    schedule: Schedule
    first: int

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        args, kwargs = tree_map(_plain, (args, kwargs or {}))
        return func(*args, **kwargs)

    @property
    def now(self) -> Tensor:
        """The same as an ordinary tensor."""
        return self.schedule.current[self.first :]

    def __iter__(self) -> Iterator[Tensor]:
        return self.schedule.walk(self.first)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, slice) and key.stop is None and key.step is None:
            start, _, _ = key.indices(len(self.now))
            return self.schedule.view(self.first + start)
        return self.now[key]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.now.__reduce_ex__(protocol)


def _plain(value: Any) -> Any:
    return value.now if isinstance(value, Timesteps) else value
