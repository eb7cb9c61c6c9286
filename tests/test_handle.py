"""`accelerate` on real diffusers pipelines, small and with random weights."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from diffusers import (
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    StableDiffusionImg2ImgPipeline,
)
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.errors import CacheError, PlanError
from hasten.handle import Handle

CASES = {
    "qwen": (tiny.qwen, tiny.qwen_call),
    "stable_diffusion": (tiny.stable_diffusion, tiny.stable_diffusion_call),
    "flux": (tiny.flux, tiny.flux_call),
    "wan": (tiny.wan, tiny.wan_call),
}


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[Any, Callable[..., dict[str, Any]]]:
    build, call = CASES[request.param]
    return build(), call


def latents(pipe: Any, call: dict[str, Any]) -> Tensor:
    (result,) = pipe(**call, return_dict=False)[:1]
    return result


def close(one: Tensor, other: Tensor) -> float:
    return float((one - other).norm() / other.norm())


def state(pipe: Any) -> list[tuple[str, dict[str, Any]]]:
    """Everything that is an attribute of a module of the pipeline or of its scheduler."""
    found = []
    for name, component in pipe.components.items():
        if isinstance(component, nn.Module):
            found += [(f"{name}.{inner}", dict(vars(module))) for inner, module in component.named_modules()]
    # Runs leave their own traces on a scheduler: only what is callable could be ours.
    return [*found, ("scheduler", {key: value for key, value in vars(pipe.scheduler).items() if callable(value)})]


def kinds(handle: Handle) -> str:
    """The steps of the last run: C computed, s skipped."""
    return "".join("C" if step.computed else "s" for step in handle.report().steps)


# --- nothing is skipped, nothing is left ---


@pytest.mark.parametrize("options", [{"interval": 1}, {"cache": None}, {"mask": list(range(8))}], ids=str)
def test_with_nothing_skipped_the_latents_are_those_of_plain_diffusers(case: Any, options: dict[str, Any]) -> None:
    pipe, call = case
    plain = latents(pipe, call(8))
    with accelerate(pipe, **options) as handle:
        assert torch.equal(latents(pipe, call(8)), plain)
    report = handle.report()
    assert report.skipped == 0
    assert report.computed >= 8
    assert len(report.steps) == 8
    assert report.snapshot_bytes == 0


def test_remove_leaves_no_attribute_and_plain_latents(case: Any) -> None:
    pipe, call = case
    plain = latents(pipe, call(8))
    before = state(pipe)
    handle = accelerate(pipe, interval=3)
    faster = latents(pipe, call(8))
    handle.remove()
    after = state(pipe)
    assert [name for name, _ in before] == [name for name, _ in after]
    for (name, old), (_, new) in zip(before, after, strict=True):
        assert old.keys() == new.keys(), name
        assert all(old[key] is new[key] for key in old if key not in ("_buffers", "_modules", "_parameters")), name
    assert not torch.equal(faster, plain)
    assert torch.equal(latents(pipe, call(8)), plain)
    handle.remove()
    assert not handle.active
    assert torch.equal(latents(pipe, call(8)), plain)


def test_a_handle_leaves_no_attribute_when_the_pipeline_was_never_called() -> None:
    pipe = tiny.qwen()
    before = state(pipe)
    accelerate(pipe).remove()
    assert state(pipe) == before


def test_accelerating_twice_is_refused_until_the_first_is_removed() -> None:
    pipe = tiny.qwen()
    first = accelerate(pipe)
    with pytest.raises(CacheError, match=r"remove\(\)"):
        accelerate(pipe)
    with pytest.raises(CacheError, match=r"remove\(\)"):
        accelerate(pipe.transformer)
    first.remove()
    accelerate(pipe).remove()


def test_a_handle_that_nobody_keeps_still_works_and_goes_with_its_pipeline() -> None:
    pipe = tiny.qwen()
    plain = latents(pipe, tiny.qwen_call(8))
    accelerate(pipe)
    assert not torch.equal(latents(pipe, tiny.qwen_call(8)), plain)
    gone = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert gone() is None


# --- what is put in is right ---


def simulate(
    pipe: Any,
    call: dict[str, Any],
    computed: set[int],
    predict: Callable[[list[Any], list[float], float], Any],
    site: str,
) -> Tensor:
    """The Qwen-Image denoising loop in plain diffusers parts, with predictions put in by hand."""
    transformer, scheduler = copy.deepcopy(pipe.transformer), copy.deepcopy(pipe.scheduler)
    steps = call["num_inference_steps"]
    sample = pipe.prepare_latents(1, 4, tiny.SIZE, tiny.SIZE, torch.float32, "cpu", call["generator"])
    scheduler.set_timesteps(sigmas=torch.linspace(1.0, 1 / steps, steps).tolist())
    history: dict[str, list[tuple[float, Tensor]]] = {"": [], "negative_": []}
    with torch.no_grad():
        for k, t in enumerate(scheduler.timesteps):
            sigma = float(scheduler.sigmas[k])
            outputs = []
            for prefix, known in history.items():
                ends: dict[str, Tensor] = {}
                first, last = transformer.transformer_blocks[0], transformer.transformer_blocks[-1]
                hooks = [
                    first.register_forward_pre_hook(
                        lambda m, a, kw, ends=ends: ends.update({"in": kw["hidden_states"]}), with_kwargs=True
                    ),
                    last.register_forward_hook(lambda m, a, out, ends=ends: ends.update({"out": out[1]})),
                ]
                arguments = {
                    "hidden_states": sample,
                    "timestep": t.expand(1) / 1000,
                    "encoder_hidden_states": call[f"{prefix}prompt_embeds"],
                    "encoder_hidden_states_mask": call[f"{prefix}prompt_embeds_mask"],
                    "img_shapes": [[(1, 2, 2)]],
                }
                if k in computed:
                    output = transformer(**arguments, return_dict=False)[0]
                    known.append((sigma, output if site == "output" else ends["out"] - ends["in"]))
                else:
                    value = predict([y for _, y in known], [tau for tau, _ in known], sigma)
                    output = value
                    if site == "residual":
                        hidden = transformer.img_in(sample)
                        temb = transformer.time_text_embed(t.expand(1) / 1000, hidden)
                        output = transformer.proj_out(transformer.norm_out(hidden + value, temb))
                for hook in hooks:
                    hook.remove()
                outputs.append(output)
            conditional, unconditional = outputs
            guided = unconditional + call["true_cfg_scale"] * (conditional - unconditional)
            guided = guided * (conditional.norm(dim=-1, keepdim=True) / guided.norm(dim=-1, keepdim=True))
            sample = scheduler.step(guided, t, sample, return_dict=False)[0]
    return sample


def straight_line(values: list[Tensor], sigmas: list[float], sigma: float) -> Tensor:
    slope = (values[-1] - values[-2]) / (sigmas[-1] - sigmas[-2])
    return values[-1] + slope * (sigma - sigmas[-1])


@pytest.mark.parametrize("site", ["output", "residual"])
def test_a_skipped_step_is_what_the_formula_says(site: str) -> None:
    pipe, call = tiny.qwen(), tiny.qwen_call(14)
    computed = {0, 1, 2, 5, 8, 11, 13}
    expected = simulate(pipe, tiny.qwen_call(14), computed, straight_line, site)
    with accelerate(pipe, interval=3, site=site, order=1, damping=1, max_amplification=100) as handle:
        result = latents(pipe, call)
    assert {step.index for step in handle.report().steps if step.computed} == computed
    assert close(result, expected) < 1e-5
    assert close(result, latents(pipe, tiny.qwen_call(14))) > 1e-3


def test_reuse_repeats_the_last_value() -> None:
    pipe = tiny.qwen()
    expected = simulate(pipe, tiny.qwen_call(9), {0, 1, 2, 5, 8}, lambda values, *_: values[-1], "output")
    with accelerate(pipe, "reuse", interval=3, site="output"):
        assert close(latents(pipe, tiny.qwen_call(9)), expected) < 1e-6


def test_no_skipped_step_leaves_the_image_as_it_is_when_the_residual_does_not_change() -> None:
    # A stack whose blocks add a constant: reuse of the residual is exact, reuse of the output is not.
    pipe = tiny.qwen()
    for block in pipe.transformer.transformer_blocks:
        block.forward = lambda hidden_states, encoder_hidden_states, **_: (
            encoder_hidden_states * 2,
            hidden_states + 0.1,
        )
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe, "reuse", site="residual") as handle:
        assert close(latents(pipe, tiny.qwen_call(12)), plain) < 1e-5
    assert handle.report().skipped == 12


def test_keeping_more_blocks_running_comes_nearer_to_the_reference() -> None:
    pipe = tiny.qwen(blocks=6)
    plain = latents(pipe, tiny.qwen_call(12))
    errors = []
    for options in ({"site": "residual"}, {"site": "span", "span": (2, 0)}, {"site": "span", "span": (2, 2)}):
        with accelerate(pipe, "reuse", **options) as handle:
            errors.append(close(latents(pipe, tiny.qwen_call(12)), plain))
        assert handle.report().site == options["site"]
    assert errors == sorted(errors, reverse=True)


# --- steps, branches, denoisers ---


def test_the_report_tells_steps_branches_and_bytes() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe, interval=4) as handle:
        assert str(handle.report()) == "no run yet"
        latents(pipe, tiny.qwen_call(12))
        report = handle.report()
    assert kinds(handle) == "CCCsssCsssCC"
    assert (report.computed, report.skipped) == (12, 12)
    assert (report.computed_steps, report.skipped_steps) == (6, 6)
    assert [(row.denoiser, row.branch, row.site) for row in report.branches] == [
        ("transformer", "cond", "residual"),
        ("transformer", "uncond", "residual"),
    ]
    assert report.branches[0].reasons == {"warm-up": 3, "interval": 2, "cool-down": 1}
    # three snapshots of two branches of 4 tokens by 32 channels in float32
    assert report.snapshot_bytes == 3 * 2 * 4 * 32 * 4
    assert report.steps[8].reason == "predicted from 6, 2"  # not from 1, which lies too near to 2
    assert report.steps[7].sigma == pytest.approx(float(pipe.scheduler.sigmas[7]))
    assert report.computed_call_seconds > 0
    assert report.skipped_call_seconds > 0
    assert "6 of 12 steps computed" in str(report)
    assert report.to_dict()["branches"][1]["skipped"] == 6


def test_snapshots_are_freed_when_the_run_is_over() -> None:
    pipe = tiny.qwen()
    handle = accelerate(pipe)
    latents(pipe, tiny.qwen_call(12))
    assert handle.report().snapshot_bytes > 0
    assert not any(layer.nbytes() for layer in handle._stack.layers)
    handle.remove()


def test_calls_under_one_handle_may_differ_in_everything() -> None:
    pipe = tiny.qwen()
    calls: list[dict[str, Any]] = [
        {"steps": 12},
        {"steps": 9},
        {"steps": 12, "batch": 2},
        {"steps": 12, "num_images_per_prompt": 3},
        {"steps": 12, "guided": False},
        {"steps": 12, "height": 64, "width": 48},
        {"steps": 12, "seed": 5},
        {"steps": 12},
    ]
    with accelerate(pipe) as handle:
        together = []
        for options in calls:
            together.append(latents(pipe, tiny.qwen_call(**options)))
            assert handle.report().skipped_steps == {12: 6, 9: 4}[options["steps"]], options
        assert handle.report().runs == len(calls)
    for options, result in zip(calls, together, strict=True):
        with accelerate(pipe):
            assert torch.equal(latents(pipe, tiny.qwen_call(**options)), result), options


def test_an_exception_in_the_middle_and_a_good_run_after_it() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe):
        good = latents(pipe, tiny.qwen_call(12))

    def stop_at(last: int) -> Callable[..., Any]:
        def stop(pipe: Any, step: int, t: Any, values: Any) -> Any:
            if step == last:
                raise KeyboardInterrupt
            return values

        return stop

    with accelerate(pipe) as handle:
        for last in (0, 3, 7):
            with pytest.raises(KeyboardInterrupt):
                latents(pipe, tiny.qwen_call(12, seed=3, callback_on_step_end=stop_at(last)))
            assert torch.equal(latents(pipe, tiny.qwen_call(12)), good)
            assert kinds(handle) == "CCCsssCsssCC"


def test_an_exception_within_a_block_and_a_good_run_after_it() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe):
        good = latents(pipe, tiny.qwen_call(12))
    block = pipe.transformer.transformer_blocks[2]
    for watched in (False, True):
        with accelerate(pipe) as handle:
            if watched:
                latents(pipe, tiny.qwen_call(12))
            hook = block.register_forward_pre_hook(lambda *_: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                latents(pipe, tiny.qwen_call(12))
            hook.remove()
            assert torch.equal(latents(pipe, tiny.qwen_call(12)), good)
            assert handle.report().skipped == 12


def test_an_interrupted_pipeline_is_a_shorter_run() -> None:
    pipe = tiny.qwen()

    def stop(pipe: Any, step: int, t: Any, values: Any) -> Any:
        pipe._interrupt = step == 5
        return values

    with accelerate(pipe) as handle:
        latents(pipe, tiny.qwen_call(12, callback_on_step_end=stop))
        assert kinds(handle) == "CCCsss"
        latents(pipe, tiny.qwen_call(12))
        assert kinds(handle) == "CCCsssCsssCC"


def test_two_handles_on_two_pipelines_of_one_class_do_not_meet() -> None:
    one, two = tiny.qwen(seed=1), tiny.qwen(seed=2)
    alone = []
    for pipe, options in ((one, {"interval": 3}), (two, {"interval": 5, "site": "output"})):
        with accelerate(pipe, **options):
            alone.append(latents(pipe, tiny.qwen_call(12)))
    plain = latents(tiny.qwen(seed=1), tiny.qwen_call(12))
    first, second = accelerate(one, interval=3), accelerate(two, interval=5, site="output")
    assert torch.equal(latents(one, tiny.qwen_call(12)), alone[0])
    assert torch.equal(latents(two, tiny.qwen_call(12)), alone[1])
    first.remove()
    assert torch.equal(latents(one, tiny.qwen_call(12)), plain)
    assert torch.equal(latents(two, tiny.qwen_call(12)), alone[1])
    assert torch.equal(latents(tiny.qwen(seed=1), tiny.qwen_call(12)), plain)
    second.remove()


def test_two_pipelines_that_share_a_scheduler_run_in_turn() -> None:
    scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    one, two = tiny.qwen(seed=1, scheduler=scheduler), tiny.qwen(seed=2, scheduler=scheduler)
    with accelerate(one):
        alone = latents(one, tiny.qwen_call(12))
    first, second = accelerate(one), accelerate(two, interval=5)
    for _ in range(2):
        latents(two, tiny.qwen_call(9))
        assert torch.equal(latents(one, tiny.qwen_call(12)), alone)
    first.remove()
    latents(two, tiny.qwen_call(12))
    assert kinds(second) == "CCCssssCsssC"
    second.remove()
    assert not [value for value in vars(scheduler).values() if callable(value)]


def test_every_denoiser_of_a_pipeline_has_its_own_snapshots() -> None:
    pipe = tiny.wan()
    with accelerate(pipe, interval=3) as handle:
        result = latents(pipe, tiny.wan_call(16))
        report = handle.report()
    first = {row.branch: row for row in report.branches if row.denoiser == "transformer"}
    second = {row.branch: row for row in report.branches if row.denoiser == "transformer_2"}
    assert first.keys() == second.keys() == {"cond", "uncond"}
    assert all(row.skipped > 0 for row in report.branches)
    change = first["cond"].computed + first["cond"].skipped
    assert report.steps[change].computed
    assert result.isfinite().all()


def test_the_first_call_of_a_denoiser_is_computed_even_where_the_plan_would_skip_it() -> None:
    pipe = tiny.wan()
    with accelerate(pipe, mask=[0, 1]) as handle:
        latents(pipe, tiny.wan_call(12))
        report = handle.report()
    reasons = [row.reasons for row in report.branches if row.denoiser == "transformer_2"]
    assert reasons == [{"no snapshot of transformer_2 yet": 1, "cool-down": 1}] * 2


def test_the_same_denoiser_called_three_times_a_step_has_three_branches() -> None:
    pipe = tiny.qwen()
    model = pipe.transformer
    shapes = {"img_shapes": [[(1, 2, 2)]]}
    texts = [tiny.noise(1, tiny.TEXT, 24, seed=k) for k in range(3)]

    def loop(skip_second: Callable[[int], bool] = lambda k: False) -> list[Tensor]:
        sample = tiny.noise(1, 4, 16)
        pipe.scheduler.set_timesteps(12)
        outputs = []
        with torch.no_grad():
            for k, t in enumerate(pipe.scheduler.timesteps):
                for number, text in enumerate(texts):
                    if number == 1 and skip_second(k):
                        continue
                    with model.cache_context(f"pass{number}"):
                        out = model(sample, text, timestep=t.expand(1) / 1000, **shapes).sample
                    outputs.append(out)
                sample = pipe.scheduler.step(out, t, sample).prev_sample
        return outputs

    with accelerate(pipe, "reuse", site="output") as handle:
        outputs = loop()
        assert [row.branch for row in handle.report().branches] == ["pass0", "pass1", "pass2"]
        assert [row.skipped for row in handle.report().branches] == [6, 6, 6]
        # every pass repeats its own value, not that of the call before it
        assert torch.equal(outputs[3 * 3 + 1], outputs[2 * 3 + 1])
        assert not torch.equal(outputs[3 * 3 + 1], outputs[3 * 3])
        # A pass that is left out at some steps does not hand its place to the next one.
        outputs = loop(skip_second=lambda k: k == 3)
        assert torch.equal(outputs[10], outputs[2 * 3 + 2])


def test_calls_without_a_name_are_told_apart_by_their_order() -> None:
    pipe = tiny.qwen()
    model = pipe.transformer
    texts = [tiny.noise(1, tiny.TEXT, 24, seed=k) for k in range(3)]
    with accelerate(pipe, "reuse", site="output") as handle, torch.no_grad():
        sample = tiny.noise(1, 4, 16)
        pipe.scheduler.set_timesteps(8)
        for t in pipe.scheduler.timesteps:
            for text in texts:
                out = model(sample, text, timestep=t.expand(1) / 1000, img_shapes=[[(1, 2, 2)]])
            sample = pipe.scheduler.step(out.sample, t, sample).prev_sample
        assert [row.branch for row in handle.report().branches] == ["0", "1", "2"]


# --- schedulers ---


class OwnSigmas(FlowMatchHeunDiscreteScheduler):
    """Takes the sigmas that QwenImagePipeline hands over, which diffusers' class does not, and uses its own."""

    def set_timesteps(
        self, num_inference_steps: int | None = None, device: Any = None, sigmas: Any = None, mu: float | None = None
    ) -> None:
        super().set_timesteps(len(sigmas), device)


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("which", ["flow", "karras"])
@pytest.mark.parametrize("predictor", ["poly", "taylor"])
def test_solvers_that_call_twice_per_step(which: str, predictor: str) -> None:
    if which == "flow":
        pipe, call = tiny.qwen(scheduler=OwnSigmas(shift=3.0)), tiny.qwen_call(7)
    else:
        pipe, call = (
            tiny.stable_diffusion(scheduler=HeunDiscreteScheduler(steps_offset=1)),
            tiny.stable_diffusion_call(7),
        )
    plain = latents(pipe, copy.deepcopy(call))
    with accelerate(pipe, interval=3, predictor=predictor, order=1) as handle:
        result = latents(pipe, call)
        assert kinds(handle) == "CCCssCssCssCC"
        levels = [step.sigma for step in handle.report().steps]
    assert levels[1] == levels[2]
    assert result.isfinite().all()
    assert 0 < close(result, plain) < 1


@pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept a copy:DeprecationWarning")
@pytest.mark.parametrize("which", ["ddim", "euler"])
def test_image_to_image_starts_in_the_middle(which: str) -> None:
    base = tiny.stable_diffusion(EulerDiscreteScheduler(steps_offset=1) if which == "euler" else None)
    pipe = StableDiffusionImg2ImgPipeline(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = tiny.stable_diffusion_call(20, image=tiny.noise(1, 3, 64, 64).sigmoid(), strength=0.5)
    del call["height"], call["width"]
    with accelerate(pipe, interval=4) as handle:
        latents(pipe, call)
        report = handle.report()
    assert kinds(handle) == "CCCsssCssC"
    sigmas = [step.sigma for step in report.steps]
    everything = sorted(sigmas, reverse=True)
    assert sigmas[1:] == everything[1:] or sigmas == everything
    assert sigmas[-1] < sigmas[3] < 5


def test_an_exchanged_scheduler_is_followed() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe) as handle:
        latents(pipe, tiny.qwen_call(12))
        old, pipe.scheduler = pipe.scheduler, FlowMatchEulerDiscreteScheduler(shift=1.5)
        latents(pipe, tiny.qwen_call(9))
        assert kinds(handle) == "CCCsssCsC"
        new = pipe.scheduler
    for scheduler in (old, new):
        assert not [value for value in vars(scheduler).values() if callable(value)]


