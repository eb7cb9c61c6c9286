"""The report of a benchmark as it is stored: `report.json`, from which every table and picture is made."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from hasten._version import __version__
from hasten.errors import HastenError
from hasten.plan import Plan
from hasten.record import Quality, Timings

FILE = "report.json"
Kind = Literal["reference", "plan", "fewer-steps", "peer"]
Value = bool | int | float | str | list[int | float]
"""What a peer's setting can be."""
VERSION = 3
"""1 had no peers, 2 no CLIP scores; both are read as well."""

STATEMENT = (
    "Quality is measured against the reference: the same prompt, seed and steps with nothing skipped. Figures of the "
    "small models that come with hasten (scenes-…) show how methods rank, not what a large model's images would score."
)


class Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="null")


class PeerChoice(Part):
    """A peer of `hasten.bench.peers` and the settings that differ from its published ones."""

    name: str
    settings: dict[str, Value] = {}

    @property
    def label(self) -> str:
        """Its name in tables: `cache-dit residual_diff_threshold=0.12`."""
        return " ".join([self.name, *(f"{key}={value}" for key, value in self.settings.items())])


class PeerFacts(Part):
    """What was run under a peer's name.

    Attributes:
        package, version: as pip knows it; None where it is not installed.
        settings: all that were given to it.
        source: its paper or its home.
    """

    package: str
    version: str | None
    settings: dict[str, Value]
    summary: str
    source: str

    @property
    def text(self) -> str:
        """The settings in a line."""
        return ", ".join(f"{key}={value}" for key, value in self.settings.items()) or "no settings"


class Settings(Part):
    """What was asked for; a resumed run has to ask for the same."""

    model: str
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    rounds: int
    warmup: int
    batch_sizes: tuple[int, ...] = ()
    peers: tuple[PeerChoice, ...] = ()
    clip: str | None = None
    """Folder of the CLIP model that also scores images against their prompts."""


class Machine(Part):
    """Where it ran. `memory_bytes` and `driver` are the accelerator's where there is one."""

    platform: str
    cpu: str
    cores: int
    threads: int
    ram_bytes: int
    device: str
    device_name: str
    dtype: str
    memory_bytes: int | None = None
    driver: str | None = None


class Step(Part):
    """One step of a warm-up run, the device synchronised after it."""

    index: int
    sigma: float | None
    computed: bool
    reason: str
    seconds: float


class Variant(Part):
    """One row of the benchmark.

    Attributes:
        kind: reference: nothing skipped; fewer-steps: nothing skipped, as many steps as another variant computed;
            peer: another implementation, in a process of its own with the plain pipeline beside it.
        plan: what hasten applied; of a peer, what its reference ran with.
        process: the peer in whose process it ran; empty for the benchmark's own.
        peer: what was run, of a peer.
        work: of a peer, its arithmetic in whole steps of the reference, counted in a run that is not timed; None where
            it cannot be counted. Peers do not tell their steps: `computed` and `skipped` are empty.
        differs: what else than its acceleration it changes; not comparable where there is anything.
        first_seconds: the first run, which also chooses kernels, compiles and fills caches.
        steps: every step of the last warm-up run; empty where that was shorter than a real run.
        error: why it could not run; everything measured is then missing.
    """

    name: str
    kind: Kind
    plan: Plan
    process: str = ""
    peer: PeerFacts | None = None
    work: float | None = None
    differs: tuple[str, ...] = ()
    first_seconds: float | None = None
    computed: int | None = None
    skipped: int | None = None
    site: str | None = None
    predictor: str | None = None
    snapshot_bytes: int | None = None
    steps: tuple[Step, ...] = ()
    notes: tuple[str, ...] = ()
    error: str | None = None

    @property
    def comparable(self) -> bool:
        return not self.differs


class Gpu(Part):
    """What the driver told while an image was made: means over the run. None where it does not tell."""

    utilisation: float | None = None
    """In percent."""
    power: float | None = None
    """In watts."""
    energy: float | None = None
    """In joules, the whole board's."""


class Adherence(Part):
    """Whether a scene is what its prompt says, read from the pixels: `right` is everything, `objects` a share."""

    right: bool
    objects: float


