"""Measures of what an accelerated image is worth; imported on first use, since they need torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.metrics.clip import Clip, clip_score, directional_similarity
    from hasten.metrics.distribution import frechet_distance, kernel_distance
    from hasten.metrics.embedding import EmbeddingDistance
    from hasten.metrics.features import load_extractor
    from hasten.metrics.fidelity import max_difference, ms_ssim, psnr, ssim
    from hasten.metrics.latents import latent_errors
    from hasten.metrics.lpips import Lpips
    from hasten.metrics.measuring import measure
    from hasten.metrics.scores import read_scores
    from hasten.metrics.videos import video_errors

_HOME = {
    "Clip": "clip",
    "EmbeddingDistance": "embedding",
    "Lpips": "lpips",
    "clip_score": "clip",
    "directional_similarity": "clip",
    "frechet_distance": "distribution",
    "kernel_distance": "distribution",
    "latent_errors": "latents",
    "load_extractor": "features",
    "max_difference": "fidelity",
    "measure": "measuring",
    "ms_ssim": "fidelity",
    "psnr": "fidelity",
    "read_scores": "scores",
    "ssim": "fidelity",
    "video_errors": "videos",
}

__all__ = [
    "Clip",
    "EmbeddingDistance",
    "Lpips",
    "clip_score",
    "directional_similarity",
    "frechet_distance",
    "kernel_distance",
    "latent_errors",
    "load_extractor",
    "max_difference",
    "measure",
    "ms_ssim",
    "psnr",
    "read_scores",
    "ssim",
    "video_errors",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
