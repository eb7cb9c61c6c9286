"""Taps: reversible stand-ins for a callable of one instance, never of a class."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import nn

# nn.Module.__call__ looks here first (Module.compile() uses the same slot). A tap in this slot stands outside of
# compiled regions and of everything that replaces `forward` (offloading hooks), costs one attribute look-up, and is
# left out of copies and pickles by nn.Module itself.
CALL = "_compiled_call_impl"

_ABSENT: Any = object()


class Tap:
    """Replaces the attribute `name` of `owner` by `around(inner, args, kwargs)`, until `remove()`.

    A deep copy of a tapped object is plain: the copy holds what the tap stood before, bound to the copy.

    Args:
        owner: the instance; its class and other instances are not touched.
        name: a method's name, or `CALL` for calls of a module.
        around: gets the callable that was there before, and the call's arguments.
    """

    def __init__(self, owner: Any, name: str, around: Callable[[Callable[..., Any], Any, Any], Any]) -> None:
        self._before = vars(owner).get(name, _ABSENT)
        inner = getattr(owner, name)
        self.inner: Callable[..., Any] = owner._call_impl if inner is None else inner
        if name != CALL:
            # Pipelines look at the signatures of `step` and `set_timesteps` to learn what these take.
            functools.update_wrapper(self, self.inner, updated=())
        self.owner = owner
        self.name = name
        self.around: Callable[[Callable[..., Any], Any, Any], Any] | None = around
        vars(owner)[name] = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        around = self.around
        if around is None:
            return self.inner(*args, **kwargs)
        return around(self.inner, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return copy.deepcopy(self.inner, memo)

    @property
    def covered(self) -> Any:
        """What was on the instance before, None if nothing was."""
        return None if self._before is _ABSENT else self._before

    @property
    def in_place(self) -> bool:
        """Whether calls of the attribute still arrive here; something else may have been put over it."""
        return vars(self.owner).get(self.name) is self

    def remove(self) -> None:
        """Put back what was there. Where something was put over the tap since, it only becomes transparent."""
        self.around = None
        if not self.in_place:
            return
        before = self._before
        while isinstance(before, Tap) and before.around is None:
            before = before._before
        if before is _ABSENT:
            del vars(self.owner)[self.name]
        else:
            vars(self.owner)[self.name] = before


class Taps:
    """Taps on the calls of some modules, one on each, that are put on, put back and taken off together.

    Args:
        around: gets the module, the callable that was there before, and the call's arguments.
    """

    def __init__(self, around: Callable[[nn.Module, Callable[..., Any], Any, Any], Any]) -> None:
        self._around = around
        self._taps: dict[nn.Module, Tap] = {}

    def __contains__(self, module: nn.Module) -> bool:
        return module in self._taps

    def put_on(self, modules: Iterable[nn.Module]) -> None:
        """Tap those of the modules that are not tapped yet."""
        for module in modules:
            if module not in self._taps:
                self._taps[module] = Tap(module, CALL, functools.partial(self._around, module))

    def arm(self) -> None:
        """Put taps back that something else was put in the place of."""
        covered = [module for module, tap in self._taps.items() if not tap.in_place]
        for module in covered:
            self._taps.pop(module).remove()
        self.put_on(covered)

    def detach(self) -> None:
        """Leave the modules as they were."""
        for tap in self._taps.values():
            tap.remove()
        self._taps = {}


class Border(Tap):
    """A tap that any other may stand before: it changes the form of what passes, and skips nothing."""


class Compiled(Tap):
    """A tap on `forward` that runs compiled code in its place."""


def is_tapped(owner: Any, name: str) -> bool:
    """Whether a live tap stands before the attribute, borders aside."""
    found = vars(owner).get(name)
    while isinstance(found, Border):
        found = found.covered
    return isinstance(found, Tap) and found.around is not None


def is_compiled(module: nn.Module) -> bool:
    """Whether calls of a module run compiled code, beneath taps or not."""
    found = vars(module).get(CALL)
    while isinstance(found, Tap):
        found = found.covered
    whole = isinstance(vars(module).get("forward"), Compiled)
    return whole or hasattr(module, "_orig_mod") or found is not None
