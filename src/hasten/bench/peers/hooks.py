"""Diffusers' own caches as peers: each function puts one on a transformer for the length of a `with` block."""

from __future__ import annotations

import ast
import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any

from hasten.errors import HastenError


@contextlib.contextmanager
def taylorseer(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """TaylorSeer on attention modules (Liu et al. 2025, arXiv 2503.06923)."""
    from diffusers.hooks import TaylorSeerCacheConfig

    from hasten.devices import DTYPES

    dtype = DTYPES[settings["taylor_factors_dtype"]]
    with _cache(pipe, TaylorSeerCacheConfig(**settings | {"taylor_factors_dtype": dtype})):
        yield


@contextlib.contextmanager
def taylorseer_lite(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """The same on the last projection, all blocks left out."""
    with taylorseer(pipe, settings | {"use_lite_mode": True}, steps, kept):
        yield


@contextlib.contextmanager
def first_block(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """First Block Cache."""
    from diffusers.hooks import FirstBlockCacheConfig

    with _cache(pipe, FirstBlockCacheConfig(**settings)):
        yield


@contextlib.contextmanager
def mag_cache(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """MagCache (Ma et al. 2025, arXiv 2506.09045). Its first run measures the ratios and skips nothing."""
    from diffusers.hooks import MagCacheConfig

    settings = settings | {"num_inference_steps": steps}
    if "mag_ratios" in kept:
        with _cache(pipe, MagCacheConfig(**settings, mag_ratios=kept["mag_ratios"])):
            yield
        return
    # "Copy the printed ratios", says its documentation: there is no other way to them.
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), _cache(pipe, MagCacheConfig(**settings, calibrate=True)):
        yield
    lists = [line for line in printed.getvalue().splitlines() if line.startswith("[") and line.endswith("]")]
    if not lists:
        raise HastenError("MagCache printed no ratios in its calibration run")
    kept["mag_ratios"] = ast.literal_eval(lists[0])  # of the conditional branch, which runs first


@contextlib.contextmanager
def sea_cache(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """SeaCache (arXiv 2602.18993).

    It asks for the step, its sigma and the latents as they lie in space, which few pipelines tell it: here they come
    from the scheduler, and from the shapes that packed latents come with.
    """
    try:
        from diffusers import SeaCacheConfig
    except ImportError as error:
        raise HastenError("this diffusers has no SeaCache: it came with version 0.40") from error

    transformer, scheduler = pipe.transformer, pipe.scheduler
    inner = transformer.cache_context

    def context(name: str, **told: Any) -> Any:
        index = scheduler.step_index or 0
        own = {"step_index": index, "sigma": float(scheduler.sigmas[index])}
        return inner(name, **{**own, "num_inference_steps": len(scheduler.timesteps), **told})

    with _cache(pipe, SeaCacheConfig(**settings, raw_vision_callback=_in_space)):
        transformer.cache_context = context
        try:
            yield
        finally:
            del transformer.cache_context


@contextlib.contextmanager
def pyramid_attention(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """Pyramid Attention Broadcast (Zhao et al. 2024, arXiv 2408.12588)."""
    from diffusers.hooks import PyramidAttentionBroadcastConfig

    with _cache(pipe, PyramidAttentionBroadcastConfig(**settings, current_timestep_callback=_now(pipe))):
        yield


@contextlib.contextmanager
def faster_cache(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """FasterCache (Lv et al. 2024, arXiv 2410.19355).

    It makes the unconditional half of a batch from the conditional one. A pipeline whose branches are calls of their
    own has no such batch: attention is then all that it works on.
    """
    from diffusers.hooks import FasterCacheConfig

    halves = kept["calls_per_step"] == 1 and kept["batch"] == 2
    shapes: dict[int, str] = {4: "BCHW", 5: "BCFHW"}
    more = {"is_guidance_distilled": not halves, "tensor_format": shapes.get(kept["dimensions"], "BCFHW")}
    with _cache(pipe, FasterCacheConfig(**settings, **more, current_timestep_callback=_now(pipe))):
        yield


@contextlib.contextmanager
def _cache(pipe: Any, config: Any) -> Iterator[None]:
    transformer = pipe.transformer
    if not hasattr(transformer, "enable_cache"):
        raise HastenError(f"diffusers has no caches for {type(transformer).__name__}")
    transformer.enable_cache(config)
    try:
        yield
    finally:
        transformer.disable_cache()


def _now(pipe: Any) -> Callable[[], Any]:
    """The pipeline's timestep, where it tells it; nothing else reaches a hook."""
    if not hasattr(type(pipe), "current_timestep"):
        raise HastenError(
            f"{type(pipe).__name__} does not tell its timestep (current_timestep), which this cache needs"
        )
    return lambda: pipe.current_timestep


def _in_space(module: Any, args: Any, named: dict[str, Any]) -> list[Any] | None:
    """Latents as (channels, frames, height, width), one for each image of the batch; None where they do not tell."""
    latents = named["hidden_states"] if "hidden_states" in named else args[0]
    if latents.ndim == 5:
        return list(latents)
    if latents.ndim == 4:
        return [one[:, None] for one in latents]
    shapes = named.get("img_shapes")
    if not shapes:
        return None
    # Of several images (editing), the first is the one that is made.
    sizes = [tuple(shape[0]) if isinstance(shape, list) else tuple(shape) for shape in shapes]
    return [
        one[: frames * height * width].T.reshape(-1, frames, height, width)
        for one, (frames, height, width) in zip(latents, sizes, strict=True)
    ]
