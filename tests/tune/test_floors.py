"""Floors, trials and choices: what can be said without a model."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from hasten.bench.schema import Adherence, Sample
from hasten.errors import HastenError
from hasten.plan import load_plan
from hasten.record import Quality, Timings
from hasten.schedule.problem import Forecast
from hasten.schedule.solve import Point
from hasten.tune.floors import Floor, judge, parse_floor
from hasten.tune.space import ADAPTIVE, AS_IT_IS, Axis, chooses_steps, merged, plan_of, step_counts, values_of
from hasten.tune.trials import Log, Trial


def sample(
    psnr: float | None = 40.0,
    right: bool | None = True,
    prompt: int = 0,
    error: float = 0.02,
    clip: float | None = None,
) -> Sample:
    quality = Quality(
        psnr=psnr, ssim=0.9, max_difference=0.1, latent_relative_l2=error, identical=psnr is None, speedup=None
    )
    return Sample(
        variant="trial",
        round=0,
        prompt=prompt,
        seed=0,
        timings=Timings(text=0.1, denoise=2.0, decode=0.3, other=0.1, total=2.5, per_step=0.04),
        computed=10,
        skipped=40,
        peak_bytes=2**20,
        memory_source="process",
        digest="",
        quality=quality,
        clip=clip,
        adherence=None if right is None else Adherence(right=right, objects=1.0),
    )


@pytest.mark.parametrize("text", ["psnr", "psnr=", "psnr=high", "pnsr=30", "=30", "latent_error=0", "psnr=nan"])
def test_a_floor_that_is_none_is_refused_with_what_is_allowed(text: str) -> None:
    with pytest.raises(HastenError, match=r"--floor .*"):
        parse_floor(text)


def test_floors_read_as_they_are_typed() -> None:
    assert parse_floor("PSNR = 32") == Floor("psnr", 32.0)
    assert str(parse_floor("latent-error=0.02")) == "latent error ≤ 0.02"


def test_a_floor_holds_only_where_the_unlucky_end_of_the_interval_is_above_it() -> None:
    reference = sample()
    steady = judge(Floor("psnr", 39), [(sample(40 + 0.1 * (k % 3)), reference) for k in range(8)])
    assert steady.holds
    scattered = judge(Floor("psnr", 39), [(sample(value), reference) for value in (30, 50, 35, 46)])
    assert scattered.value > 39
    assert not scattered.holds
    assert not judge(Floor("psnr", 39), [(sample(60), reference)]).holds  # one image proves nothing


def test_identical_images_and_ceilings_count_as_they_should() -> None:
    pairs = [(sample(None), sample()), (sample(None), sample())]
    assert judge(Floor("psnr", 99), pairs).holds
    assert judge(Floor("latent_error", 0.03), pairs).holds
    assert not judge(Floor("latent_error", 0.01), pairs).holds


def test_accuracy_counts_scenes_that_the_reference_draws_right() -> None:
    wrong, right = sample(right=False), sample()
    pairs = [(right, right), (wrong, right), (wrong, wrong), (right, right)]
    verdict = judge(Floor("accuracy", 0.9), pairs)
    assert verdict.images == 3
    assert verdict.value == pytest.approx(2 / 3)
    assert not verdict.holds
    with pytest.raises(HastenError, match="only of scenes"):
        judge(Floor("accuracy", 0.9), [(sample(right=None), sample())])


def test_clip_is_held_against_the_references_own_score() -> None:
    pairs = [(sample(clip=27.5 + k % 2), sample(clip=28.0 + k % 2)) for k in range(4)]
    verdict = judge(parse_floor("clip=-0.01"), pairs)
    assert verdict.value == pytest.approx(-0.005)  # of a cosine; scores are hundred times that
    assert verdict.holds
    assert not judge(Floor("clip", -0.004), pairs).holds
    with pytest.raises(HastenError, match="--clip FOLDER"):
        judge(Floor("clip", -0.01), [(sample(), sample(clip=28.0))])


def test_margins_are_in_db_of_error() -> None:
    assert Floor("psnr", 30).margin(32) == 2
    assert Floor("ssim", 0.9).margin(0.95) == pytest.approx(20 * math.log10(2))
    assert Floor("latent_error", 0.02).margin(0.01) == pytest.approx(20 * math.log10(2))


def test_trials_survive_the_disk_and_a_line_that_was_cut_off(tmp_path: Path) -> None:
    log = Log(tmp_path / "trials.jsonl")
    values = {"cache": {"method": "tolerance", "tolerance": 0.01}}
    trial = log.add(Trial(stage="joint", chosen={"cache": "tolerance"}, values=values, samples=(sample(),)))
    with log.path.open("a") as file:
        file.write('{"stage": "joint", "chos')
    again = Log(log.path)
    again.read()
    assert again.trials == [trial]
    assert again.find("joint", {"cache": {"tolerance": 0.01, "method": "tolerance"}}) == trial
    assert again.find("part", values) is None
    again.add(trial)
    third = Log(log.path)
    third.read()
    assert len(third.trials) == 2
    log.path.write_text("nonsense\n" + trial.model_dump_json() + "\n")
    with pytest.raises(HastenError, match=r"trials\.jsonl:1 is no trial"):
        Log(log.path).read()


def test_a_choice_becomes_a_plan() -> None:
    base = load_plan({"generation": {"num_inference_steps": 50}})
    axes = [
        Axis("vae", {"bf16": {"precision": {"vae": "bf16"}}}),
        Axis("layout", {"on": {"attention": {"slicing": 1}}}),
    ]
    points = [Point(50, tuple(range(n)), Forecast(1), 0.01) for n in (8, 12)] + [Point(28, (0, 1), Forecast(0), 0.1)]
    chosen: dict[str, Any] = {"cache": "schedule", "share": 0.22, "steps": 50, "vae": "bf16", "layout": AS_IT_IS}
    values = values_of(chosen, axes, points, base)
    assert values["cache"]["mask"] == [*range(12)]
    assert values["precision"] == {"vae": "bf16"}
    assert "attention" not in values
    assert plan_of(base, values).caches[0].mask == [*range(12)]
    short = values_of({**chosen, "steps": 28}, axes, points, base)
    assert short["generation"] == {"num_inference_steps": 28}
    assert values_of({"cache": "tolerance", "tolerance": 0.01234}, axes, points, base)["cache"]["tolerance"] == 0.012
    assert values_of({"cache": "none"}, axes, points, base) == {}
    assert merged({"a": {"b": 1}}, {"a": {"c": 2}}) == {"a": {"b": 1, "c": 2}}
    own = values_of({"cache": "none", "steps": ADAPTIVE}, axes, points, base)
    assert own == {"adaptive": {"enabled": True}}
    assert plan_of(base, own).adaptive.on
    assert chooses_steps(base)
    assert not chooses_steps(load_plan({"generation": {"num_inference_steps": 12}}))
    assert step_counts(50) == [50, 28, 20]
    assert step_counts(4) == [4]
