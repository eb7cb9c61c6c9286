"""Samplers by name: they solve what they say, and refuse models of the other family."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

import tiny
from hasten import accelerate
from hasten.errors import HastenError
from hasten.plan import Sampler
from hasten.sampling.catalogue import CATALOGUE
from hasten.sampling.samplers import FlowHeunScheduler, apply_sampler, compatible, is_flow, make_sampler
from passes.states import state


def solve(scheduler, steps: int) -> float:
    """Integrate v(x, σ) = x from x = 1 at σ = 1 down to σ = 0 as a pipeline does; the exact end is exp(-1)."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device="cpu")
    scheduler.set_begin_index(0)
    sample = torch.ones(1, 1, 1, 1)
    for timestep in scheduler.timesteps:
        sample = scheduler.step(sample.clone(), timestep, sample, return_dict=False)[0]
    return abs(sample.item() - float(np.exp(-1)))


def test_heun_is_of_second_order() -> None:
    euler = [solve(FlowMatchEulerDiscreteScheduler(), steps) for steps in (10, 20)]
    heun = [solve(FlowHeunScheduler(), steps) for steps in (10, 20)]
    assert euler[0] / euler[1] == pytest.approx(2, rel=0.1)
    # The last step to zero noise is Euler's, with an error of its own of order 1/steps²: the ratio is 4.
    assert heun[0] / heun[1] == pytest.approx(4, rel=0.15)
    assert heun[0] < euler[0] / 5


def test_heun_calls_twice_on_every_step_but_the_last() -> None:
    scheduler = FlowHeunScheduler()
    scheduler.set_timesteps(4)
    assert len(scheduler.timesteps) == 7
    assert len(scheduler.sigmas) == 8
    assert scheduler.order == 2


@pytest.mark.parametrize("settings", [{"shift": 3.0}, {"use_dynamic_shifting": True}])
def test_heun_visits_the_sigmas_of_euler(settings: dict[str, object]) -> None:
    euler = FlowMatchEulerDiscreteScheduler(**settings)
    heun = FlowHeunScheduler.from_config(euler.config)
    extra = {"mu": 0.8} if "use_dynamic_shifting" in settings else {}
    for scheduler in (euler, heun):
        scheduler.set_timesteps(5, **extra)
    assert torch.equal(heun.sigmas.unique(), euler.sigmas.unique())


def test_heun_forgets_a_run_that_was_cancelled_halfway_through_a_step() -> None:
    scheduler = FlowHeunScheduler()
    expected = solve(scheduler, 6)
    scheduler.set_timesteps(6)
    scheduler.step(torch.full((1,), 9.0), scheduler.timesteps[0], torch.full((1,), 9.0))
    assert solve(scheduler, 6) == expected


def test_heun_returns_what_it_was_given_in_dtype_and_form() -> None:
    scheduler = FlowHeunScheduler()
    scheduler.set_timesteps(3)
    sample = torch.ones(2, dtype=torch.bfloat16)
    result = scheduler.step(sample, scheduler.timesteps[0], sample)
    assert result.prev_sample.dtype is torch.bfloat16


def flow_pipe(**settings: object) -> SimpleNamespace:
    return SimpleNamespace(scheduler=FlowMatchEulerDiscreteScheduler(**settings))


def test_the_default_changes_nothing() -> None:
    pipe = flow_pipe()
    scheduler = pipe.scheduler
    apply_sampler(pipe, Sampler())
    assert pipe.scheduler is scheduler


def test_a_sampler_keeps_the_schedule_of_the_model() -> None:
    pipe = flow_pipe(shift=2.5)
    apply_sampler(pipe, Sampler(name="flow-heun"))
    assert type(pipe.scheduler) is FlowHeunScheduler
    assert pipe.scheduler.config.shift == 2.5


def test_a_shift_that_was_asked_for_wins_over_a_dynamic_one() -> None:
    pipe = flow_pipe(use_dynamic_shifting=True)
    apply_sampler(pipe, Sampler(shift=4.0))
    pipe.scheduler.set_timesteps(sigmas=[1.0, 0.5], mu=0.1)
    assert pipe.scheduler.sigmas[1].item() == pytest.approx(4 * 0.5 / (1 + 3 * 0.5))


def test_a_solver_of_both_families_is_known_by_its_config() -> None:
    flow = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    assert is_flow(flow)
    assert is_flow(FlowMatchHeunDiscreteScheduler())
    assert not is_flow(UniPCMultistepScheduler())
    pipe = SimpleNamespace(scheduler=flow)
    apply_sampler(pipe, Sampler(name="flow-euler"))
    assert pipe.scheduler.config.shift == 3.0


def test_a_flow_sampler_is_refused_on_a_noise_predicting_model() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    with pytest.raises(
        HastenError, match=r"'flow-heun' does not fit: .*DDIMScheduler.*Compatible here: default, ddpm,"
    ):
        apply_sampler(pipe, Sampler(name="flow-heun"))
    with pytest.raises(HastenError, match=r"sampler\.shift does not fit"):
        apply_sampler(pipe, Sampler(shift=2.0))