# --- sites, limits, refusals ---


class Controlled:
    """Adds a residual between the blocks, as a ControlNet does."""

    def __init__(self, pipe: Any) -> None:
        forward = pipe.transformer.forward
        blocks = len(pipe.transformer.transformer_blocks)

        def controlled(*args: Any, **kwargs: Any) -> Any:
            residuals = [tiny.noise(1, 4, 32, seed=k) for k in range(blocks)]
            return forward(*args, **kwargs, controlnet_block_samples=residuals)

        pipe.transformer.forward = controlled


class Watched:
    """Lets the result depend on what passes between the blocks."""

    def __init__(self, pipe: Any) -> None:
        forward = pipe.transformer.forward
        seen: list[Tensor] = []
        for block in pipe.transformer.transformer_blocks:
            block.register_forward_hook(lambda module, args, output: seen.append(output[1]))

        def watched(*args: Any, **kwargs: Any) -> Any:
            seen.clear()
            (sample,) = forward(*args, **kwargs)
            return (sample + 0.01 * sum(hidden.mean() for hidden in seen),)

        pipe.transformer.forward = watched


def test_residuals_that_are_added_between_the_blocks_are_left_out_with_them() -> None:
    pipe = tiny.qwen(blocks=6)
    Controlled(pipe)
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe, site="residual") as handle:
        result = latents(pipe, tiny.qwen_call(12))
    assert handle.report().skipped == 12
    assert 0 < close(result, plain) < 0.5
    assert torch.equal(latents(pipe, tiny.qwen_call(12)), plain)


