"""The unconditional branch left out: recognised by name, by place or by its batch, and predicted from the other one."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.caching.denoiser import Port
from hasten.caching.guidance import GuidanceSite, low_disc
from hasten.caching.resolving import resolve
from hasten.caching.sites import MisfitError, UnfitError
from hasten.handle import Handle


class Denoiser(nn.Module):
    """Linear in its text, so that guidance's difference is known."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []

    def forward(self, sample: Tensor, timestep: float, text: Tensor) -> Tensor:
        self.calls.append(len(sample))
        return sample * 2 + text


def port() -> Port:
    return enter(Denoiser())


def enter(model: nn.Module) -> Port:
    one = Port("unet", model, lambda args, kwargs: kwargs.get("timestep"))
    one.enter((1, 0))
    return one


def newest(values: tuple[Tensor, ...]) -> Any:
    def predict(slot: int, base: Tensor | None, dtype: torch.dtype) -> Tensor:
        return (values[slot] if base is None else base + values[slot]).to(dtype)

    return predict


X, TEXT = tiny.noise(1, 3, 4, 4), tiny.noise(2, 3, 4, 4, seed=1)
BATCH: dict[str, Any] = {"sample": torch.cat([X, X]), "timestep": 0.5, "text": TEXT}


# --- the site by itself ---


def test_of_a_batch_of_both_only_the_conditional_half_is_computed() -> None:
    one = port()
    site, model = GuidanceSite(one), one.module
    blanks: dict[int, Any] = {}
    result, values = site.compute(model, (), BATCH, blanks, None, keep=True)
    assert torch.allclose(values[0], TEXT[:1] - TEXT[1:], atol=1e-6)
    model.calls.clear()
    again = site.skip(model, (), BATCH, blanks, newest(values))
    assert model.calls == [1]
    assert torch.allclose(again, result, atol=1e-6)
    # The conditional half is that of the skipped step, and the other one follows it.
    moved = {**BATCH, "sample": torch.cat([X + 1, X + 1])}
    assert torch.allclose(site.skip(model, (), moved, blanks, newest(values)), model(**moved), atol=1e-5)
    assert (one.half, one.alone) == (False, True)


def test_a_batch_of_other_samples_is_left_alone() -> None:
    site = GuidanceSite(port())
    assert site.role((), BATCH) == "both"
    others = {**BATCH, "sample": torch.cat([X, X + 1])}
    assert site.role((), others) == "conditional"
    assert site.role((), {**BATCH, "sample": X}) == "conditional"


def test_a_batch_that_cannot_be_halved_is_found_by_trying() -> None:
    class Grid(Denoiser):
        def forward(self, sample: Tensor, timestep: float, text: Tensor) -> Tensor:
            return super().forward(sample, timestep, text) + len(sample)  # depends on the batch

    one = enter(Grid())
    site = GuidanceSite(one)
    with pytest.raises(MisfitError, match="halves") as caught:
        site.compute(one.module, (), BATCH, {}, None, keep=True)
    assert torch.equal(caught.value.result, one.module(**BATCH))


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("cond", "conditional"),
        ("uncond", "unconditional"),
        ("pred_cond", "conditional"),
        ("uncond_stg", "unconditional"),
        ("0", "both"),
        ("cond_uncond", "both"),
    ],
)
def test_branches_are_known_by_their_names(name: str, role: str) -> None:
    one = port()
    one.branch = name
    assert GuidanceSite(one).role((), BATCH) == role


def test_the_unconditional_branch_follows_the_conditional_one_of_its_own_step() -> None:
    one = port()
    site, model = GuidanceSite(one), one.module
    blanks: dict[int, Any] = {}

    def call(rows: slice, shift: float = 0.0) -> dict[str, Any]:
        return {"sample": X + shift, "timestep": 0.5, "text": TEXT[rows]}

    one.branch = "cond"
    site.keep(model(**call(slice(1, 2))))
    one.branch = "uncond"
    _, values = site.compute(model, (), call(slice(0, 1)), blanks, None, keep=True)
    one.moment += 1
    with pytest.raises(UnfitError, match="does not come after"):
        site.skip(model, (), call(slice(0, 1), 1), blanks, newest(values))
    site.keep(model(**call(slice(1, 2), 1)))
    predicted = site.skip(model, (), call(slice(0, 1), 1), blanks, newest(values))
    assert torch.allclose(predicted, model(**call(slice(0, 1), 1)), atol=1e-5)


