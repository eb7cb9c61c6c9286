"""The pass `memory`: decode in parts, keep weights elsewhere until they are used, and fit under a limit."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from hasten.caching.patching import CALL, Border, Tap
from hasten.devices import available, clean_up, resolve_device, synchronize
from hasten.errors import PassError
from hasten.passes.budget import choose
from hasten.passes.change import Change, Done
from hasten.passes.journal import reversible
from hasten.passes.target import Target
from hasten.plan import Plan
from hasten.plan.speed import Memory

NAME = "memory"
_GROUP_HOOK = "group_offloading"


def memory(target: Target, plan: Plan) -> Iterator[Change]:
    """Apply the plan's memory settings, or those that its limit asks for.

    Raises:
        PassError: no accelerator to move weights to, a part that is not there, or a limit that nothing keeps.
    """
    section = plan.memory
    if section.limit is not None:
        choice = choose(target, plan, section.limit, has_accelerator=_accelerator(target) is not None)
        yield Change(NAME, "pipeline", f"limit {section.limit / 2**30:.2f} GiB: {choice.text}")
        section = choice.settings
    for key, method in (("vae_slicing", "enable_slicing"), ("vae_tiling", "enable_tiling")):
        if getattr(section, key):
            vae = target.modules.get("vae")
            if not hasattr(vae, method):
                raise PassError(f"memory.{key}: {target.title} has no VAE that can")
            what = "decodes image by image" if key == "vae_slicing" else "decodes large images tile by tile"
            yield Change(NAME, "vae", what, partial(_switch, vae, method))
    if section.free_text_encoder:
        yield from _free_text(target, section)
    if section.offload in ("model", "sequential"):
        yield _by_diffusers(target, section)
    if section.offload == "group":
        yield from _groups(target, section)


def _switch(vae: Any, method: str) -> Done:
    return Done(reversible(vae, getattr(vae, method)))


def _accelerator(target: Target) -> torch.device | None:
    if target.device.type != "cpu":
        return target.device
    return None if available() == ["cpu"] else resolve_device("auto")


def _by_diffusers(target: Target, section: Memory) -> Change:
    device = _accelerator(target)
    if device is None or not target.is_pipeline:
        raise PassError(
            f"memory.offload: {section.offload} moves the parts of a pipeline to an accelerator when they are used"
            + (
                ""
                if device is not None
                else ", and there is none here; offload: group with disk: FOLDER works on the CPU"
            )
        )
    home, pipe = target.device, target.pipe

    def make() -> Done:
        put_back = reversible(pipe, partial(getattr(pipe, f"enable_{section.offload}_cpu_offload"), device=device))

        def undo() -> None:
            pipe.remove_all_hooks()
            put_back()
            pipe.to(home)
            clean_up(device)

        return Done(undo)

    whole = "part by part" if section.offload == "model" else "layer by layer"
    return Change(NAME, "pipeline", f"weights on the CPU until they are used on {device}, {whole}", make)


def _groups(target: Target, section: Memory, names: tuple[str, ...] = ()) -> Iterator[Change]:
    device = _accelerator(target) or torch.device("cpu")
    if device.type == "cpu" and section.disk is None:
        raise PassError(
            "memory.offload: there is no accelerator here to offload from; with disk: FOLDER, weights wait there"
        )
    if section.stream and device.type == "cpu":
        raise PassError("memory.stream: copying beside the computation needs an accelerator, and there is none here")
    for name in names or tuple(target.modules):
        part = target.modules[name]
        if not any(True for _ in part.parameters()):
            continue
        level = section.group or "leaf"
        place = "the CPU" if section.disk is None else f"disk ({section.disk})"
        what = f"weights on {place} until they are used, by {level}" + (", copied in advance" if section.stream else "")
        yield Change(NAME, name, what, partial(_group, part, device, section))


def _group(part: nn.Module, device: torch.device, section: Memory) -> Done:
    from diffusers.hooks import apply_group_offloading

    folder: Path | None = None
    if section.disk is not None:
        root = Path(section.disk).expanduser()
        root.mkdir(parents=True, exist_ok=True)
        # diffusers takes files that lie there for its own, whatever model they are of.
        folder = Path(tempfile.mkdtemp(prefix="hasten-", dir=root))
    home = next(part.parameters()).device
    operation = partial(
        apply_group_offloading,
        part,
        onload_device=device,
        offload_device=torch.device("cpu"),
        offload_type=f"{section.group or 'leaf'}_level",
        num_blocks_per_group=section.blocks_per_group or 1,
        use_stream=bool(section.stream),
        offload_to_disk_path=None if folder is None else str(folder),
    )
    try:
        put_back = reversible(part, operation)
    except BaseException:
        shutil.rmtree(folder or "", ignore_errors=True)
        raise

    def undo() -> None:
        for group in _groups_of(part):
            group.onload_()
        synchronize(device)
        put_back()
        part.to(home)
        for tensor in (*part.parameters(), *part.buffers()) if folder is not None else ():
            tensor.data = tensor.data.clone()  # files are not aligned as torch's memory is, and kernels round by that
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)

    return Done(undo)


def _groups_of(part: nn.Module) -> list[Any]:
    registries = [vars(module).get("_diffusers_hook") for module in part.modules()]
    hooks = [registry.get_hook(_GROUP_HOOK) for registry in registries if registry is not None]
    return list({id(hook.group): hook.group for hook in hooks if hook is not None}.values())


def _free_text(target: Target, section: Memory) -> Iterator[Change]:
    names = tuple(name for name in target.modules if "text_encoder" in name)
    if not names or not hasattr(target.pipe, "encode_prompt"):
        raise PassError(f"memory.free_text_encoder: {target.title} has no text encoder")
    device = _accelerator(target)
    if device is None:
        if section.disk is None:
            raise PassError(
                "memory.free_text_encoder: there is no accelerator here to move it away from; with disk: FOLDER, its "
                "weights wait there"
            )
        if section.offload != "group":
            yield from _groups(target, section, names)
        return
    if section.offload is not None:
        return  # it is away from the accelerator whenever it is not used
    parts = [target.modules[name] for name in names]
    denoisers = [target.modules[name] for name in target.denoisers]
    what = "on the CPU as soon as the prompt is encoded"
    yield Change(NAME, ", ".join(names), what, partial(_move_text, target.pipe, parts, denoisers, device))


def _move_text(pipe: Any, parts: list[nn.Module], denoisers: list[nn.Module], device: torch.device) -> Done:
    there = [True]

    def move(place: torch.device | str, *, on: bool) -> None:
        if there[0] is not on:
            for part in parts:
                part.to(place)
            there[0] = on

    def encoding(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        move(device, on=True)
        return inner(*args, **kwargs)

    def denoising(inner: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        # Not after encoding: a pipeline encodes the negative prompt by a call of its own.
        if there[0]:
            move("cpu", on=False)
            clean_up(device)
        return inner(*args, **kwargs)

    taps: list[Tap] = [Tap(pipe, "encode_prompt", encoding)]
    taps += [Border(denoiser, CALL, denoising) for denoiser in denoisers]

    def undo() -> None:
        for tap in reversed(taps):
            tap.remove()
        move(device, on=True)

    return Done(undo)
