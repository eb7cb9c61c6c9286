"""Runs that choose their own number of steps, on schedulers and on pipelines."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor

import tiny
from hasten import accelerate
from hasten.errors import PassError, PlanError
from hasten.plan import AdaptiveSteps, Sampler, Uncertainty, load_plan
from hasten.sampling.adaptive import Respacer, Rule, Stride, suits
from hasten.sampling.catalogue import CATALOGUE, kind_of
from hasten.sampling.noise import Level, clean_image, denoiser_output, levels_of
from hasten.sampling.samplers import make_sampler
from hasten.sampling.scores import SCORES, Prediction
from hasten.sampling.timesteps import Schedule, Timesteps

FEW = {"warmup_steps": 3, "min_steps": 6, "uncertainty": {"threshold_low": 1e8, "threshold_high": 1e9}}
"""Every run is sure enough for the fewest steps,"""
MANY = {"warmup_steps": 3, "min_steps": 6, "uncertainty": {"threshold_low": 0, "threshold_high": 1e-9}}
"""and none is."""
NOISE = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", steps_offset=1)
FLOW = FlowMatchEulerDiscreteScheduler(shift=3.0)
REFUSED = {"pndm", "heun", "dpm2", "dpm2_a", "flow-heun"} | {f"dpm_solver++_{n}s" for n in (1, 2, 3)}


def built(name: str, family: Any) -> Any:
    pytest.importorskip("scipy") if name == "lms" else None
    return make_sampler(family, Sampler(name=name))  # type: ignore[arg-type]


# --- the timesteps


def test_a_loop_reads_what_the_schedule_has_become() -> None:
    schedule = Schedule(torch.arange(10, 0, -1))
    timesteps = schedule.view()
    seen = []
    for index, timestep in enumerate(timesteps):
        seen.append(int(timestep))
        if index == 2:
            schedule.current = torch.tensor([10, 9, 8, 5, 2])
    assert seen == [10, 9, 8, 5, 2]
    assert len(timesteps) == 5
    assert timesteps[4] == 2


def test_it_is_an_ordinary_tensor_in_all_else() -> None:
    plain = torch.tensor([4.0, 3.0, 2.0, 1.0])
    timesteps = Schedule(plain).view()
    assert type(timesteps + 0) is Tensor
    assert type(timesteps[:2]) is Tensor
    assert type(timesteps.to(torch.float64)) is Tensor
    assert timesteps.shape == (4,)
    assert timesteps.tolist() == [4, 3, 2, 1]
    assert (timesteps == 2).nonzero().item() == 2
    assert torch.equal(copy.deepcopy(timesteps), plain)
    assert type(copy.deepcopy(timesteps)) is Tensor
    assert isinstance(timesteps[1:], Timesteps)
    assert timesteps[1:][1:].tolist() == [2, 1]


# --- predictions and scores


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
@pytest.mark.parametrize("level", [Level(0.6, 0.8), Level(1.0, 7.0)])
def test_the_clean_image_is_what_the_output_means(prediction: str, level: Level) -> None:
    if prediction == "flow_prediction":
        level = Level(0.3, 0.7)
    clean, noise = tiny.noise(2, 3, 4, seed=1), tiny.noise(2, 3, 4, seed=2)
    sample = level.alpha * clean + level.sigma * noise
    output = denoiser_output(clean, sample, level, prediction)
    assert torch.allclose(clean_image(output, sample, level, prediction), clean, atol=1e-4)
    told = Prediction.of(output, sample, level, prediction)
    assert torch.allclose(told.velocity, noise - clean, atol=1e-3)


def predictions(places: list[float], clean_of: Any) -> list[Prediction]:
    noise = tiny.noise(1, 50)
    return [Prediction(u, clean_of(u), noise - clean_of(u)) for u in places]


def test_scores_are_derivatives_over_the_noise_level_whatever_the_steps() -> None:
    base = tiny.noise(1, 50, seed=3)

    def clean(u: float) -> Tensor:
        return base * (1 + 0.5 * u * u)  # second derivative: base

    for places in ([0.9, 0.85, 0.8], [0.95, 0.83, 0.8]):
        last = float((base * (1 + 0.5 * 0.64)).square().mean().sqrt() / base.square().mean().sqrt())
        assert float(SCORES["curvature"](predictions(places, clean))) == pytest.approx(0.64 / 2 / last * 2, rel=0.51)
    even = predictions([0.9, 0.85, 0.8], lambda u: base * (1 - u))
    assert float(SCORES["curvature"](even)) == pytest.approx(0, abs=1e-4)
    assert float(SCORES["solver_order"](even)) == pytest.approx(0.8**2 / 2 / 0.2, rel=1e-4)
    still = predictions([0.9, 0.85, 0.8], lambda u: base)
    for score in SCORES.values():
        assert float(score(still)) == pytest.approx(0, abs=1e-4)


def test_the_least_sure_image_of_a_batch_decides() -> None:
    surely = Uncertainty(threshold_low=0, threshold_high=0.02)
    rule = Rule.of(AdaptiveSteps(warmup_steps=3, min_steps=5, max_steps=20, uncertainty=surely))
    calm, wild = tiny.noise(1, 50, seed=1), tiny.noise(1, 50, seed=2)

    def past(*images: tuple[Tensor, float]) -> list[Prediction]:
        return [
            Prediction(
                u, torch.cat([x * (1 + a * u) for x, a in images]), -torch.cat([x * (1 + a * u) for x, a in images])
            )
            for u in (0.9, 0.8, 0.7)
        ]

    alone = [rule.choose(past(image), 20) for image in ((calm, 0.0), (wild, 9.0))]
    assert alone[0][0] < alone[1][0]
    assert rule.choose(past((calm, 0.0), (wild, 9.0)), 20) == alone[1]


# --- schedulers


@pytest.mark.parametrize("family", [NOISE, FLOW], ids=["noise", "flow"])
@pytest.mark.parametrize("name", CATALOGUE)
def test_each_sampler_is_re_spaced_or_refused_with_its_reason(name: str, family: Any) -> None:
    if kind_of(name, is_flow=family is FLOW) is None:
        return
    scheduler = built(name, family)
    random = torch.random.get_rng_state()
    if name in REFUSED:
        with pytest.raises(PassError, match=rf"{type(scheduler).__name__} cannot be chosen in a run: it"):
            suits(scheduler)
    else:
        assert suits(scheduler)
    assert torch.equal(torch.random.get_rng_state(), random)


def solve(scheduler: Any, steps: int, choose: int | None = None) -> tuple[float, int]:
    """The exact denoiser of N(0, 1/4) turns noise into its samples: their standard deviation, and the steps made."""
    kind, prediction = suits(scheduler)
    respacer = Respacer(scheduler, kind, prediction, 5, lambda past, asked: (choose or asked, 0.0))
    scheduler.set_timesteps(steps)
    level = levels_of(scheduler, kind)[0]
    sample = tiny.noise(1, 1, 32, 32)
    sample = sample / sample.std() * (level.alpha**2 / 4 + level.sigma**2) ** 0.5
    made = 0
    for timestep in scheduler.timesteps:
        level = levels_of(scheduler, kind)[made]
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(sample, timestep)
        clean = sample * level.alpha / 4 / (level.alpha**2 / 4 + level.sigma**2)
        output = denoiser_output(clean, sample, level, prediction)
        sample = scheduler.step(output, timestep, sample, return_dict=False)[0]
        made += 1
    respacer.remove()
    return float(sample.std()), made


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("ddim", NOISE),
        ("euler", NOISE),
        ("dpm_solver++", NOISE),
        ("unipc", NOISE),
        ("flow-euler", FLOW),
        ("dpm_solver++", FLOW),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_re_spaced_run_ends_as_near_to_the_truth_as_its_steps_allow(name: str, family: Any) -> None:
    full, steps = solve(built(name, family), 40)
    assert steps == 40
    fewer, steps = solve(built(name, family), 40, choose=20)
    assert steps == 20
    plain, _ = solve(built(name, family), 20)
    assert full == pytest.approx(0.5, abs=0.06)
    assert abs(fewer - 0.5) <= max(1.3 * abs(plain - 0.5), 0.01)


def test_a_stride_divides_as_it_should_and_counts_as_a_number() -> None:
    assert 1000 // Stride(50, 37) == 37
    assert Stride(50, 37) == 50


@pytest.mark.parametrize(
    ("scheduler", "reason"),
    [
        (PNDMScheduler(skip_prk_steps=True), "its formulas hold for steps of one width"),
        # Its variance is too large for any but the training's steps.
        (DDPMScheduler(variance_type="fixed_large"), "it does not land on its noise levels"),
    ],
    ids=["pndm", "ddpm with fixed_large"],
)
def test_a_scheduler_that_cannot_is_refused(scheduler: Any, reason: str) -> None:
    with pytest.raises(PassError, match=reason):
        suits(scheduler)


# --- pipelines

CASES = {
    "qwen": (tiny.qwen, tiny.qwen_call),
    "stable_diffusion": (tiny.stable_diffusion, tiny.stable_diffusion_call),
    "flux": (tiny.flux, tiny.flux_call),
    "wan": (tiny.wan, tiny.wan_call),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Any]:
    build, call = CASES[request.param]
    return build(2) if request.param == "qwen" else build(), call


@pytest.fixture(scope="module")
def sd() -> Iterator[Any]:
    return tiny.stable_diffusion()


def run(pipe: Any, call: dict[str, Any]) -> tuple[Tensor, list[Tensor], list[float]]:
    """The result, the latents after each step, and the timesteps that the callback was told."""
    latents, timesteps = [], []

    def callback(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        assert index == len(latents)
        latents.append(values["latents"].clone())
        timesteps.append(float(timestep))
        return values

    (result,) = pipe(**call, return_dict=False, callback_on_step_end=callback)[:1]
    return result, latents, timesteps


def figures(handle: Any) -> dict[str, Any]:
    return dict(next(row for row in handle.report().passes if row.name == "adaptive").figures)


def test_a_sure_run_makes_fewer_steps_and_an_unsure_one_is_untouched(case: tuple[Any, Any]) -> None:
    pipe, call = case
    plain, before, timesteps = run(pipe, call(steps=12))
    schedulers = {key for key, value in vars(pipe.scheduler).items() if callable(value)}
    with accelerate(pipe, "none", adaptive=MANY) as handle:
        untouched, *_ = run(pipe, call(steps=12))
        assert figures(handle)["steps"] == figures(handle)["of"] == 12
    assert torch.equal(untouched, plain)
    with accelerate(pipe, "none", adaptive=FEW) as handle:
        result, latents, told = run(pipe, call(steps=12))
        assert {key: figures(handle)[key] for key in ("steps", "of")} == {"steps": 6, "of": 12}
        assert figures(handle)["score"] > 0
    assert len(latents) == 6
    assert told[:4] == timesteps[:4]  # it goes on at the noise level where the warm-up ended
    assert all(a > b for a, b in itertools.pairwise(told))
    assert all(torch.equal(a, b) for a, b in zip(latents[:3], before, strict=False))  # nothing is thrown away
    assert torch.isfinite(result).all()
    assert {key for key, value in vars(pipe.scheduler).items() if callable(value)} == schedulers
    assert type(pipe.scheduler.timesteps) is Tensor
    assert torch.equal(run(pipe, call(steps=12))[0], plain)


def test_every_run_is_chosen_anew(sd: Any) -> None:
    with accelerate(sd, "none", adaptive=FEW) as handle:
        for steps, made in ((12, 6), (8, 6), (20, 6), (3, 3)):
            _, latents, _ = run(sd, tiny.stable_diffusion_call(steps=steps))
            assert len(latents) == made
        assert figures(handle) == {"unchanged": "the run was over before the warm-up"}


def test_image_to_image_counts_from_where_it_begins(sd: Any) -> None:
    pipe = StableDiffusionImg2ImgPipeline(**sd.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)

    def call() -> dict[str, Any]:
        made = tiny.stable_diffusion_call(steps=20, image=tiny.noise(1, 3, 64, 64).sigmoid(), strength=0.5)
        return {key: value for key, value in made.items() if key not in ("height", "width")}

    _, before, timesteps = run(pipe, call())
    assert len(before) == 10
    with accelerate(pipe, "none", adaptive=FEW) as handle:
        _, latents, told = run(pipe, call())
        assert (figures(handle)["steps"], figures(handle)["of"]) == (6, 10)
    assert len(latents) == 6
    assert told[:4] == timesteps[:4]
    assert torch.equal(latents[2], before[2])


def test_the_cache_follows_the_new_schedule(case: tuple[Any, Any]) -> None:
    pipe, call = case
    cache = {"method": "taylorseer", "interval": 2, "first_enhance": 1, "cooldown": 1, "site": "output"}
    with accelerate(pipe, {"adaptive": {**FEW, "min_steps": 8}, "cache": cache}) as handle:
        _, latents, _ = run(pipe, call(steps=20))
        report = handle.report()
    assert len(latents) == len(report.steps) == 8
    assert [step.computed for step in report.steps[:3]] == [True] * 3  # the warm-up is never predicted
    assert report.steps[-1].reason == "cool-down"
    assert report.skipped_steps == 2
    sigmas = [step.sigma for step in report.steps]
    assert all(a > b for a, b in itertools.pairwise(sigmas))
    with accelerate(pipe, {"adaptive": MANY, "cache": {**cache, "interval": 1}}):
        nothing_skipped, *_ = run(pipe, call(steps=12))
    assert torch.equal(nothing_skipped, run(pipe, call(steps=12))[0])


def test_a_loop_over_a_list_of_its_own_is_left_alone_and_told(sd: Any) -> None:
    scheduler = sd.scheduler
    with accelerate(sd, "none", adaptive=FEW) as handle:
        scheduler.set_timesteps(12)
        made = 0
        for timestep in scheduler.timesteps.tolist():
            scheduler.step(torch.ones(1, 4, 2, 2), timestep, torch.ones(1, 4, 2, 2))
            made += 1
        assert made == 12
        assert figures(handle) == {"unchanged": "the pipeline keeps a list of its own of the timesteps"}


def test_an_interrupted_run_leaves_nothing_to_the_next(sd: Any) -> None:
    call = tiny.stable_diffusion_call(steps=12)
    expected, *_ = run(sd, call | {"generator": torch.Generator().manual_seed(0)})

    def stop(pipe: Any, index: int, timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
        raise KeyboardInterrupt

    with accelerate(sd, "none", adaptive=FEW):
        with pytest.raises(KeyboardInterrupt):
            sd(**tiny.stable_diffusion_call(steps=12), callback_on_step_end=stop)
        assert len(run(sd, tiny.stable_diffusion_call(steps=12))[1]) == 6
    assert torch.equal(run(sd, tiny.stable_diffusion_call(steps=12))[0], expected)


def test_with_a_sampler_of_the_plan(sd: Any) -> None:
    before = sd.scheduler
    with accelerate(sd, "none", sampler="dpm_solver++", adaptive=FEW) as handle:
        assert len(run(sd, tiny.stable_diffusion_call(steps=12))[1]) == 6
        assert [row.name for row in handle.report().passes] == ["sampler", "adaptive"]
    assert sd.scheduler is before
    with pytest.raises(PassError, match="HeunDiscreteScheduler cannot be chosen in a run: it calls the denoiser more"):
        accelerate(sd, "none", sampler="heun", adaptive=FEW)
    assert sd.scheduler is before


# --- the plan


@pytest.mark.parametrize(
    ("section", "problem"),
    [
        ({"min_steps": 30, "max_steps": 20}, "adaptive.min_steps: 30 is more than max_steps, 20"),
        ({"max_steps": 60}, "adaptive.max_steps: 60 is more than the run's 50 steps"),
        ({"warmup_steps": 20, "max_steps": 20}, "adaptive.warmup_steps: after a warm-up of 20 steps nothing is left"),
        ({"uncertainty": {"threshold_low": 2, "threshold_high": 1}}, "threshold_high: 1 is not above threshold_low"),
        ({"uncertainty": {"method": "pred_vor"}}, "adaptive.uncertainty.method: must be one of .* mean 'pred_var'"),
        ({"uncertainty": {"metod": "pred_var"}}, "adaptive.uncertainty.metod: unknown key; did you mean 'method'"),
    ],
)
def test_what_cannot_be_is_refused(section: dict[str, Any], problem: str) -> None:
    with pytest.raises(PlanError, match=problem):
        load_plan({"adaptive": section})


def test_a_mask_is_for_one_number_of_steps() -> None:
    with pytest.raises(PlanError, match=r"cache: method 'reuse' with 'mask' is made for one number"):
        load_plan({"adaptive": True, "cache": {"method": "reuse", "mask": [0, 5, 9]}})


def test_the_section_is_off_unless_something_is_said() -> None:
    assert not load_plan().adaptive.on
    assert load_plan({"adaptive": True}).adaptive.on
    assert load_plan(None, ["adaptive.uncertainty.method=curvature"]).adaptive.on
    assert not load_plan({"adaptive": {"enabled": False, "warmup_steps": 5}}).adaptive.on
    assert load_plan({"adaptive": True}).method == "adaptive"