def test_gains_scale_two_frequency_bands_and_zero_drops_guidance() -> None:
    one = port()
    site, model = GuidanceSite(one), one.module
    blanks: dict[int, Any] = {}
    result, values = site.compute(model, (), BATCH, blanks, None, keep=True)
    given, difference = result[1:], values[0]
    low = low_disc(difference, (4, 4))
    for gains in ((1.0, 1.0), (2.0, 1.0), (1.0, 3.0), (0.0, 0.0)):
        site.gains = gains
        out = site.skip(model, (), BATCH, blanks, newest(values))
        wanted = given + gains[0] * low + gains[1] * (difference - low)
        assert torch.allclose(out[:1], wanted, atol=1e-5)
    assert torch.equal(out[:1], out[1:])


@given(st.integers(3, 12), st.integers(3, 12), st.integers(0, 99))
def test_the_low_band_is_a_projection_onto_the_disc(height: int, width: int, seed: int) -> None:
    value = tiny.noise(1, 2, height, width, seed=seed)
    low = low_disc(value, (height, width))
    assert torch.allclose(low_disc(low, (height, width)), low, atol=1e-5)
    assert torch.allclose(low.mean((-2, -1)), value.mean((-2, -1)), atol=1e-5)
    tokens = value.flatten(2).transpose(1, 2)
    assert torch.allclose(low_disc(tokens, (height, width)), low.flatten(2).transpose(1, 2), atol=1e-5)


def test_tokens_of_which_nobody_knows_how_they_lie_have_no_bands() -> None:
    with pytest.raises(UnfitError, match="lie in space"):
        low_disc(tiny.noise(1, 16, 4), ())


def test_the_factors_apply_once_for_each_skipped_step_in_their_window() -> None:
    settings = resolve({"method": "fastercache", "site": "guidance"})
    assert settings.guidance_gains([500.0]) == pytest.approx((1.1, 1.0))
    assert settings.guidance_gains([400.0, 250.0, 50.0]) == pytest.approx((1.1**2, 1.1**2))
    assert resolve({"method": "tgate", "site": "guidance"}).guidance_gains([800.0, 400.0, 200.0])[0] == 0
    assert resolve({"method": "reuse", "site": "guidance"}).guidance_gains([400.0, 250.0]) == (1, 1)


# --- on pipelines ---


@pytest.fixture(scope="module")
def pipes() -> SimpleNamespace:
    return SimpleNamespace(qwen=tiny.qwen(blocks=2), sd=tiny.stable_diffusion(), wan=tiny.wan())


CALLS = {"qwen": tiny.qwen_call, "sd": tiny.stable_diffusion_call, "wan": tiny.wan_call}
EVERY_THIRD = {"method": "reuse", "site": "guidance", "interval": 3, "first_enhance": 1}


def run(pipes: Any, name: str, steps: int = 9, **more: Any) -> Tensor:
    return getattr(pipes, name)(**CALLS[name](steps, **more), return_dict=False)[0]


def rows(handle: Handle) -> dict[str, tuple[int, int]]:
    return {row.branch: (row.computed, row.skipped) for row in handle.report().branches}


def kinds(report: Any) -> str:
    return "".join("C" if step.computed else "s" for step in report.steps)


@pytest.mark.parametrize("name", CALLS)
def test_with_nothing_skipped_the_latents_are_those_of_plain_diffusers(pipes: Any, name: str) -> None:
    plain = run(pipes, name)
    with accelerate(getattr(pipes, name), cache={**EVERY_THIRD, "interval": 1}):
        assert torch.equal(run(pipes, name), plain)
    with accelerate(getattr(pipes, name), cache=EVERY_THIRD, mask=list(range(9)), interval=None, first_enhance=None):
        assert torch.equal(run(pipes, name), plain)


