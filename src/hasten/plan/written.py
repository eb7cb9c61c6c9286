"""Keys of other programs' plans that can mean one thing only: taken for ours, as they are written.

They are those of Stable Diffusion accelerators that keep a model, its formats and its compilation under `model`, the
number of steps under `sampler`, and the files under `io`.
"""

from __future__ import annotations

from hasten.plan.messages import nearest

Path = tuple[str, ...]

AS_WRITTEN: dict[Path, Path] = {
    ("model_id",): ("model",),
    ("unet_dtype",): ("precision", "unet"),
    ("vae_dtype",): ("precision", "vae"),
    ("text_encoder_dtype",): ("precision", "text_encoder"),
    ("model", "model_id"): ("model",),
    ("model", "device"): ("device",),
    ("model", "dtype"): ("precision", "dtype"),
    ("model", "unet_dtype"): ("precision", "unet"),
    ("model", "transformer_dtype"): ("precision", "transformer"),
    ("model", "vae_dtype"): ("precision", "vae"),
    ("model", "text_encoder_dtype"): ("precision", "text_encoder"),
    ("model", "text_encoder_2_dtype"): ("precision", "text_encoder_2"),
    ("model", "compile"): ("compile",),
    ("sampler", "num_inference_steps"): ("generation", "num_inference_steps"),
    ("sampler", "steps"): ("generation", "num_inference_steps"),
    ("sampler", "guidance_scale"): ("generation", "guidance_scale"),
    ("generation", "num_images_per_prompt"): ("generation", "num_images"),
    ("generation", "seed"): ("seed",),
    ("io", "output_dir"): ("io", "out"),
    ("io", "save_grid"): ("io", "grid"),
    ("io", "filename_pattern"): ("io", "filename"),
}
"""The path of a key as it is written, and where it belongs."""


def holds_others(path: Path) -> bool:
    """Whether what is a value of ours may also be written as a mapping: `model: {model_id: …, unet_dtype: …}`."""
    return any(len(written) > len(path) and written[: len(path)] == path for written in AS_WRITTEN)


def unknown_within(path: Path) -> str:
    """`unknown key; did you mean 'unet_dtype'? (allowed: …)` for a key of such a mapping."""
    allowed = [written[-1] for written in AS_WRITTEN if len(written) == len(path) and written[:-1] == path[:-1]]
    near = nearest(path[-1], allowed)
    hint = f"; did you mean {near!r}?" if near is not None else ""
    return f"unknown key{hint} (allowed: {', '.join(allowed)})"
