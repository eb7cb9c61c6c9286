"""What is measured: plans and sweeps as variants of one reference, prompts from a file or built in."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from hasten.bench.schema import Kind, PeerChoice
from hasten.errors import HastenError, PlanError
from hasten.plan import Plan, build_plan, load_plan
from hasten.plan.speed import SPEED

REFERENCE = "reference"
_OF_THE_BENCHMARK = ("version", "model", "device", "seed", "io")  # one for all variants, whatever a plan says


@dataclass(frozen=True)
class Candidate:
    """A variant before it is run; see `schema.Variant`."""

    name: str
    kind: Kind
    plan: Plan
    differs: tuple[str, ...] = ()
    peer: PeerChoice | None = None


Source = Plan | Mapping[str, Any] | str | Path


def candidates(base: Plan, sources: Sequence[Source], sweeps: Sequence[str] = ()) -> list[Candidate]:
    """The reference, then every plan, or every plan at every value of the sweeps.

    What a plan says of steps, size, guidance, precision and sampler holds; what it leaves open is the reference's. Its
    model, device, seed and folder are not used: these are the benchmark's.

    Args:
        base: the reference's settings, complete.
        sources: presets, YAML files, mappings or plans.
        sweeps: "cache.interval=2,3,4"; several make every combination.

    Raises:
        HastenError: a plan or a sweep that cannot be.
    """
    base = base.model_copy(
        update={"cache": None, "quality": None, "generation": base.generation.model_copy(update={"num_images": 1})}
    )
    found = [Candidate(REFERENCE, "reference", base)]
    combinations = list(itertools.product(*map(parse_sweep, sweeps)))
    for source in sources:
        for sets in combinations:
            short = [text.partition("=")[0].rpartition(".")[2] + "=" + text.partition("=")[2] for text in sets]
            name = _free(" ".join([_name(source), *short]), {one.name for one in found})
            try:
                plan = lay_over(base, build_plan(source, sets, {}, caller="hasten bench", own_steps=True))
            except PlanError as error:
                raise PlanError(*(f"{name}: {problem}" for problem in error.problems)) from error
            found.append(Candidate(name, "plan", plan, differences(plan, base)))
    return found


def fewer_steps(base: Plan, counts: Iterable[int]) -> list[Candidate]:
    """The plain pipeline at other numbers of steps: what every cache has to beat."""
    return [
        Candidate(
            f"fewer-steps {count}",
            "fewer-steps",
            base.model_copy(
                update={"cache": None, "generation": base.generation.model_copy(update={"num_inference_steps": count})}
            ),
        )
        for count in sorted(set(counts))
        if 0 < count < base.generation.num_inference_steps
    ]


def parse_sweep(text: str) -> list[str]:
    """ "cache.interval=2,3" as ["cache.interval=2", "cache.interval=3"]; lists in brackets are one value each.

    Raises:
        HastenError: no key, no values, or a key that all variants share.
    """
    key, equals, values = (part.strip() for part in text.partition("="))
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError as error:
        raise HastenError(f"--sweep {text}: the values cannot be read; write --sweep cache.interval=2,3,4") from error
    if not key or not equals or not isinstance(parsed, list) or not parsed:
        raise HastenError(f"--sweep {text}: write a key and its values: --sweep cache.interval=2,3,4")
    if key.split(".")[0] in _OF_THE_BENCHMARK:
        raise HastenError(f"--sweep {text}: {key.split('.')[0]} is the same for all variants of a benchmark")
    return [f"{key}={yaml.safe_dump(value, default_flow_style=True).split(chr(10))[0]}" for value in parsed]


def lay_over(base: Plan, plan: Plan) -> Plan:
    """The base with the plan's cache, and with what else the plan names.

    Raises:
        PlanError: together they are impossible, such as a mask beyond the base's steps.
    """
    values, own = base.to_dict(), plan.to_dict()
    values |= {"cache": own["cache"], "quality": plan.quality}
    for section in ("generation", *SPEED):
        named = getattr(plan, section).model_fields_set - {"num_images"}
        values[section] = {
            **values.get(section, {}),
            **{key: own[section][key] for key in named if key in own[section]},
        }
    return load_plan(values)


def differences(plan: Plan, base: Plan) -> tuple[str, ...]:
    """What a plan changes besides its acceleration and precision, in words."""
    words = {"num_inference_steps": "steps"}
    return tuple(
        f"{words.get(key, f'sampler {key}' if section == 'sampler' else key)} {_shown(new)} instead of {_shown(old)}"
        for section in ("generation", "sampler")
        for key, new in getattr(plan, section).model_dump().items()
        if new != (old := getattr(getattr(base, section), key))
    )


def read_prompts(source: str) -> list[str]:
    """Prompts of a text file, one in each line, or `builtin:20`: captions of scenes that training never draws.

    Raises:
        HastenError: no such file, no prompts, no number.
    """
    kind, colon, count = source.partition(":")
    if kind == "builtin" and colon:
        if not count.isdecimal() or int(count) < 1:
            raise HastenError(f"--prompts {source}: write a number of at least 1, such as builtin:20")
        from hasten.zoo.evaluation import held_out_prompts

        return held_out_prompts(int(count))
    try:
        lines = [line.strip() for line in Path(source).read_text("utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise HastenError(
            f"--prompts {source}: no text file that can be read ({error}); write builtin:20, the path of a file with "
            'one prompt in each line, or --prompt "a red circle"'
        ) from error
    if not any(lines):
        raise HastenError(f"--prompts {source}: there is no prompt in it")
    return [line for line in lines if line]


def _name(source: Source) -> str:
    if isinstance(source, Path):
        return source.stem
    if isinstance(source, str):
        return Path(source).stem if source.endswith((".yaml", ".yml")) else source
    plan = source if isinstance(source, Plan) else load_plan(source)
    return plan.method or plan.quality or "none"


def _free(name: str, taken: set[str]) -> str:
    names = itertools.chain([name], (f"{name} ({count})" for count in itertools.count(2)))
    return next(one for one in names if one not in taken)


def _shown(value: object) -> str:
    return "the model's own" if value is None else f"{value!r}" if isinstance(value, str) else f"{value}"
