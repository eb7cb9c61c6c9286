"""The engine on a denoiser of a few lines: fail open, one decision a step, honest books."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.handle import Handle


class Denoiser(nn.Module):
    """Counts its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.calls = 0
        tiny.random_(self, 0)

    def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
        self.calls += 1
        for block in self.blocks:
            sample = block(sample)
        return sample * 2


class Loop:
    """A pipeline of ones own: whatever has a scheduler and a denoiser will do."""

    def __init__(self) -> None:
        self.unet = Denoiser()
        self.scheduler = DDIMScheduler(clip_sample=False)

    def __call__(self, steps: int = 12, batch: Callable[[int], tuple[int, ...]] = lambda k: (1, 1)) -> Tensor:
        """Calls the denoiser once for each batch size that `batch` gives for a step."""
        sample = tiny.noise(1, 4)
        self.scheduler.set_timesteps(steps)
        with torch.no_grad():
            for k, t in enumerate(self.scheduler.timesteps):
                outputs = [self.unet(sample.expand(size, -1), t) for size in batch(k)]
                sample = self.scheduler.step(outputs[0][:1], t, sample).prev_sample
        return sample


def rows(handle: Handle) -> dict[str, tuple[int, int]]:
    return {row.branch: (row.computed, row.skipped) for row in handle.report().branches}


def kinds(handle: Handle) -> str:
    return "".join("C" if step.computed else "s" for step in handle.report().steps)


