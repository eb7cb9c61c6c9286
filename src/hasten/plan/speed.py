"""The sections of a plan that change how a pipeline computes, besides the cache."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator

from hasten.plan.section import Section
from hasten.plan.values import as_dtype

ComponentDtype = Annotated[Literal["fp32", "fp16", "bf16", "fp8", "fp8_e5m2"], BeforeValidator(as_dtype)]


class Precision(Section):
    """The number formats that the pipeline computes in and stores its weights in."""

    short_form = "dtype"

    dtype: Annotated[Literal["auto", "fp32", "fp16", "bf16"], BeforeValidator(as_dtype)] = "auto"
    """Of every component without its own. `auto` is bf16 where the device is fast at it, else fp32."""
    denoiser: ComponentDtype | None = None
    """Of whatever is called at every step, whatever it is called in the pipeline. fp8 stores and does not compute."""
    unet: ComponentDtype | None = None
    transformer: ComponentDtype | None = None
    transformer_2: ComponentDtype | None = None
    vae: ComponentDtype | None = None
    text_encoder: ComponentDtype | None = None
    text_encoder_2: ComponentDtype | None = None
    text_encoder_3: ComponentDtype | None = None
    tf32: bool | None = None
    """On NVIDIA GPUs: round the inputs of fp32 multiplications to 19 bits. null leaves torch's setting."""

    COMPONENTS: ClassVar[tuple[str, ...]] = (
        "denoiser",
        "unet",
        "transformer",
        "transformer_2",
        "vae",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    )
