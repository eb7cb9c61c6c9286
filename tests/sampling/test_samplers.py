"""Samplers by name: they solve what they say, and refuse models of the other family."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    UniPCMultistepScheduler,
)

from hasten.errors import HastenError
from hasten.plan import Sampler
from hasten.sampling.samplers import FlowHeunScheduler, apply_sampler, compatible, is_flow


def solve(scheduler, steps: int) -> float:
    """Integrate v(x, σ) = x from x = 1 at σ = 1 down to σ = 0 as a pipeline does; the exact end is exp(-1)."""
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device="cpu")
    scheduler.set_begin_index(0)
    sample = torch.ones(1, dtype=torch.float32)
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
    assert compatible(pipe.scheduler) == ["default"]
    with pytest.raises(HastenError, match=r"'flow-heun' does not fit: .*DDIMScheduler.*Compatible here: default"):
        apply_sampler(pipe, Sampler(name="flow-heun"))
    with pytest.raises(HastenError, match=r"sampler\.shift does not fit"):
        apply_sampler(pipe, Sampler(shift=2.0))


def test_a_pipeline_without_scheduler_has_no_sampler() -> None:
    with pytest.raises(HastenError, match="has no scheduler"):
        apply_sampler(SimpleNamespace(), Sampler(name="flow-euler"))
