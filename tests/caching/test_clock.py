"""The clock knows run, step and sigma from the scheduler, from the timesteps, or by hand."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    UniPCMultistepScheduler,
)

from hasten.caching.clock import Clock, noise_levels

# diffusers 0.42 turns tensors into numpy arrays in a way that numpy 2 deprecates.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SCHEDULERS = {
    "flow-euler": lambda: FlowMatchEulerDiscreteScheduler(shift=3.0),
    "flow-heun": lambda: FlowMatchHeunDiscreteScheduler(shift=3.0),
    "euler": EulerDiscreteScheduler,
    "heun": HeunDiscreteScheduler,
    "ddim": DDIMScheduler,
    "pndm": lambda: PNDMScheduler(skip_prk_steps=True),
    "dpm": DPMSolverMultistepScheduler,
    "unipc": lambda: UniPCMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    "lcm": LCMScheduler,
    "ancestral": EulerAncestralDiscreteScheduler,
}


@pytest.fixture(params=SCHEDULERS)
def scheduler(request: pytest.FixtureRequest) -> Any:
    return SCHEDULERS[request.param]()


def run(scheduler: Any, clock: Clock, timesteps: Any = None, calls: int = 2) -> list[tuple[int, int, float]]:
    """A denoising loop that calls a denoiser `calls` times a step; what the clock says at each call."""
    sample = torch.ones(1, 1, 2, 2)
    seen = []
    for t in scheduler.timesteps if timesteps is None else timesteps:
        for _ in range(calls):
            clock.arrive(t)
            seen.append((clock.run, clock.index, clock.sigma(clock.index)))
        sample = scheduler.step(sample * 0.1, t, sample, return_dict=False)[0]
    return seen


def test_steps_and_sigmas_follow_the_scheduler(scheduler: Any) -> None:
    ended: list[int] = []
    clock = Clock(SimpleNamespace(scheduler=scheduler), on_end=lambda: ended.append(clock.index))
    clock.attach()
    for number, steps in enumerate((7, 5), start=1):
        scheduler.set_timesteps(steps)
        length = len(scheduler.timesteps)
        assert (clock.run, clock.index, clock.total) == (number, 0, length)
        seen = run(scheduler, clock)
        assert [index for _, index, _ in seen] == [step for step in range(length) for _ in range(2)]
        sigmas = [sigma for _, _, sigma in seen]
        assert sigmas == sorted(sigmas, reverse=True) or isinstance(scheduler, PNDMScheduler)
        assert ended == [length]
        ended.clear()
    clock.detach()
    assert not {"step", "set_timesteps", "set_begin_index"} & set(vars(scheduler))


def test_sigmas_are_the_schedulers_own() -> None:
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    flow.set_timesteps(8)
    assert noise_levels(flow)[1] == pytest.approx(flow.sigmas[:-1].tolist())


def test_the_ddpm_family_gets_the_sigmas_of_its_alphas() -> None:
    ddim, euler = DDIMScheduler(), EulerDiscreteScheduler()
    ddim.set_timesteps(10)
    timesteps, sigmas = noise_levels(ddim)
    alphas = ddim.alphas_cumprod
    assert sigmas == pytest.approx([float(((1 - alphas[int(t)]) / alphas[int(t)]) ** 0.5) for t in timesteps])
    euler.set_timesteps(timesteps=[int(t) for t in timesteps])
    assert sigmas == pytest.approx(euler.sigmas[:-1].tolist(), rel=1e-4)


def test_places_are_the_noise_levels_of_the_flow_through_the_same_mixtures() -> None:
    ddim = DDIMScheduler()
    clock = Clock(SimpleNamespace(scheduler=ddim))
    clock.attach()
    ddim.set_timesteps(10)
    for index, timestep in enumerate(ddim.timesteps):
        signal, noise = float(ddim.alphas_cumprod[timestep] ** 0.5), float((1 - ddim.alphas_cumprod[timestep]) ** 0.5)
        assert clock.place(index) == pytest.approx(noise / (signal + noise), rel=1e-4)
    clock.detach()
    flow = FlowMatchEulerDiscreteScheduler(shift=3.0)
    clock = Clock(SimpleNamespace(scheduler=flow))
    clock.attach()
    flow.set_timesteps(10)
    assert [clock.place(index) for index in range(10)] == pytest.approx(flow.sigmas[:-1].tolist())
    clock.detach()
    by_hand = Clock(None)
    by_hand.step(7)
    assert by_hand.place(7) == 7  # a number of a step is no noise level


# Who can be told where it starts, and who has to be found out: DDIM's kind has no way to tell, and Heun's kind, whose
# timesteps are doubled, has to be told.
TELLS = [(name, True) for name in SCHEDULERS if name not in ("ddim", "pndm")]
GUESSED = [(name, False) for name in SCHEDULERS if "heun" not in name]


@pytest.mark.parametrize(("name", "tells"), TELLS + GUESSED)
def test_a_run_that_starts_in_the_middle_knows_where(name: str, tells: bool) -> None:
    scheduler = SCHEDULERS[name]()
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    clock.attach()
    scheduler.set_timesteps(10)
    levels = noise_levels(scheduler)[1]
    begin = 3 if "Heun" in type(scheduler).__name__ else 4
    if tells:
        scheduler.set_begin_index(begin)
    seen = run(scheduler, clock, scheduler.timesteps[begin:], calls=1)
    clock.detach()
    assert clock.total == len(levels) - begin
    # Where the pipeline does not tell, the first step has to be over before the clock can know.
    first = 0 if tells else 1
    assert [sigma for _, _, sigma in seen][first:] == pytest.approx(levels[begin + first :])
    assert clock.sigma(0) == pytest.approx(levels[begin])


def test_heun_calls_each_have_a_step_of_their_own() -> None:
    scheduler = FlowMatchHeunDiscreteScheduler()
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    clock.attach()
    scheduler.set_timesteps(4)
    seen = run(scheduler, clock, calls=1)
    assert clock.total == 7
    assert [index for _, index, _ in seen] == list(range(7))
    sigmas = [sigma for _, _, sigma in seen]
    assert sigmas[1] == sigmas[2] > sigmas[3] == sigmas[4]


def test_an_interrupted_run_leaves_nothing_behind() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler()
    begun: list[int] = []
    clock = Clock(SimpleNamespace(scheduler=scheduler), on_run=lambda: begun.append(1))
    clock.attach()
    scheduler.set_timesteps(6)
    run(scheduler, clock, scheduler.timesteps[:3])
    scheduler.set_timesteps(6)
    assert (clock.index, clock.run) == (0, 2)
    assert [index for _, index, _ in run(scheduler, clock, calls=1)] == list(range(6))
    assert len(begun) == 2


def test_a_loop_that_does_not_set_its_timesteps_anew_begins_a_run_all_the_same() -> None:
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    clock.attach()
    assert [moment[:2] for moment in run(scheduler, clock, calls=1)] == [(1, 0), (1, 1), (1, 2), (1, 3)]
    assert [moment[:2] for moment in run(scheduler, clock, calls=1)] == [(2, 0), (2, 1), (2, 2), (2, 3)]


def test_several_scheduler_steps_for_one_call_are_one_step() -> None:
    scheduler = DDIMScheduler()
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    clock.attach()
    scheduler.set_timesteps(4)
    sample = torch.ones(1, 1, 2, 2)
    for index, t in enumerate(scheduler.timesteps):
        clock.arrive()
        assert clock.index == index
        for _ in range(3):
            scheduler.step(sample, t, sample)


def test_an_exchanged_scheduler_is_followed_and_the_old_one_left_clean() -> None:
    old, new = DDIMScheduler(), FlowMatchEulerDiscreteScheduler()
    pipe = SimpleNamespace(scheduler=old)
    clock = Clock(pipe)
    clock.attach()
    old.set_timesteps(4)
    run(old, clock)
    pipe.scheduler = new
    new.set_timesteps(6)  # before any call of the denoiser: nobody listens yet
    assert [index for _, index, _ in run(new, clock, calls=1)] == list(range(6))
    assert clock.total == 6
    assert not {"step", "set_timesteps", "set_begin_index"} & set(vars(old))
    clock.detach()
    assert not {"step", "set_timesteps", "set_begin_index"} & set(vars(new))


@pytest.mark.parametrize(
    "wrap", [float, torch.tensor, lambda t: torch.full((3,), t), lambda t: torch.tensor([[0.0, t]])]
)
def test_a_bare_denoiser_steps_when_its_timestep_changes(wrap: Any) -> None:
    clock = Clock()
    clock.attach()
    seen = []
    for _ in range(2):
        for t in (1.0, 0.7, 0.4, 0.2):
            for _ in range(3):
                clock.arrive(wrap(t))
                seen.append((clock.run, clock.index))
    assert seen == [(run, step) for run in (1, 2) for step in range(4) for _ in range(3)]
    assert [clock.sigma(k) for k in range(4)] == pytest.approx([1.0, 0.7, 0.4, 0.2])
    assert clock.total is None


def test_a_bare_denoiser_that_is_called_at_one_timestep_over_and_over_runs_anew() -> None:
    clock = Clock()
    for _ in range(50):
        clock.arrive(1.0)
    assert clock.run > 5


def test_a_bare_denoiser_without_timestep_stays_at_its_first_step() -> None:
    clock = Clock()
    clock.arrive(None)
    clock.arrive(None)
    assert (clock.run, clock.index) == (1, 0)


def test_steps_told_by_hand() -> None:
    clock = Clock()
    for repeat in (1, 2):
        for index in range(4):
            clock.step(index, sigma=1 - index / 4, total=4)
            for _ in range(2):
                clock.arrive(torch.tensor(0.5))  # not asked any more
                assert (clock.run, clock.index, clock.total) == (repeat, index, 4)
    assert [clock.sigma(k) for k in range(4)] == [1.0, 0.75, 0.5, 0.25]


def test_steps_told_by_hand_without_sigma_use_their_index() -> None:
    clock = Clock()
    clock.step(0)
    clock.arrive()
    clock.step(3)
    clock.arrive()
    assert (clock.run, clock.index, clock.sigma(3), clock.sigma(0)) == (1, 3, 3.0, 0.0)