def test_the_conditional_branch_is_always_computed(pipes: Any) -> None:
    plain = run(pipes, "qwen")
    with accelerate(pipes.qwen, cache=EVERY_THIRD) as handle:
        skipped = run(pipes, "qwen")
    assert rows(handle) == {"cond": (9, 0), "uncond": (4, 5)}
    error = float((skipped - plain).norm() / plain.norm())
    assert 0 < error < 0.2
    assert torch.equal(run(pipes, "qwen"), plain)


def test_in_a_batch_of_both_half_the_samples_are_computed(pipes: Any) -> None:
    sizes: list[int] = []
    hook = pipes.sd.unet.register_forward_pre_hook(lambda module, args: sizes.append(len(args[0])))
    try:
        with accelerate(pipes.sd, cache=EVERY_THIRD) as handle:
            run(pipes, "sd", steps=7)
            run(pipes, "sd", steps=4, batch=2)
    finally:
        hook.remove()
    # The first time, the computed half is computed once more, to see that it is the same.
    assert sizes == [2, 1, 1, 1, 2, 1, 1, 2, *[4, 2, 2, 4]]
    assert rows(handle) == {"0": (2, 2)}


def test_a_pipeline_without_guidance_says_that_there_is_no_such_branch(pipes: Any) -> None:
    with (
        accelerate(pipes.qwen, cache=EVERY_THIRD) as handle,
        pytest.warns(UserWarning, match="no unconditional branch"),
    ):
        run(pipes, "qwen", guided=False)
    assert handle.report().skipped == 0


def test_two_denoisers_have_differences_of_their_own(pipes: Any) -> None:
    with accelerate(pipes.wan, cache={**EVERY_THIRD, "interval": 2}) as handle:
        assert run(pipes, "wan", steps=12).isfinite().all()
    reasons = {row.denoiser: row.reasons for row in handle.report().branches if row.branch == "uncond"}
    assert reasons["transformer_2"]["no snapshot of transformer_2 yet"] == 1


def test_dropping_guidance_is_what_turning_it_off_in_the_middle_gives(pipes: Any) -> None:
    def off(pipe: Any, step: int, timestep: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if step == 2:
            pipe._guidance_scale = 0.0
            kwargs["prompt_embeds"] = kwargs["prompt_embeds"].chunk(2)[1]
        return kwargs

    turned_off = run(pipes, "sd", callback_on_step_end=off, callback_on_step_end_tensor_inputs=["prompt_embeds"])
    with accelerate(pipes.sd, cache={"method": "tgate", "site": "guidance", "gate_step": 3}) as handle:
        dropped = run(pipes, "sd")
    assert kinds(handle.report()) == "CCCssssss"
    assert torch.allclose(dropped, turned_off, atol=1e-5)


# --- with layers within ---


@pytest.mark.parametrize("name", ["qwen", "sd"])
@pytest.mark.parametrize(
    "inner",
    [
        {"method": "taylorseer", "site": "residual", "interval": 4},
        {"method": "taylorseer", "site": "output", "interval": 4},
        {"method": "reuse", "site": "attention", "interval": 2},
    ],
    ids=lambda inner: inner["site"],
)
def test_layers_within_take_the_conditional_rows(pipes: Any, name: str, inner: dict[str, Any]) -> None:
    if name == "sd" and inner["site"] == "residual":
        inner = {**inner, "site": "unet_branch"}
    plain = run(pipes, name, steps=12)
    with accelerate(getattr(pipes, name), cache=[EVERY_THIRD, inner]) as handle:
        both = run(pipes, name, steps=12)
    outer, within = handle.report().layers
    assert kinds(outer) == "CssCssCssCsC"
    assert within.skipped > 0
    if name == "sd":
        # A whole batch is not predicted from halves of it.
        assert "only the conditional half" in " ".join(str(row.reasons) for row in within.branches)
    error = float((both - plain).norm() / plain.norm())
    assert 0 < error < 0.3
    assert torch.equal(run(pipes, name, steps=12), plain)