def test_where_the_stack_cannot_be_left_out_the_output_is_predicted_and_the_report_says_so() -> None:
    pipe = tiny.qwen(blocks=6)
    Watched(pipe)
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe) as handle:
        result = latents(pipe, tiny.qwen_call(12))
        report = handle.report()
    assert report.site == "output"
    assert report.skipped == 12
    assert any("site output in place of residual" in note for note in report.notes)
    with accelerate(pipe, site="output"):
        assert torch.equal(latents(pipe, tiny.qwen_call(12)), result)
    assert torch.equal(latents(pipe, tiny.qwen_call(12)), plain)


def test_a_site_that_was_asked_for_and_cannot_be_had_is_an_error() -> None:
    pipe = tiny.qwen(blocks=6)
    Watched(pipe)
    with accelerate(pipe, site="residual"), pytest.raises(CacheError, match="allowed here: output"):
        latents(pipe, tiny.qwen_call(12))


def test_a_pipeline_without_denoiser_is_refused() -> None:
    class Pipeline:
        def __init__(self) -> None:
            self.vae = nn.Linear(2, 2)

    with pytest.raises(CacheError, match=r"no denoiser.*vae"):
        accelerate(Pipeline())


def test_a_misspelt_option_is_refused() -> None:
    with pytest.raises(PlanError, match="interval"):
        accelerate(tiny.qwen(), intervall=4)


