"""The sections of a plan that change how a pipeline computes, besides the cache."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from hasten.plan.section import Number, Section, Text, Whole
from hasten.plan.values import a_pattern, as_bytes, as_dtype, as_name, as_part, as_scheme

SPEED = ("sampler", "adaptive", "precision", "quantization", "attention", "tokens", "compile", "memory")
"""The sections of a plan that are put on a pipeline before the cache."""

ComponentDtype = Annotated[Literal["fp32", "fp16", "bf16", "fp8", "fp8_e5m2", "int8"], BeforeValidator(as_dtype)]


class Precision(Section):
    """The number formats that the pipeline computes in and stores its weights in."""

    short_form = "dtype"

    dtype: Annotated[Literal["auto", "fp32", "fp16", "bf16"], BeforeValidator(as_dtype)] = "auto"
    """Of every component without its own. `auto` is bf16 where the device is fast at it, else fp32."""
    denoiser: ComponentDtype | None = None
    """Of whatever is called at every step, whatever it is called in the pipeline. fp8 stores and does not compute; int8
    is short for the component's key in `quantization`."""
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


Scheme = Annotated[
    Literal["int8", "int8-weight-only", "fp8", "fp8-weight-only", "int4"],
    BeforeValidator(as_scheme),
]


class Quantization(Section):
    """Linear layers in 8 or 4 bits. On where `enabled` says so, or where it says nothing and another key is set."""

    short_form = "scheme"

    enabled: bool | None = None
    scheme: Scheme | None = None
    """Of the denoiser. `int8` and `fp8` compute in 8 bits; the others store, and compute in the model's format."""
    unet: Scheme | None = None
    transformer: Scheme | None = None
    transformer_2: Scheme | None = None
    text_encoder: Scheme | None = None
    text_encoder_2: Scheme | None = None
    text_encoder_3: Scheme | None = None
    exclude: list[Annotated[str, AfterValidator(a_pattern)]] | None = None
    """Regular expressions for the names of layers that are left as they are."""
    loader: Annotated[Text, BeforeValidator(as_name)] | None = None
    """One of diffusers' quantizers, which do so while the model is loaded: bitsandbytes_4bit, bitsandbytes_8bit, …"""
    options: dict[str, str | bool | int | float | list[str]] | None = None
    """Arguments of that quantizer's configuration."""
    components: list[Text] | None = None
    """What the loader quantizes. null: the denoisers."""

    COMPONENTS: ClassVar[tuple[str, ...]] = (
        "unet",
        "transformer",
        "transformer_2",
        "text_encoder",
        "text_encoder_2",
        "text_encoder_3",
    )

    @property
    def on(self) -> bool:
        """Whether anything is quantized."""
        return self.enabled if self.enabled is not None else self != Quantization()


class Attention(Section):
    """How denoisers compute attention. A null leaves things as they are."""

    short_form = "backend"

    kernel: Annotated[Literal["math", "flash", "efficient", "cudnn"], BeforeValidator(as_name)] | None = None
    """Which of torch's kernels for scaled dot-product attention."""
    backend: Annotated[Text, BeforeValidator(as_name)] | None = None
    """One of diffusers' attention backends: native, flash, _flash_3, sage, xformers, flex, …"""
    slicing: Literal["auto", "max"] | Whole | None = None
    """Compute a part of the heads at a time: `auto` is half of them, `max` one, a number so many."""
    fused_qkv: bool | None = None
    """Queries, keys and values by one product."""
    channels_last: bool | None = None
    """The order in memory that convolutions are fast in."""


Part = Annotated[Literal["self_attention", "cross_attention", "feed_forward"], BeforeValidator(as_part)]


class Tokens(Section):
    """Token merging: parts of blocks compute on fewer tokens, those that are alike merged, and copied back after it."""

    short_form = "ratio"

    enabled: bool | None = None
    ratio: Number | None = Field(default=None, ge=0, lt=1)
    """This share of the tokens is merged into others. null is 0.5 where another key is set."""
    merge: list[Part] | None = Field(default=None, min_length=1)
    """For which parts of a block. null: self-attention."""
    stride: tuple[Annotated[Whole, Field(ge=1)], Annotated[Whole, Field(ge=1)]] | None = None
    """Rows and columns of the cells of which one token each is merged into. null: 2 × 2."""
    destinations: Annotated[Literal["random", "fixed"], BeforeValidator(as_name)] | None = None
    """Which token of a cell that is: drawn anew at each step, or the first. null: random."""
    max_downsample: Whole | None = Field(default=None, ge=1)
    """Only where there are at most so many times fewer tokens along a side than in the finest attention. null: 1."""

    @property
    def on(self) -> bool:
        """Whether any tokens are merged."""
        if self.enabled is False or self.ratio == 0:
            return False
        return bool(self.enabled) or self != Tokens()


class Compile(Section):
    """torch.compile. It is on where `enabled` says so, or where it says nothing and another key is set."""

    short_form = "mode"

    enabled: bool | None = None
    scope: Annotated[Literal["blocks", "model"], BeforeValidator(as_name)] | None = None
    """The blocks that are alike, compiled once for all of them, or the whole denoiser. null: blocks."""
    mode: (
        Annotated[
            Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"],
            BeforeValidator(as_name),
        ]
        | None
    ) = None
    fullgraph: bool | None = None
    """Make an error of whatever cannot be compiled in one piece."""
    dynamic: bool | None = None
    """Compile for any size, or for each size anew. null: torch sees."""
    compile_vae: bool | None = None
    """The VAE's decoder, too."""
    backend: Text | None = Field(default=None, min_length=1)
    """null: inductor."""
    inductor: Annotated[Literal["diffusers", "freezing"], BeforeValidator(as_name)] | None = None
    """Flags of inductor: those of diffusers' chapter on speed, or weights taken for constants."""
    cache_dir: Path | None = None
    """Where compiled code is kept for the next process. null: torch's own folder."""

    @property
    def on(self) -> bool:
        """Whether anything is compiled."""
        return self.enabled if self.enabled is not None else self != Compile()


class Memory(Section):
    """Less memory for some time. A null leaves things as they are."""

    short_form = "limit"

    limit: Annotated[float, BeforeValidator(as_bytes), Field(gt=0)] | None = None
    """In bytes, or with a unit: 8GiB. The cheapest settings that keep it are chosen, in place of the others here."""
    vae_slicing: bool | None = None
    """Decode the images of a batch one by one."""
    vae_tiling: bool | None = None
    """Decode large images tile by tile."""
    free_text_encoder: bool | None = None
    """Move it away once the prompt is encoded."""
    offload: Annotated[Literal["model", "sequential", "group"], BeforeValidator(as_name)] | None = None
    """Keep weights elsewhere until they are used: part by part, layer by layer, or in groups."""
    group: Annotated[Literal["leaf", "block"], BeforeValidator(as_name)] | None = None
    """The groups of `offload: group`: single layers, or blocks. null: leaf."""
    blocks_per_group: Whole | None = Field(default=None, ge=1)
    stream: bool | None = None
    """Copy the next group while the last one computes."""
    disk: Path | None = None
    """The folder in which weights wait, in place of the CPU's memory."""
    device_map: Annotated[Literal["balanced"], BeforeValidator(as_name)] | None = None
    """Spread the parts over several accelerators while they are loaded."""
    max_memory: dict[str, Annotated[float, BeforeValidator(as_bytes), Field(gt=0)]] | None = None
    """With `device_map`: what each may take, by its number: {0: 16GiB, 1: 8GiB}."""