def test_a_noise_sampler_is_refused_on_a_flow() -> None:
    assert "flow-heun" in (names := compatible(FlowMatchEulerDiscreteScheduler()))
    assert {"unipc", "dpm_solver++"} < set(names)
    with pytest.raises(
        HastenError, match=r"'ddpm' does not fit: .* is of the flow-matching family\. Compatible here: default"
    ):
        apply_sampler(flow_pipe(), Sampler(name="ddpm"))


def test_a_sampler_that_cannot_read_the_models_prediction_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hasten.sampling.samplers.compatible", lambda scheduler: ["ddim"])  # takes seconds
    pipe = SimpleNamespace(scheduler=DDIMScheduler(prediction_type="sample"))
    with pytest.raises(HastenError, match=r"'euler_a' does not fit \(prediction_type not implemented yet: sample\)"):
        apply_sampler(pipe, Sampler(name="euler_a"))


def test_a_setting_that_the_sampler_does_not_have_is_refused_with_those_that_have_it() -> None:
    pipe = SimpleNamespace(scheduler=DDIMScheduler())
    with pytest.raises(
        HastenError, match=r"sampler\.sigmas: DDIMScheduler has no such setting; samplers with it: .*unipc"
    ):
        apply_sampler(pipe, Sampler(name="ddim", sigmas="karras"))


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("DPM++ 2M SDE", "dpm_solver++_2m_sde"),
        ("dpmsolver++-2m", "dpm_solver++"),
        ("Euler Ancestral", "euler_a"),
        ("flow_match_euler", "flow-euler"),
    ],
)
def test_names_are_read_as_they_are_spelt_elsewhere(spelt: str, name: str) -> None:
    assert Sampler(name=spelt).name == name


# The classes of diffusers that a user would set by hand, and with which settings.
BY_HAND: dict[str, tuple[type[Any], dict[str, Any]]] = {
    "ddpm": (diffusers.DDPMScheduler, {}),
    "ddim": (diffusers.DDIMScheduler, {}),
    "pndm": (diffusers.PNDMScheduler, {"skip_prk_steps": True}),
    "lms": (diffusers.LMSDiscreteScheduler, {}),
    "euler": (diffusers.EulerDiscreteScheduler, {}),
    "euler_a": (diffusers.EulerAncestralDiscreteScheduler, {}),
    "heun": (diffusers.HeunDiscreteScheduler, {}),
    "dpm2": (diffusers.KDPM2DiscreteScheduler, {}),
    "dpm2_a": (diffusers.KDPM2AncestralDiscreteScheduler, {}),
    "dpm_solver++": (diffusers.DPMSolverMultistepScheduler, {}),
    "dpm_solver++_1s": (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 1}),
    "dpm_solver++_2s": (diffusers.DPMSolverSinglestepScheduler, {}),
    "dpm_solver++_3s": (diffusers.DPMSolverSinglestepScheduler, {"solver_order": 3}),
    "dpm_solver++_3m": (diffusers.DPMSolverMultistepScheduler, {"solver_order": 3}),
    "dpm_solver++_2m_sde": (diffusers.DPMSolverMultistepScheduler, {"algorithm_type": "sde-dpmsolver++"}),
    "dpm_solver++_3m_sde": (
        diffusers.DPMSolverMultistepScheduler,
        {"algorithm_type": "sde-dpmsolver++", "solver_order": 3},
    ),
    "unipc": (diffusers.UniPCMultistepScheduler, {}),
    "deis": (diffusers.DEISMultistepScheduler, {}),
    "sa_solver": (diffusers.SASolverScheduler, {}),
    "lcm": (diffusers.LCMScheduler, {}),
    "tcd": (diffusers.TCDScheduler, {}),
}
# These evaluate the denoiser between the steps of the training, where the exact noise is not known well enough at the
# lowest noise level, or leave noise in the image: they are only compared with the same set by hand.
INEXACT = ("heun", "dpm2", "dpm2_a", "lcm", "tcd")
NOISE = [name for name, entry in CATALOGUE.items() if entry.noise is not None]
FLOW = [name for name, entry in CATALOGUE.items() if entry.flow is not None]


def run(scheduler: Any, predict: Callable[[Any, Any], Any], steps: int = 8) -> torch.Tensor:
    """What a solver makes of noise, given a denoiser."""
    generator = torch.Generator().manual_seed(0)
    scheduler.set_timesteps(steps)
    sample = torch.randn(1, 1, 4, 4, generator=generator) * float(getattr(scheduler, "init_noise_sigma", 1.0))
    takes = inspect.signature(scheduler.step).parameters
    more = {"generator": generator} if "generator" in takes else {}
    for timestep in scheduler.timesteps:
        scaled = scheduler.scale_model_input(sample, timestep) if hasattr(scheduler, "scale_model_input") else sample
        sample = scheduler.step(predict(scaled, timestep), timestep, sample, **more).prev_sample
    return sample


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny.stable_diffusion()


