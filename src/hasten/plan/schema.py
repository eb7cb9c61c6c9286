"""What a plan is: frozen pydantic models, one per section."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    Discriminator,
    Field,
    Tag,
    ValidationInfo,
    model_validator,
)

from hasten.caching.masks import BinsName
from hasten.caching.methods import MethodName
from hasten.caching.prediction import Coordinate, PredictorName
from hasten.caching.vocabulary import PolicyName, SignalName, SiteName, StoreDtype
from hasten.plan.adaptive import AdaptiveSteps
from hasten.plan.checks import cross_check
from hasten.plan.sampling import Sampler
from hasten.plan.section import Number, Section, Text, Whole
from hasten.plan.speed import Attention, Compile, Memory, Precision, Quantization, Tokens
from hasten.plan.values import a_filename, as_device, as_dtype, as_name, ascending

DEFERRED = "hasten: the combinations are checked by the caller"
"""A key of the validation context: `build_plan` reports impossible combinations beside all other problems."""


QualityName = Literal["near-lossless", "high", "balanced", "draft"]


class Cache(Section):
    """Which steps are computed, and what stands in on the others. A null is the method's own default."""

    short_form = "method"

    method: Annotated[MethodName, BeforeValidator(as_name)] = "taylorseer"
    interval: Whole | None = Field(default=None, ge=1)
    """One step in every `interval` steps is computed; 1 skips nothing."""
    order: Whole | None = Field(default=None, ge=0, le=8)
    """The degree of the extrapolation; 0 repeats the last computed value."""
    first_enhance: Whole | None = Field(default=None, ge=0)
    """So many steps at the start are all computed."""
    cooldown: Whole | None = Field(default=None, ge=0)
    """So many steps at the end are all computed."""
    site: Annotated[SiteName, BeforeValidator(as_name)] | None = None
    """What is left out on a skipped step: the unconditional branch (`guidance`), all of the denoiser (`latent`: and
    what is predicted is what it adds to its input), its stack of blocks, the deep part of a UNet, a span
    of the stack, or parts of its blocks."""
    span: tuple[Annotated[Whole, Field(ge=0)], Annotated[Whole, Field(ge=0)]] | None = None
    """With sites `span` and `last_block`: so many first and so many last blocks keep running."""
    branch: Whole | None = Field(default=None, ge=0)
    """With site `unet_branch`: the skip connection below which the deep part begins; 0, the first, leaves most out."""
    predictor: Annotated[PredictorName, BeforeValidator(as_name)] | None = None
    """How a stand-in is made from the last computed values."""
    coordinate: Annotated[Coordinate, BeforeValidator(as_name)] | None = None
    """What `poly`, `ab2` and `foca` take as the position of a step; the others count steps."""
    damping: Number | None = Field(default=None, ge=0, le=1)
    """1 trusts the extrapolation in full, 0 is reuse."""
    max_amplification: Number | None = Field(default=None, ge=1)
    """The order falls where the weights' absolute values would sum to more than this."""
    trust: Number | None = Field(default=None, gt=0, le=1)
    """Predictions are shrunk as far as a second opinion differs from them; half at a difference of this share."""
    low_order: Whole | None = Field(default=None, ge=0, le=8)
    """The order for low spatial frequencies, where they are to have one of their own; 0 reuses them."""
    cut: Number | None = Field(default=None, gt=0, lt=1)
    """With `low_order`: frequencies up to this share of the highest are low."""
    sigma_scale: Number | None = Field(default=None, gt=0, le=1)
    """The scale of the predictor `hermite`."""
    ridge: Number | None = Field(default=None, gt=0)
    """The regularisation of the predictor `chebyshev`."""
    blend: Number | None = Field(default=None, ge=0, le=1)
    """With `chebyshev`: the share of the polynomial beside a straight line."""
    fitted_weights: list[Annotated[list[Number], Field(min_length=1)]] | None = Field(default=None, min_length=1)
    """With predictor `least_squares` and a mask: for each skipped step the weights of the last values, newest first."""
    snapshots: Whole | None = Field(default=None, ge=1, le=16)
    """How many computed values are kept."""
    mask: Annotated[list[Annotated[Whole, Field(ge=0)]], BeforeValidator(ascending)] | None = Field(
        default=None, min_length=1
    )
    """The computed steps, one by one, in place of interval and first_enhance. An adaptive policy may compute more."""
    policy: Annotated[PolicyName, BeforeValidator(as_name)] | None = None
    """What decides: fixed steps, a table (`table`), a measured `signal` (`accumulate`, `compare`), what computed steps
    showed (`codebook`), how wrong skipped ones were (`verify`), or what predictions would do to the image
    (`tolerance`)."""
    budget: Whole | None = Field(default=None, ge=2)
    """With policy `geometric`: so many steps are computed, with growing gaps."""
    bins: Annotated[BinsName, BeforeValidator(as_name)] | None = None
    """One of cache-dit's step masks, for a run of any length; an adaptive policy may compute more."""
    window: Number | None = Field(default=None, ge=1)
    """With policy `window`: the first gap between computed steps after the warm-up."""
    growth: Number | None = Field(default=None, ge=0)
    """With policy `window`: each gap is so much wider than the one before."""
    signal: Annotated[SignalName, BeforeValidator(as_name)] | None = None
    """What `accumulate` and `compare` measure at each step."""
    probe: Whole | None = Field(default=None, ge=1)
    """With signals `state` and `probe`: so many first blocks run before a step is decided."""
    threshold: Number | None = Field(default=None, ge=0)
    """How much may change before a step is computed."""
    tolerance: Number | None = Field(default=None, gt=0)
    """With policy `tolerance`: the relative error of the final latent that skipping may come to."""
    retention: Number | None = Field(default=None, ge=0, le=1)
    """This share of the run's steps is computed at its start, if that is more than `first_enhance`."""
    max_skips: Whole | None = Field(default=None, ge=0)
    """So many steps in a row are skipped at most."""
    max_total_skips: Whole | None = Field(default=None, ge=0)
    """So many steps of a run are skipped at most."""
    max_drift: Number | None = Field(default=None, gt=0)
    """With policy `compare`: the most that the differences since the last computed step may sum to."""
    decay: Number | None = Field(default=None, ge=0, le=1)
    """With policy `verify`: the threshold falls to this share of itself over the run."""
    polynomial: list[Number] | None = Field(default=None, min_length=1)
    """With policy `accumulate`: this function of the signal is summed; coefficients, highest power first."""
    codebook: list[tuple[Annotated[Number, Field(ge=0)], Annotated[Whole, Field(ge=1)]]] | None = Field(
        default=None, min_length=1
    )
    """With policy `codebook`: up to this relative change per step of the cached value, so many steps are skipped."""
    ratios: list[Annotated[Number, Field(gt=0)]] | None = Field(default=None, min_length=2)
    """With policy `table`: for each step, the size of the cached residual by that of the step before."""
    timesteps: tuple[Number, Number] | None = None
    """Steps are skipped only where the timestep lies between these two, on the scale from 0 to 1000."""
    gate_step: Whole | None = Field(default=None, ge=1)
    """With policy `gate`: the first step of the second phase."""
    fi_interval: Whole | None = Field(default=None, ge=1)
    """With policy `gate`: the interval from `gate_step` on; `interval` is that of the steps before."""
    drop_guidance: bool | None = None
    """With method `tgate`: whether the unconditional branch is left out from `gate_step` on."""
    gains: tuple[Number, Number] | None = None
    """With site `guidance`: what low and high frequencies are multiplied with at every skipped step."""
    low_timesteps: tuple[Number, Number] | None = None
    """With `gains`: the timesteps between which low frequencies are scaled."""
    high_timesteps: tuple[Number, Number] | None = None
    """With `gains`: the timesteps between which high frequencies are scaled."""
    calibration: Path | None = None
    """The file that `hasten calibrate` wrote; null is the one that fits, in the model's folder or the user's."""
    branches: Annotated[Literal["shared", "own"], BeforeValidator(as_name)] | None = None
    """Whether the first branch of a step decides for all of them, or each for itself."""
    center: Whole | None = Field(default=None, ge=1)
    """With `power`: the computed steps of `interval` gather around this one."""
    power: Number | None = Field(default=None, gt=1, le=4)
    """With `center`: how closely; just above 1 spreads the steps evenly. With `budget`: how fast gaps grow."""
    correct: bool | None = None
    """Put right at each computed step what the skipped ones before it did wrong, as far as it shows then."""
    size: Number | None = Field(default=None, gt=0)
    """The ceiling for stored snapshots in MiB."""
    store_dtype: Annotated[StoreDtype, BeforeValidator(as_dtype)] | None = None
    """The number format of stored snapshots."""