def test_a_run_that_skips_nothing_warns_once_with_the_reason() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe) as handle:
        with pytest.warns(UserWarning, match=r"skipped nothing.*warm-up"):
            latents(pipe, tiny.qwen_call(4))
        latents(pipe, tiny.qwen_call(4))
        assert handle.report().skipped == 0


@pytest.mark.parametrize(
    ("size", "site", "note"),
    [
        # full: 2 branches x 2 snapshots x 4 tokens x 32 channels x 4 bytes = 2048 bytes
        (2048, "residual", ""),
        (2047, "residual", "fp16"),
        (1023, "output", "site output in place of residual"),
        (511, "output", "1 snapshot per branch"),
    ],
)
def test_the_ceiling_for_snapshots_is_kept_and_what_it_cost_is_said(size: int, site: str, note: str) -> None:
    pipe = tiny.qwen()
    with accelerate(pipe, size=size / 2**20, order=1) as handle:
        for _ in range(2):
            latents(pipe, tiny.qwen_call(12))
            report = handle.report()
            assert report.snapshot_bytes <= size
            assert report.site == site
            assert (note in "; ".join(report.notes)) if note else not report.notes
            assert report.skipped == 12


def test_a_ceiling_with_no_room_at_all_computes_every_step_and_warns() -> None:
    pipe = tiny.qwen()
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe, size=1e-5) as handle, pytest.warns(UserWarning, match="no room"):
        assert torch.equal(latents(pipe, tiny.qwen_call(12)), plain)
    assert "every step is computed" in handle.report().notes[-1]
    assert handle.report().snapshot_bytes == 0


