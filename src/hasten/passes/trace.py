"""`compile: {backend: trace}`: denoisers recorded once by torch.jit.trace, and replayed without Python."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from hasten.caching.patching import Compiled
from hasten.caching.trees import fresh, leaves, replace, tensors
from hasten.errors import PassError
from hasten.passes.change import Done, Figure
from hasten.plan.speed import Compile

BACKEND = "trace"
_TOLERANCE = {torch.float32: 1e-3, torch.float64: 1e-6}  # half precision: 3e-2


def check_settings(section: Compile) -> None:
    """Refuse what is torch.compile's alone.

    Raises:
        PassError: with the keys.
    """
    ours = ("mode", "fullgraph", "dynamic", "inductor", "cache_dir", "compile_vae")
    wrong = [name for name in ours if getattr(section, name) is not None]
    if section.scope == "blocks":
        wrong.insert(0, "scope: blocks")
    if wrong:
        raise PassError(
            f"compile.backend: trace records denoisers as a whole, for each size anew; it has no {', '.join(wrong)}"
        )


def trace(name: str, module: nn.Module) -> Done:
    """Let a denoiser's calls be recorded and replayed.

    A recording holds for one structure, size and format of arguments; what else comes is recorded in turn. Each is
    tried on other numbers than it was made with.
    """
    recorder = _Recorder(f"{name} ({type(module).__name__})", module)
    tap = Compiled(module, "forward", recorder.call)
    return Done(tap.remove, live=recorder.figures)


class _Recorder:
    def __init__(self, title: str, module: nn.Module) -> None:
        self._title = title
        self._module = module
        self._made: dict[object, tuple[Any, Any]] = {}
        self._seconds = 0.0

    def figures(self) -> dict[str, Figure]:
        return {"traces": len(self._made), "seconds": round(self._seconds, 2)}

    def call(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        key = tuple(
            (leaf.shape, leaf.dtype, leaf.device) if isinstance(leaf, Tensor) else _constant(leaf)
            for leaf in (*leaves(args), *kwargs, *leaves(kwargs))
        )
        if key not in self._made:
            started = time.perf_counter()
            self._made[key] = self._record(inner, args, kwargs)
            self._seconds += time.perf_counter() - started
        recording, blank = self._made[key]
        results = iter(recording(*tensors((args, kwargs))))
        return replace(blank, lambda tensor: next(results))

    def _record(self, inner: Callable[..., Any], args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = tuple(tensors((args, kwargs)))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of constants in the recording, which is what the trial below is about
            try:
                blank = replace(inner(*fresh(args), **fresh(kwargs)), lambda tensor: tensor.new_empty(0))
                flat = _Flat(self._module, inner, args, kwargs).train(self._module.training)
                recording = torch.jit.trace(flat, given, check_trace=False, strict=False)
                if not self._module.training:
                    recording = torch.jit.freeze(recording)
                others = tuple(_other(tensor) for tensor in given)
                expected, found = flat(*others), recording(*others)
            except Exception as error:
                line = next(iter(str(error).strip().splitlines()), type(error).__name__)
                raise PassError(f"compile.backend: torch cannot trace {self._title}: {line}") from error
        for one, other in zip(expected, found, strict=True):
            difference = float((one.float() - other.float()).norm() / one.float().norm().clamp(min=1e-12))
            if not difference < _TOLERANCE.get(one.dtype, 3e-2):
                raise PassError(
                    f"compile.backend: what was traced of {self._title} does not hold for other numbers (it is "
                    f"{difference:.1%} off): it decides by their values"
                )
        return recording, blank


class _Flat(nn.Module):
    """A call as a function of its tensors alone."""

    def __init__(self, owner: nn.Module, inner: Callable[..., Any], args: Any, kwargs: Any) -> None:
        super().__init__()
        self.owner = owner  # its weights are the recording's
        self._call = inner, args, kwargs

    def forward(self, *given: Tensor) -> tuple[Tensor, ...]:
        inner, args, kwargs = self._call
        rest = iter(given)
        args, kwargs = replace((args, kwargs), lambda tensor: next(rest))
        return tuple(tensors(inner(*fresh(args), **fresh(kwargs))))


def _other(tensor: Tensor) -> Tensor:
    """Other values of the same kind: a timestep of half the size, a picture with other noise; ids and masks stay."""
    if tensor.dtype is torch.bool or (tensor.ndim > 1 and not tensor.is_floating_point()):
        return tensor
    if tensor.ndim < 2:
        return (tensor / 2).to(tensor.dtype)
    noise = torch.randn(tensor.shape, generator=torch.Generator().manual_seed(0))
    return tensor + 0.1 * tensor.std(correction=0).clamp(min=0.1) * noise.to(tensor)


def _constant(leaf: Any) -> object:
    return leaf if leaf is None or isinstance(leaf, (bool, int, float, str)) else type(leaf)