@pytest.mark.parametrize("name", NOISE)
def test_every_sampler_makes_the_image_that_the_same_scheduler_set_by_hand_makes(name: str, sd: Any) -> None:
    if name == "lms":
        pytest.importorskip("scipy")
    kind, settings = BY_HAND[name]
    scheduler = sd.scheduler
    with accelerate(sd, "none", sampler=name):
        ours = sd(**tiny.stable_diffusion_call(steps=5)).images
    assert sd.scheduler is scheduler
    try:
        sd.scheduler = kind.from_config(scheduler.config, **settings)
        expected = sd(**tiny.stable_diffusion_call(steps=5)).images
    finally:
        sd.scheduler = scheduler
    assert torch.isfinite(ours).all()
    assert torch.equal(ours, expected)


@pytest.mark.parametrize("name", [name for name in NOISE if name not in INEXACT])
def test_every_sampler_finds_the_only_image_there_is(name: str) -> None:
    """Where all data is one image, its noise is known exactly at any point, and every solver has to end at it."""
    if name == "lms":
        pytest.importorskip("scipy")
    old = DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, set_alpha_to_one=False)
    scheduler = make_sampler(old, Sampler(name=name))
    bars = old.alphas_cumprod.double()

    def noise(x: torch.Tensor, timestep: Any) -> torch.Tensor:
        place = float(timestep)
        low, high = bars[int(place)], bars[min(int(place) + 1, 999)]  # some solvers stand between two steps
        bar = torch.exp(torch.lerp(low.log(), high.log(), place % 1))
        return ((x - bar.sqrt() * 0.5) / (1 - bar).sqrt()).float()

    result = run(scheduler, noise)
    assert float((result - 0.5).abs().max()) < 0.15


@pytest.mark.parametrize("name", FLOW)
def test_every_flow_sampler_does_so_on_the_models_own_schedule(name: str) -> None:
    old = FlowMatchEulerDiscreteScheduler(shift=3.0)
    scheduler = make_sampler(old, Sampler(name=name))
    result = run(scheduler, lambda x, timestep: (x - 0.5) / (float(timestep) / 1000))
    assert float((result - 0.5).abs().max()) < 5e-3  # not all of them end at no noise at all
    old.set_timesteps(8)
    assert torch.allclose(scheduler.sigmas.unique(), old.sigmas.unique(), atol=1.1e-3)


def test_higher_orders_solve_flows_better() -> None:
    """v = x: the exact end is exp(-1)."""
    old = FlowMatchEulerDiscreteScheduler()
    errors = {}
    for name in ("flow-euler", "dpm_solver++", "unipc"):
        scheduler = make_sampler(old, Sampler(name=name))
        errors[name] = solve(scheduler, 20)
    assert errors["dpm_solver++"] < errors["flow-euler"] / 3
    assert errors["unipc"] < errors["flow-euler"] / 3


def test_settings_reach_the_scheduler() -> None:
    old = DDIMScheduler(beta_schedule="scaled_linear")
    made = make_sampler(old, Sampler(name="dpm++", sigmas="karras", order=3, final_sigmas="sigma_min"))
    assert (made.config.use_karras_sigmas, made.config.solver_order) == (True, 3)
    assert (made.config.final_sigmas_type, made.config.beta_schedule) == ("sigma_min", "scaled_linear")
    flow = make_sampler(FlowMatchEulerDiscreteScheduler(shift=3.0), Sampler(name="unipc", shift=2.0))
    assert flow.config.flow_schedule["shift"] == 2.0


def test_under_accelerate_the_sampler_is_put_on_and_taken_off() -> None:
    pipe = tiny.stable_diffusion()
    before = state(pipe)
    with accelerate(pipe, "none", sampler="dpm_solver++", num_inference_steps=4) as handle:
        assert type(pipe.scheduler) is DPMSolverMultistepScheduler
        result = pipe(**tiny.stable_diffusion_call(steps=4)).images
        assert "sampler: scheduler: dpm_solver++: DPMSolverMultistepScheduler (was DDIMScheduler)" in str(
            handle.report()
        )
    assert torch.isfinite(result).all()
    assert state(pipe)[:2] == before[:2]


@pytest.mark.parametrize("name", ["dpm_solver++", "unipc", "dpm_solver++_2m_sde"])
def test_a_flow_pipeline_takes_multistep_solvers_cached_or_not(name: str) -> None:
    pipe = tiny.qwen(2, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with accelerate(pipe, interval=2, first_enhance=1, sampler=name) as handle:
        result = pipe(**tiny.qwen_call(steps=6)).images
    assert torch.isfinite(result).all()
    assert handle.report().skipped_steps > 0


def test_a_pipeline_without_scheduler_has_no_sampler() -> None:
    with pytest.raises(HastenError, match="has no scheduler"):
        apply_sampler(SimpleNamespace(), Sampler(name="flow-euler"))