def _one_or_several(value: Any) -> str | None:
    return "several" if isinstance(value, list | tuple) else "one"


Caches = Annotated[
    Annotated[Cache, Tag("one")] | Annotated[tuple[Cache, ...], Tag("several"), Field(min_length=1)],
    Discriminator(_one_or_several),
]
"""One section, or a list of sections: layers on top of each other."""


class Generation(Section):
    """What is asked of the pipeline; diffusers' own names."""

    num_inference_steps: Whole = Field(default=50, ge=1)
    negative_prompt: Text | None = " "
    true_cfg_scale: Number | None = Field(default=None, ge=0)
    """null is the model's own."""
    guidance_scale: Number | None = Field(default=None, ge=0)
    """null is the model's own."""
    width: Whole | None = Field(default=None, ge=8)
    """In pixels; null is the model's native size."""
    height: Whole | None = Field(default=None, ge=8)
    """In pixels; null is the model's native size."""
    num_images: Whole = Field(default=1, ge=1)
    """Images per prompt; the seeds count up from `seed`."""


class Output(Section):
    """Where the results go, and what is made beside the images."""

    out: Path = Path("outputs")
    """The folder that images are written to."""
    filename: Annotated[Text, AfterValidator(a_filename)] = "{method}_{prompt}_{seed}.png"
    """The name of each image; `{index}` is its number in the run, `{steps}` the steps that were made."""
    save_latents: bool = False
    """Also write what the last step returned, as safetensors beside each image."""
    grid: bool = False
    """Also write all images of a run as one picture."""
    compare: bool = False
    """Also generate the reference, and measure against it."""
    rounds: Whole = Field(default=3, ge=1)
    """How often a comparison times each way; medians are shown."""