def test_the_ceiling_holds_over_all_denoisers() -> None:
    pipe = tiny.wan()
    with accelerate(pipe, interval=2) as handle:
        latents(pipe, tiny.wan_call(20))
        free = handle.report().snapshot_bytes
    # Room for one denoiser only: the one that is done with makes place.
    with accelerate(pipe, interval=2, size=0.6 * free / 2**20) as handle:
        latents(pipe, tiny.wan_call(20))
        report = handle.report()
    assert report.snapshot_bytes <= 0.6 * free
    assert not report.notes
    assert all(row.skipped for row in report.branches)


@pytest.mark.parametrize("store", ["fp32", "bf16", "fp16"])
def test_snapshots_can_be_stored_in_another_format(store: str) -> None:
    pipe = tiny.qwen()
    with accelerate(pipe) as handle:
        exact, full = latents(pipe, tiny.qwen_call(12)), handle.report().snapshot_bytes
    with accelerate(pipe, store_dtype=store) as handle:
        result = latents(pipe, tiny.qwen_call(12))
    assert handle.report().snapshot_bytes == (full if store == "fp32" else full // 2)
    assert close(result, exact) < {"fp32": 1e-7, "bf16": 0.05, "fp16": 0.01}[store]


def test_bfloat16_models_stay_bfloat16() -> None:
    pipe = tiny.qwen()
    pipe.transformer.to(torch.bfloat16)
    call = tiny.qwen_call(12)
    call = {k: v.bfloat16() if isinstance(v, Tensor) and v.is_floating_point() else v for k, v in call.items()}
    for site in ("residual", "output"):
        with accelerate(pipe, site=site) as handle:
            result = latents(pipe, call)
        assert result.dtype is torch.bfloat16
        assert result.isfinite().all()
        assert handle.report().skipped == 12


def test_a_snapshot_that_overflows_its_number_format_is_not_used() -> None:
    pipe = tiny.qwen()
    pipe.transformer.proj_out.weight.mul_(1e6)
    pipe.transformer.proj_out.bias.mul_(1e6)
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe, site="output", store_dtype="fp16"), pytest.warns(UserWarning, match="NaN or infinity"):
        assert torch.equal(latents(pipe, tiny.qwen_call(12)), plain)


