"""What the scheduler is given, followed and corrected: on schedulers with made-up outputs, then on a tiny pipeline."""

from __future__ import annotations

from collections.abc import Sequence
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
    UniPCMultistepScheduler,
)
from torch import Tensor

from hasten import accelerate
from hasten.caching.clock import Clock, noise_levels, places_of
from hasten.caching.effects import effects_of
from hasten.caching.ledger import Ledger, integral
from hasten.caching.predictors import poly
from hasten.caching.tolerance import Shown
from tiny import qwen, qwen_call

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")

SCHEDULERS = [
    FlowMatchEulerDiscreteScheduler(shift=3.0),
    EulerDiscreteScheduler(),
    DDIMScheduler(clip_sample=False, prediction_type="v_prediction", rescale_betas_zero_snr=True),
    DPMSolverMultistepScheduler(),
    UniPCMultistepScheduler(),
]
STEPS = 16
MASK = (0, 1, 2, 5, 9, 12, 14, 15)


def integrate(
    scheduler: Any, outputs: Sequence[Tensor], mask: Sequence[int] | None, *, corrects: bool
) -> tuple[Tensor, list[Shown]]:
    """A run whose outputs do not depend on the latent; those of skipped steps are straight lines."""
    clock = Clock(SimpleNamespace(scheduler=scheduler))
    clock.attach()
    ledger = Ledger(clock, corrects=corrects, shows=True, share=1.0)
    shown = []

    def on_output(output: Tensor, latent: Tensor) -> Tensor:
        given, seen = ledger.see(output, latent, mask is None or clock.index in mask)
        shown.extend([seen] if seen is not None else [])
        return given

    clock.on_output = on_output
    try:
        scheduler.set_timesteps(len(outputs))
        latent = torch.ones_like(outputs[0])
        places = [clock.place(step) for step in range(len(outputs))]
        for index, timestep in enumerate(scheduler.timesteps):
            clock.arrive()
            output = outputs[index]
            if mask is not None and index not in mask:
                anchors = [step for step in reversed(mask) if step < index][:2]
                weights = poly([places[step] for step in anchors], places[index], 1)
                output = sum(
                    (weight * outputs[step] for weight, step in zip(weights, anchors, strict=False)),
                    torch.zeros_like(latent),
                )
            latent = scheduler.step(output, timestep, latent, return_dict=False)[0]
    finally:
        clock.detach()
    return latent, shown


def curve(scheduler: Any, degree: int, steps: int = STEPS) -> list[Tensor]:
    """A polynomial in the place of each step, with other coefficients for each element."""
    scheduler.set_timesteps(steps)
    sigmas = noise_levels(scheduler)[1]
    places = places_of(sigmas, max(sigmas))
    coefficients = torch.randn(degree + 1, 1, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    return [sum((c * x**i for i, c in enumerate(coefficients)), torch.zeros(())) for x in places]


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: type(one).__name__)
def test_a_correction_makes_quadratic_outputs_exact_whatever_stood_in(scheduler: Any) -> None:
    outputs = curve(scheduler, 2)
    reference, _ = integrate(scheduler, outputs, None, corrects=True)
    plain, _ = integrate(scheduler, outputs, MASK, corrects=False)
    corrected, _ = integrate(scheduler, outputs, MASK, corrects=True)
    error, left = (float((one - reference).norm() / reference.norm()) for one in (plain, corrected))
    assert left < 1e-4
    assert error > 20 * left


@pytest.mark.parametrize("scheduler", SCHEDULERS, ids=lambda one: type(one).__name__)
def test_effects_are_those_of_the_run_itself(scheduler: Any) -> None:
    """The last latent is what the first one becomes, and what each output adds."""
    outputs = curve(scheduler, 3)
    final, _ = integrate(scheduler, outputs, None, corrects=False)
    scheduler.set_timesteps(STEPS)
    effects = effects_of(scheduler, (STEPS,))
    sum_ = sum((a * y for a, y in zip(effects.outputs, outputs, strict=True)), torch.zeros_like(final))
    assert torch.allclose(final, effects.latents[0] + sum_, rtol=1e-3, atol=1e-4)


