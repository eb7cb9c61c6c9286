"""Other packages as peers, called as their documentation says. `session.pristine` puts back what they leave patched."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def cache_dit(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """cache-dit's DBCache, with its TaylorSeer calibrator where `taylorseer_order` is given."""
    import cache_dit as package

    config = {key: value for key, value in settings.items() if key != "taylorseer_order"}
    more: dict[str, Any] = {}
    if "taylorseer_order" in settings:
        order = settings["taylorseer_order"]
        more["calibrator_config"] = package.TaylorSeerCalibratorConfig(taylorseer_order=order)
    package.enable_cache(pipe, cache_config=package.DBCacheConfig(num_inference_steps=steps, **config), **more)
    try:
        yield
    finally:
        package.disable_cache(pipe)


@contextlib.contextmanager
def para_attn(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """ParaAttention's First Block Cache. It has no way back."""
    from para_attn.first_block_cache.diffusers_adapters import apply_cache_on_pipe

    apply_cache_on_pipe(pipe, **settings)
    yield


@contextlib.contextmanager
def deepcache(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """DeepCache (Ma et al. 2023, arXiv 2312.00858)."""
    from DeepCache import DeepCacheSDHelper

    helper = DeepCacheSDHelper(pipe=pipe)
    helper.set_params(**settings)
    helper.enable()
    try:
        yield
    finally:
        helper.disable()


@contextlib.contextmanager
def tgate(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """T-GATE (Zhang et al. 2024, arXiv 2404.02747). A call of its own: it takes the pipeline's place."""
    import tgate as package

    kind = type(pipe)
    two_encoders = getattr(pipe, "text_encoder_2", None) is not None
    (package.TgateSDXLLoader if two_encoders else package.TgateSDLoader)(pipe)

    @functools.wraps(kind.__call__)
    def call(self: Any, *args: Any, **named: Any) -> Any:
        return self.tgate(*args, **settings, **named)

    # Only this instance: a pipeline is called through its class.
    pipe.__class__ = type(kind.__name__, (kind,), {"__call__": call})
    try:
        yield
    finally:
        pipe.__class__ = kind


@contextlib.contextmanager
def tomesd(pipe: Any, settings: dict[str, Any], steps: int, kept: dict[str, Any]) -> Iterator[None]:
    """Token merging (Bolya and Hoffman 2023, arXiv 2303.17604)."""
    import tomesd as package

    package.apply_patch(pipe, **settings)
    try:
        yield
    finally:
        package.remove_patch(pipe)