@pytest.fixture(params=["residual", "output"])
def site(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_anything_with_a_scheduler_and_a_denoiser_is_a_pipeline(site: str) -> None:
    loop = Loop()
    with accelerate(loop, site=site) as handle:
        loop()
    assert kinds(handle) == "CCCsssCsssCC"
    assert rows(handle) == {"0": (6, 6), "1": (6, 6)}


def test_another_batch_size_in_the_middle_costs_a_computed_step(site: str) -> None:
    # Guidance that is switched off half way: two samples, then one.
    loop = Loop()
    with accelerate(loop, "reuse", site=site) as handle:
        loop(batch=lambda k: (2,) if k < 5 else (1,))
    # 5 is computed because of its shape, the others as planned
    assert kinds(handle) == "CCCssCCsssCC"
    assert handle.report().steps[5].reason == "its input has another shape"


def test_a_branch_that_comes_late_is_computed_and_the_others_keep_their_plan(site: str) -> None:
    loop = Loop()
    with accelerate(loop, "reuse", site=site) as handle:
        loop(batch=lambda k: (1,) if k < 4 else (1, 1))
    report = handle.report()
    assert rows(handle) == {"0": (6, 6), "1": (4, 4)}
    assert report.branches[1].reasons["no snapshot of unet yet"] == 1


def test_when_the_first_branch_has_to_compute_the_others_do_too(site: str) -> None:
    loop = Loop()
    with accelerate(loop, "reuse", site=site) as handle:
        loop(batch=lambda k: (1 + (k == 4), 1))
    # At step 4 the first branch has another shape; its partner would have had a snapshot. At step 5 it is back.
    assert [step.computed for step in handle.report().steps[3:7]] == [False, True, True, True]
    assert rows(handle)["0"] == rows(handle)["1"] == (8, 4)


def test_a_run_too_short_to_skip_is_not_even_watched() -> None:
    loop = Loop()
    with accelerate(loop):
        with pytest.warns(UserWarning, match="every step was computed"):
            loop(steps=4)
        assert all("_compiled_call_impl" not in vars(block) for block in loop.unet.blocks)
    assert loop.unet.calls == 8


def test_what_is_never_looked_at_is_not_stored(site: str) -> None:
    loop = Loop()
    with accelerate(loop, "reuse", mask=[0, 1, 2, 3, 7, 8, 9, 10, 11], site=site) as handle:
        loop()
        assert handle.report().snapshot_bytes == 2 * 4 * 4  # one snapshot of four numbers for each branch
    assert kinds(handle) == "CCCCsssCCCCC"


def test_a_report_is_plain_data() -> None:
    loop = Loop()
    with accelerate(loop) as handle:
        assert handle.report().to_dict()["steps"] == ()
        loop()
    data = json.loads(json.dumps(handle.report().to_dict()))
    assert (data["computed"], data["skipped"], data["computed_steps"], data["skipped_steps"]) == (12, 12, 6, 6)
    assert data["branches"][0]["reasons"] == {"warm-up": 3, "interval": 2, "cool-down": 1}
    assert "taylorseer: 6 of 12 steps computed" in repr(handle)


def test_time_is_booked_for_every_call() -> None:
    loop = Loop()
    with accelerate(loop) as handle:
        loop()
    report = handle.report()
    assert all(step.seconds > 0 for step in report.steps)
    assert report.computed_call_seconds is not None
    assert report.skipped_call_seconds is not None


def test_a_denoiser_that_is_called_outside_of_any_run_does_not_pile_up_snapshots() -> None:
    loop = Loop()
    loop.scheduler.set_timesteps(12)
    with accelerate(loop, first_enhance=1, interval=2, order=0) as handle, torch.no_grad():
        for _ in range(200):
            assert loop.unet(tiny.noise(1, 4), torch.tensor(1)) is not None
        assert handle.report().snapshot_bytes <= 64 * 4 * 4


def test_gradients_may_be_on(site: str) -> None:
    model = Denoiser()
    model.requires_grad_(True)
    with accelerate(model, site=site, interval=2) as handle:
        outputs = [model(tiny.noise(1, 4), torch.tensor(1 - k / 8)) for k in range(8)]
    assert kinds(handle) == "CCCsCsCs"
    assert outputs[0].requires_grad


def test_writing_to_a_result_does_not_reach_the_snapshots(site: str) -> None:
    loop = Loop()

    def run() -> list[Tensor]:
        sample, seen = tiny.noise(1, 4), []
        loop.scheduler.set_timesteps(12)
        with torch.no_grad():
            for t in loop.scheduler.timesteps:
                out = loop.unet(sample, t)
                seen.append(out.clone())
                out.mul_(100)
                loop.scheduler.step(out, t, sample)
        return seen

    with accelerate(loop, "reuse", site=site):
        seen = run()
    assert all(torch.allclose(one, seen[0]) for one in seen)


def test_modules_that_steer_a_denoiser_are_not_taken_for_one() -> None:
    pipe: Any = SimpleNamespace(
        unet=Denoiser(), controlnet=Denoiser(), scheduler=DDIMScheduler(), vae=nn.Linear(2, 2), text_encoder=Denoiser()
    )
    with accelerate(pipe):
        assert "_compiled_call_impl" in vars(pipe.unet)
        assert "_compiled_call_impl" not in vars(pipe.controlnet)
        assert "_compiled_call_impl" not in vars(pipe.text_encoder)


ADAPTIVE = {"policy": "compare", "signal": "input", "threshold": 1.0, "first_enhance": 1, "cooldown": 0}


def test_an_adaptive_policy_decides_once_a_step_for_all_branches(site: str) -> None:
    loop = Loop()
    with accelerate(loop, "reuse", site=site, **ADAPTIVE) as handle:
        loop()
    report = handle.report()
    first, second = (rows(handle)[branch] for branch in ("0", "1"))
    assert first == second
    assert first[1] > 0
    assert [step.signal is None for step in report.steps] == [True] + [False] * 11
    # every step tells what was measured, and the threshold parts them
    assert all(step.computed == (step.signal > 1) for step in report.steps if step.signal is not None)
    assert f"signal input (each against 1), at 11 steps: lowest {report.signals[0]:.3g}, 25 %" in str(report)
    assert list(report.to_dict()["signal_quantiles"]) == ["lowest", "25 %", "median", "75 %", "highest"]


def test_the_signal_is_the_change_of_the_latent() -> None:
    model = Denoiser()
    inputs = [tiny.noise(2, 4) * (1 + 0.1 * k) for k in range(4)]
    inputs[2] = inputs[2] + torch.tensor([[0.0], [1.0]])  # only the second sample jumps: it speaks for both
    with accelerate(model, **{**ADAPTIVE, "policy": "accumulate", "threshold": 100}) as handle:
        for k, sample in enumerate(inputs):
            model(sample, torch.tensor(1 - k / 8))
    expected = [max(((b - a).abs().mean(-1) / a.abs().mean(-1)).tolist()) for a, b in pairwise(inputs)]
    assert [step.signal for step in handle.report().steps[1:]] == pytest.approx(expected)


def test_a_threshold_that_nothing_stays_below_is_warned_of() -> None:
    loop = Loop()
    with (
        accelerate(loop, "reuse", **ADAPTIVE | {"threshold": 0.0}) as handle,
        pytest.warns(UserWarning, match=r"the lowest signal was 0\.554, above the threshold of 0"),
    ):
        reference = loop()
    assert kinds(handle) == "C" * 12
    assert torch.equal(reference, loop())


def test_nan_in_the_signal_computes() -> None:
    model = Denoiser()
    with accelerate(model, "reuse", **ADAPTIVE) as handle:
        for k in range(5):
            model(tiny.noise(1, 4) * (float("nan") if k == 2 else 1), torch.tensor(1 - k / 8))
    assert kinds(handle) == "CsCCs"
    assert handle.report().steps[2].reason == "nothing to compare with"


def test_each_run_begins_with_fresh_limits() -> None:
    loop = Loop()
    with accelerate(loop, "reuse", max_total_skips=3, **ADAPTIVE | {"threshold": 10}) as handle:
        for _ in range(2):
            loop()
            assert kinds(handle) == "CsssCCCCCCCC"


def test_branches_may_decide_for_themselves(site: str) -> None:
    loop = Loop()
    with accelerate(loop, "reuse", site=site, branches="own", max_skips=1, **ADAPTIVE | {"threshold": 10}) as handle:
        loop(batch=lambda k: (1,) if k < 4 else (1, 1))
    # the second branch begins four steps later, in the rhythm of its own
    assert rows(handle) == {"0": (6, 6), "1": (4, 4)}


def test_easycache_predicts_what_the_denoiser_adds_to_its_input() -> None:
    model = Denoiser()
    inputs = [tiny.noise(1, 4) * (1 + 0.1 * k) for k in range(4)]
    with accelerate(model, "easycache", first_enhance=2, threshold=10, cooldown=0) as handle:
        outputs = [model(sample, torch.tensor(1 - k / 8)) for k, sample in enumerate(inputs)]
    assert kinds(handle) == "CCss"
    assert torch.allclose(outputs[3], inputs[3] + outputs[1] - inputs[1])
    gain = (outputs[1] - outputs[0]).abs().mean() / (inputs[1] - inputs[0]).abs().mean()
    signal = gain * (inputs[2] - inputs[1]).abs().mean() / outputs[1].abs().mean()
    assert handle.report().steps[2].signal == pytest.approx(float(signal))


@pytest.mark.parametrize("predictor", ["hermite", "ab2", "foca", "chebyshev", "dmd"])
@pytest.mark.parametrize("more", [{}, {"trust": 0.25, "low_order": 0}])
def test_every_predictor_works_at_every_site(site: str, predictor: str, more: dict[str, Any]) -> None:
    loop = Loop()
    reference = loop()
    with accelerate(loop, predictor=predictor, site=site, interval=2, max_amplification=9, **more) as handle:
        result = loop()
    assert kinds(handle) == "CCCsCsCsCsCC"
    assert result.isfinite().all()
    assert not torch.equal(result, reference)
    assert torch.equal(loop(), reference)


def test_two_bands_say_which_frequencies_they_mean() -> None:
    class Picture(Denoiser):
        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            return super().forward(sample.movedim(1, -1), timestep).movedim(-1, 1)

    model = Picture()
    with accelerate(model, "freqca", site="output", interval=2) as handle:
        for k in range(8):
            handle.step(k, total=8)
            assert model(tiny.noise(1, 4, 6, 8), torch.tensor(1.0)).isfinite().all()
    assert "low frequencies of 4 × 6 × 8 values are taken over the 6 × 8 grid" in str(handle.report())
    loop = Loop()
    with accelerate(loop, "freqca", interval=2) as handle:
        loop()
    assert "along the line of tokens (no grid is known)" in str(handle.report())