# --- around pipelines ---


def test_a_deep_copy_of_an_accelerated_pipeline_is_plain() -> None:
    pipe = tiny.qwen()
    plain = latents(pipe, tiny.qwen_call(12))
    with accelerate(pipe) as handle:
        latents(pipe, tiny.qwen_call(12))
        twin = copy.deepcopy(pipe)
        runs = handle.report().runs
        assert torch.equal(latents(twin, tiny.qwen_call(12)), plain)
        assert handle.report().runs == runs


def test_weights_are_saved_as_if_nothing_were_on() -> None:
    pipe = tiny.qwen()
    before = list(pipe.transformer.state_dict())
    with accelerate(pipe):
        assert list(pipe.transformer.state_dict()) == before


@pytest.mark.parametrize("offloads_first", [True, False])
def test_offloading_and_accelerate_in_either_order(offloads_first: bool) -> None:
    from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_module

    pipe = tiny.qwen()
    with accelerate(pipe):
        expected = latents(pipe, tiny.qwen_call(12))
    plain = latents(pipe, tiny.qwen_call(12))
    if offloads_first:
        add_hook_to_module(pipe.transformer, ModelHook())
    handle = accelerate(pipe)
    if not offloads_first:
        add_hook_to_module(pipe.transformer, ModelHook())
    for _ in range(2):
        assert torch.equal(latents(pipe, tiny.qwen_call(12)), expected)
        # what pipelines with model offloading do after every call
        remove_hook_from_module(pipe.transformer, recurse=True)
        add_hook_to_module(pipe.transformer, ModelHook())
    handle.remove()
    assert torch.equal(latents(pipe, tiny.qwen_call(12)), plain)
    remove_hook_from_module(pipe.transformer)