def test_noise_is_followed_where_it_can_be_repeated_and_nobodys_random_numbers_are_used() -> None:
    scheduler = EulerAncestralDiscreteScheduler()
    torch.manual_seed(3)
    before = torch.get_rng_state()
    scheduler.set_timesteps(6)
    first, second = (effects_of(scheduler, (6,)) for _ in range(2))
    assert first.outputs == pytest.approx(second.outputs, rel=1e-4)
    assert torch.equal(before, torch.get_rng_state())


def test_a_computed_step_shows_differences_to_those_before_and_the_final_size() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    outputs = curve(scheduler, 2)
    final, shown = integrate(scheduler, outputs, None, corrects=False)
    seen = shown[3]
    differences = [outputs[k] - outputs[3] for k in (2, 1, 0)]
    assert seen.products[0][2] == pytest.approx(float((differences[0] * differences[2]).mean()), rel=1e-4)
    assert shown[-1].size == pytest.approx(float(final.square().mean().sqrt()), rel=1e-4)
    assert len(shown[0].products) == 0


def test_a_scheduler_that_cannot_be_followed_is_left_alone_and_said() -> None:
    class Odd(FlowMatchEulerDiscreteScheduler):
        def step(self, model_output: Any, timestep: Any, sample: Any, **more: Any) -> Any:
            if sample.shape[1:] == (1, 1, 1):
                raise RuntimeError("pictures only")
            return super().step(model_output, timestep, sample, **more)

    clock = Clock(SimpleNamespace(scheduler=Odd()))
    clock.attach()
    clock._scheduler.set_timesteps(4)
    ledger = Ledger(clock, corrects=True, shows=True)
    output = torch.ones(1, 2, 4, 4)
    assert ledger.see(output, output, computed=True) == (output, None)
    assert "Odd cannot be followed on numbers: pictures only" in ledger.note


def test_the_weights_of_an_integral_sum_to_that_of_the_effects() -> None:
    assert sum(integral([0, 1, 2, 4, 7], [1, 2, 3, 4, 5], [1, 2, 3], [4, 0])) == pytest.approx(9)
    assert integral([0, 1], [1, 1], [], [1, 0]) == (0, 0)


class TestOnAPipeline:
    def latents(self, pipe: Any, **more: Any) -> Tensor:
        latents: Tensor = pipe(**qwen_call(steps=10, **more)).images
        return latents

    def test_with_nothing_skipped_nothing_is_changed(self) -> None:
        pipe = qwen(blocks=2)
        plain = self.latents(pipe)
        with accelerate(pipe, {"cache": {"method": "taylorseer", "interval": 1, "correct": True}}):
            assert torch.equal(self.latents(pipe), plain)
        assert torch.equal(self.latents(pipe), plain)
        assert "step" not in vars(pipe.scheduler)

    @pytest.mark.parametrize("site", ["output", "residual"])
    def test_it_goes_with_any_site_and_is_taken_off_again(self, site: str) -> None:
        pipe = qwen(blocks=2)
        plain = self.latents(pipe)
        found = []
        for correct in (None, False, True):
            cache = {"method": "reuse", "site": site, "mask": [0, 3, 6, 9], "correct": correct}
            with accelerate(pipe, {"cache": cache}) as handle:
                found.append(self.latents(pipe))
            assert handle.report().computed_steps == 4
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[1], found[2])
        assert torch.equal(self.latents(pipe), plain)

    def test_a_second_run_owes_nothing_to_the_first(self) -> None:
        pipe = qwen(blocks=2)
        with accelerate(pipe, {"cache": {"method": "reuse", "interval": 3, "first_enhance": 1, "correct": True}}):
            first = self.latents(pipe)
            with pytest.raises(RuntimeError):
                pipe(**qwen_call(steps=10, callback_on_step_end=_stop))
            assert torch.equal(self.latents(pipe), first)


def _stop(pipe: Any, index: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
    if index == 4:
        raise RuntimeError("stopped")
    return tensors