class Sample(Part):
    """One image: which, how long it took, what it needed, how close it is to its reference.

    Attributes:
        prompt: its number among the settings' prompts.
        process: the peer in whose process it was made, as the reference it is measured against; empty for the
            benchmark's own.
        digest: of the pixels; the same seed has to give the same in every round.
        clip: CLIP score, 0 to 100, where a CLIP model was given.
        image: file below the report's folder; images are kept of the first round.
    """

    variant: str
    round: int
    prompt: int
    seed: int
    timings: Timings
    computed: int | None
    skipped: int | None
    peak_bytes: int
    memory_source: str
    digest: str
    process: str = ""
    quality: Quality | None = None
    adherence: Adherence | None = None
    clip: float | None = None
    gpu: Gpu | None = None
    image: str | None = None


class Batch(Part):
    """Several images in one call. `seconds` has one value per round; `error` says why there is none."""

    variant: str
    size: int
    seconds: tuple[float, ...] = ()
    peak_bytes: int | None = None
    error: str | None = None


class Summary(Part):
    """One variant in figures, from its samples. Times are seconds of a whole image unless they say otherwise.

    Attributes:
        latencies: every timing, in the order of measuring.
        speedup: the median of reference time over its time, pair by pair, with its 95 % bootstrap interval.
        computed_step, skipped_step: medians of a step by kind, from a warm-up run synchronised after every step.
        psnr, ssim, latent_error: medians over the images; a psnr of None with `identical` above 0 is infinite.
        identical: images that equal their reference.
        right, objects, clip: means of the scenes checker's readings, and of CLIP scores.
    """

    variant: str
    images: int
    latencies: tuple[float, ...]
    median: float
    p90: float
    p95: float
    per_step: float
    images_per_second: float
    text: float
    denoise: float
    decode: float
    computed: int | None
    skipped: int | None
    computed_step: float | None
    skipped_step: float | None
    speedup: float | None
    speedup_low: float | None
    speedup_high: float | None
    psnr: float | None
    ssim: float | None
    latent_error: float | None
    max_difference: float | None
    identical: int
    right: float | None
    objects: float | None
    clip: float | None = None
    peak_bytes: int
    memory_source: str
    utilisation: float | None
    power: float | None
    energy: float | None


class BenchReport(Part):
    """A benchmark, whole or as far as it came (`complete`)."""

    version: Literal[3] = 3
    hasten: str = __version__
    created: datetime = Field(default_factory=lambda: datetime.now(UTC).replace(microsecond=0))
    command: str
    statement: str = STATEMENT
    settings: Settings
    machine: Machine
    versions: dict[str, str]
    load_seconds: float | None
    complete: bool = False
    sessions: int = 1
    """How many times it was begun: more than one where it was resumed."""
    variants: tuple[Variant, ...] = ()
    samples: tuple[Sample, ...] = ()
    batches: tuple[Batch, ...] = ()
    summary: tuple[Summary, ...] = ()
    notes: tuple[str, ...] = ()

    def variant(self, name: str) -> Variant:
        return next(variant for variant in self.variants if variant.name == name)

    def of(self, variant: str) -> list[Sample]:
        """A variant's samples; of the reference those of the benchmark's own process."""
        process = next((one.process for one in self.variants if one.name == variant), "")
        return [sample for sample in self.samples if sample.variant == variant and sample.process == process]

    def save(self, folder: Path) -> Path:
        """Write `report.json` in one piece, over an older state of itself."""
        return write_over(folder / FILE, self.model_dump_json(indent=1))


def write_over(path: Path, text: str) -> Path:
    """Write a text in one piece: a reader, or an interrupt, finds the old file or the new one, never a half."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_text(text, "utf-8")
        temporary.replace(path)
    except OSError as error:
        raise HastenError(f"cannot write {path}: {error.strerror or error}") from error
    return path


def read_report(path: str | Path) -> BenchReport:
    """Read a report from its file or its folder.

    Raises:
        HastenError: there is none, or none that this version can read.
    """
    path = Path(path)
    file = path / FILE if path.is_dir() else path
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else str(error)
        raise HastenError(f"{file} cannot be read: {reason}") from error
    try:
        data = json.loads(text)
        if isinstance(data, dict) and data.get("version", VERSION) not in range(1, VERSION + 1):
            raise HastenError(
                f"{file} is a report of version {data['version']}; hasten {__version__} reads versions 1 to {VERSION}: "
                "upgrade hasten"
            )
        if isinstance(data, dict):
            data["version"] = VERSION  # what was added since has defaults
        return BenchReport.model_validate_json(json.dumps(data))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise HastenError(f"{file} is no report of hasten bench: {place}: {first['msg']}") from error
    except ValueError as error:
        raise HastenError(f"{file} is no report of hasten bench: {error}") from error