def test_blocks_that_are_compiled_keep_their_compiled_call() -> None:
    pipe = tiny.qwen(blocks=2)
    with accelerate(pipe):
        expected = latents(pipe, tiny.qwen_call(8))
    for block in pipe.transformer.transformer_blocks:
        block.compile(backend="eager")
    with accelerate(pipe) as handle:
        assert torch.allclose(latents(pipe, tiny.qwen_call(8)), expected, atol=1e-5)
        assert handle.report().site == "residual"
    assert all(block._compiled_call_impl is not None for block in pipe.transformer.transformer_blocks)


@pytest.mark.parametrize("in_place", [True, False])
def test_a_denoiser_that_is_compiled_as_a_whole_has_its_output_predicted(in_place: bool) -> None:
    pipe = tiny.qwen(blocks=2)
    with accelerate(pipe, site="output"):
        expected = latents(pipe, tiny.qwen_call(8))
    if in_place:
        pipe.transformer.compile(backend="eager")
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    with accelerate(pipe) as handle:
        assert close(latents(pipe, tiny.qwen_call(8)), expected) < 1e-5
        assert handle.report().site == "output"
        assert "compiled as a whole" in handle.report().notes[0]


def test_inference_mode_works_as_no_grad_does() -> None:
    pipe = tiny.qwen()
    with accelerate(pipe) as handle:
        expected = latents(pipe, tiny.qwen_call(12))
        with torch.inference_mode():
            result = latents(pipe, tiny.qwen_call(12))
        assert torch.equal(result, expected)
        assert torch.equal(latents(pipe, tiny.qwen_call(12)), expected)
    assert handle.report().skipped == 12


# --- a bare denoiser ---


def bare_loop(model: Any, handle: Handle | None, how: str, steps: int = 8) -> Tensor:
    sample, text = tiny.noise(1, 4, 16), tiny.noise(1, tiny.TEXT, 24)
    ts = torch.linspace(1, 1 / steps, steps)
    with torch.no_grad():
        for k, t in enumerate(ts):
            if how == "step":
                handle.step(k, sigma=float(t), total=steps)
            given: Any = {"tensor": t[None], "step": t[None], "float": torch.tensor([float(t)])}[how]
            out = model(sample, text, timestep=given, img_shapes=[[(1, 2, 2)]], return_dict=False)[0]
            sample = sample - out / steps
    return sample


@pytest.mark.parametrize("how", ["tensor", "float", "step"])
def test_a_bare_denoiser_works_by_its_timestep_or_by_hand(how: str) -> None:
    model = tiny.qwen_transformer()
    plain = bare_loop(model, None, "tensor")
    with accelerate(model, interval=3) as handle:
        for _ in range(2):
            result = bare_loop(model, handle, how)
            # Nobody knows the length where the timestep alone tells the step: the last one is not forced.
            assert kinds(handle) == ("CCCssCsC" if how == "step" else "CCCssCss")
            assert 0 < close(result, plain) < 0.5
    assert torch.equal(bare_loop(model, None, "tensor"), plain)


class FloatDenoiser(nn.Module):
    """Takes a Python float by position and returns a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.calls = 0

    def forward(self, x: Tensor, t: float) -> Tensor:
        self.calls += 1
        x = x * (1 + t)
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("site", ["residual", "output"])
def test_a_denoiser_of_ones_own_with_a_float_timestep(site: str) -> None:
    model = FloatDenoiser()
    tiny.random_(model, 0)
    x = tiny.noise(2, 6)
    with accelerate(model, interval=4, site=site, damping=1, max_amplification=9) as handle, torch.no_grad():
        outputs = [model(x, 1 - k / 12) for k in range(12)]
    assert kinds(handle) == "CCCsssCsssCs"
    if site == "output":
        assert model.calls == 5
    # What it computes is a straight line in its timestep, and so is the prediction.
    exact = [model(x, 1 - k / 12) for k in range(12)]
    assert all(close(one, other) < 1e-5 for one, other in zip(outputs, exact, strict=True))