class Plan(Section):
    """Everything about one accelerated generation. Made by `load_plan`; `Plan(...)` works as for any pydantic model.

    Raises:
        pydantic.ValidationError: from the constructor. `load_plan` raises `PlanError` instead, which is for people.
    """

    version: Literal[1] = 1
    model: Text = Field(default="scenes-qwen", min_length=1)
    """A bundled model's name, a diffusers folder, a `.safetensors` file or a hub id."""
    device: Annotated[str, BeforeValidator(as_device)] = "auto"
    """auto, cpu, cuda, npu, hpu, xpu or mps, with an index where there are several: `cuda:1`."""
    precision: Precision = Precision()
    sampler: Sampler = Sampler()
    adaptive: AdaptiveSteps = AdaptiveSteps()
    quantization: Quantization = Quantization()
    attention: Attention = Attention()
    tokens: Tokens = Tokens()
    compile: Compile = Compile()
    memory: Memory = Memory()
    cache: Caches | None = None
    """null skips nothing: the reference. A list of sections stacks them."""
    quality: Annotated[QualityName, BeforeValidator(as_name)] | None = None
    """How close to the reference, in place of a cache: PSNR of 45, 40, 35 or 30 dB, by a schedule or a tolerance."""
    generation: Generation = Generation()
    io: Output = Output()
    seed: Whole = Field(default=0, ge=0, le=2**63 - 1)

    @model_validator(mode="after")
    def _possible(self, info: ValidationInfo) -> Self:
        if not (info.context or {}).get(DEFERRED):
            # A pipeline that the user calls has its own number of steps: only one that the plan names counts.
            named = "num_inference_steps" in self.generation.model_fields_set
            found = cross_check(self, steps=self.generation.num_inference_steps if named else None)
            if found:
                raise ValueError("; ".join(f"{conflict.key}: {conflict.text}" for conflict in found))
        return self

    @property
    def caches(self) -> tuple[Cache, ...]:
        """The sections of `cache`: none, one or several."""
        return () if self.cache is None else (self.cache,) if isinstance(self.cache, Cache) else self.cache

    @property
    def method(self) -> str | None:
        """The names of the methods of `cache`, and `adaptive`, joined by +; None where every step is made in full."""
        adaptive = ("adaptive",) if self.adaptive.on else ()
        return "+".join(dict.fromkeys((*(section.method for section in self.caches), *adaptive))) or None

    def to_dict(self) -> dict[str, Any]:
        """The plan as plain values (str, int, float, bool, list, dict, None), without the nulls that are defaults."""
        return _plain(self)

    def to_yaml(self) -> str:
        """The whole plan as YAML that loads to an equal plan, without the nulls that are defaults."""
        return dump(self.to_dict())


def _plain(section: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if value is None and field.default is None and name != "cache":
            continue
        if isinstance(value, BaseModel):
            value = _plain(value)
            if not value:  # nothing is set in it
                continue
        elif isinstance(value, Path):
            value = str(value)
        elif isinstance(value, tuple):
            value = [_plain(item) if isinstance(item, BaseModel) else item for item in value]
        values[name] = value
    return values


class _Dumper(yaml.SafeDumper):
    """Mappings over several lines, lists of numbers on one: `span: [1, 1]`."""


def _list(dumper: yaml.SafeDumper, data: list[Any]) -> yaml.Node:
    nested = any(isinstance(item, dict) for item in data)
    return dumper.represent_sequence("tag:yaml.org,2002:seq", data, flow_style=not nested)


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    # PyYAML writes line breaks such as U+0085 unescaped unless the text is in double quotes, and reads them as spaces.
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=None if data.isprintable() else '"')


_Dumper.add_representer(list, _list)
_Dumper.add_representer(str, _text)


def dump(values: dict[str, Any]) -> str:
    """Plain values as YAML, in the order given."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=1000)
