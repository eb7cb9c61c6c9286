"""The pass `compile`: torch.compile on the blocks of the denoisers or on the whole of them, and on the VAE's decoder.

What is compiled is `forward`, on the instance. Hooks that move weights and the cache's decisions stand outside of it,
so that a skipped step runs no compiled code and a computed one always the same.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten.caching.patching import Compiled
from hasten.caching.wiring import repeated_blocks
from hasten.errors import PassError
from hasten.passes.change import Change, Done, Figure
from hasten.passes.target import Target
from hasten.passes.trace import BACKEND as TRACE
from hasten.passes.trace import check_settings, trace
from hasten.plan import Plan
from hasten.plan.speed import Compile

NAME = "compile"
# What diffusers' chapter on speed sets for inductor, for 1 × 1 convolutions and tuned kernels.
INDUCTOR: dict[str, dict[str, bool]] = {
    "diffusers": {
        "conv_1x1_as_mm": True,
        "coordinate_descent_tuning": True,
        "epilogue_fusion": False,
        "coordinate_descent_check_all_directions": True,
    },
    "freezing": {"freezing": True},
}


def compile_(target: Target, plan: Plan) -> Iterator[Change]:
    """Compile denoisers, and the VAE's decoder where the plan says so.

    Raises:
        PassError: no compiler here of that name, or a model without blocks.
    """
    section = plan.compile
    if not section.on:
        return
    if section.backend == TRACE:
        check_settings(section)
        for name in target.denoisers:
            yield Change(NAME, name, "traced as a whole", partial(trace, name, target.modules[name]))
        return
    backends = torch.compiler.list_backends(exclude_tags=())
    if section.backend is not None and section.backend not in backends:
        raise PassError(
            f"compile.backend: torch has no {section.backend!r} here; it has {', '.join(backends)}, and there is trace"
        )
    if section.inductor == "freezing" and section.scope != "model":
        raise PassError(
            "compile.inductor: freezing makes constants of weights, and of blocks that are alike the first one's would "
            "be used for all; take scope: model"
        )
    yield Change(NAME, "pipeline", "compilations", partial(_watch, section))
    for name in target.denoisers:
        part = target.modules[name]
        modules = [part] if section.scope == "model" else blocks_of(part)
        if not modules:
            raise PassError(
                f"compile.scope: {name} ({type(part).__name__}) has no repeated blocks; scope: model takes it whole"
            )
        what = "whole" if section.scope == "model" else f"{len(modules)} blocks, each by itself"
        yield Change(NAME, name, f"{what} ({_settings(section)})", partial(_compile, modules, section))
    if section.compile_vae:
        decoder = getattr(target.modules.get("vae"), "decoder", None)
        if not isinstance(decoder, nn.Module):
            raise PassError(f"compile.compile_vae: {target.title} has no VAE with a decoder")
        yield Change(NAME, "vae", f"decoder ({_settings(section)})", partial(_compile, [decoder], section))


def blocks_of(part: nn.Module) -> list[nn.Module]:
    """The modules that are alike and called one after another: compiled once, used by all of them.

    diffusers' models name their classes; elsewhere they are the members of the outermost lists.
    """
    names = getattr(type(part), "_repeated_blocks", None) or ()
    named = [module for module in part.modules() if type(module).__name__ in names]
    return named or repeated_blocks(part)


def options(section: Compile) -> dict[str, Any]:
    """A plan's settings as arguments of torch.compile."""
    backend = section.backend or "inductor"
    found: dict[str, Any] = {"backend": backend, "fullgraph": bool(section.fullgraph), "dynamic": section.dynamic}
    if backend != "inductor":
        return found
    mode = None if section.mode == "default" else section.mode
    if section.inductor is None:
        return found | ({"mode": mode} if mode else {})
    # torch takes a mode or options, not both; a mode is a set of options, too.
    modes = torch._inductor.list_mode_options(mode, section.dynamic) if mode else {}
    return found | {"options": {**modes, **INDUCTOR[section.inductor]}}


def _settings(section: Compile) -> str:
    words = [section.backend or "inductor", section.mode, section.inductor and f"flags of {section.inductor}"]
    words += ["fullgraph" if section.fullgraph else None, "dynamic" if section.dynamic else None]
    return ", ".join(word for word in words if word)


def _compile(modules: list[nn.Module], section: Compile) -> Done:
    taps = [_tap(module, section) for module in modules]

    def undo() -> None:
        for tap in reversed(taps):
            tap.remove()

    return Done(undo)


def _tap(module: nn.Module, section: Compile) -> Compiled:
    compiled = torch.compile(module.forward, **options(section))

    def around(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return compiled(*args, **kwargs)

    def frozen(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # As an option it reaches inductor alone: dynamo, which has to tell one module's weights from another's of the
        # same class, asks the setting itself.
        with torch._inductor.config.patch(freezing=True):
            return compiled(*args, **kwargs)

    if section.inductor == "freezing":
        around = frozen
    return Compiled(module, "forward", around)


def _from_cache(counters: Any) -> int:
    """How many graphs were read from disk in place of being compiled: by inductor, or with what stands before it."""
    return int(counters["aot_autograd"]["autograd_cache_hit"] + counters["inductor"]["fxgraph_cache_hit"])


def _watch(section: Compile) -> Done:
    """Count what torch compiles from now on, keep it on disk, and have a fall-back to eager raise."""
    import torch._dynamo
    from torch._dynamo.callback import CallbackArgs, callback_handler
    from torch._dynamo.utils import counters

    compiled: list[str] = []
    seconds = [0.0, 0.0]  # begun, spent
    broken, reused = sum(counters["graph_break"].values()), _from_cache(counters)

    def begins(args: CallbackArgs) -> None:
        seconds[0] = time.perf_counter()
        compiled.append(args.compile_id.partition("_")[0])  # what follows counts new attempts after a graph break

    def ends(args: CallbackArgs) -> None:
        seconds[1] += time.perf_counter() - seconds[0]

    callback_handler.register_start_callback(begins)
    callback_handler.register_end_callback(ends)
    config: Any = torch._dynamo.config
    before = config.fail_on_recompile_limit_hit
    config.fail_on_recompile_limit_hit = True
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    if section.cache_dir is not None:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(section.cache_dir).expanduser().resolve())

    def undo() -> None:
        callback_handler.remove_start_callback(begins)
        callback_handler.remove_end_callback(ends)
        config.fail_on_recompile_limit_hit = before
        if folder is not None:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        elif section.cache_dir is not None:
            os.environ.pop("TORCHINDUCTOR_CACHE_DIR", None)

    def figures() -> dict[str, Figure]:
        # "2/1" is the second compilation of the third function: another shape, type or setting came along.
        again = sum(not identity.endswith("/0") for identity in set(compiled))
        breaks = sum(counters["graph_break"].values()) - broken
        return {
            "compilations": len(set(compiled)),
            "recompilations": again,
            "graph_breaks": breaks,
            "from_cache": _from_cache(counters) - reused,
            "seconds": round(seconds[1], 2),
        }

    return Done(undo, live=figures)
