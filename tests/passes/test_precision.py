"""Number formats: cast as if loaded so, borders in between, and everything back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import prompted
import tiny
from hasten import accelerate, generate, load_plan
from hasten.errors import PassError, PlanError
from hasten.loading import load
from hasten.passes.precision import cast_weights, kept_in_fp32
from passes.states import state


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.qwen(2)


def run(pipe: Any, **more: Any) -> Tensor:
    call = tiny.qwen_call if hasattr(pipe, "transformer") else tiny.stable_diffusion_call
    return pipe(**call(steps=3, **more), return_dict=False)[0]


PLANS = {
    "one for all": {"dtype": "bf16"},
    "the denoiser's own": {"denoiser": "bf16"},
    "the VAE's own": {"vae": "bf16"},
    "stored in fp8": {"denoiser": "fp8"},
    "stored in fp8, computed in bf16": {"dtype": "bf16", "denoiser": "fp8_e5m2"},
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("family", ["sd", "qwen"])
def test_formats_are_put_on_and_taken_off_exactly(family: str, plan: dict[str, str], request: Any) -> None:
    pipe = request.getfixturevalue(family)
    plain = run(pipe, output_type="pt")
    before = state(pipe)
    with accelerate(pipe, "none", precision=plan) as handle:
        result = run(pipe, output_type="pt")
        rows = handle.report().passes
    assert {row.name for row in rows} == {"precision"}
    assert 0 < float((result - plain).norm() / plain.norm()) < 0.3
    assert state(pipe) == before
    assert torch.equal(run(pipe, output_type="pt"), plain)


def test_a_format_that_is_there_already_changes_nothing(sd: Any) -> None:
    plain = run(sd)
    with accelerate(sd, "none", precision="fp32") as handle:
        assert handle.report().passes == ()
        assert torch.equal(run(sd), plain)


def test_the_pipeline_computes_its_steps_in_its_own_format(qwen: Any) -> None:
    with accelerate(qwen, "none", precision={"denoiser": "bf16"}) as handle:
        assert qwen.transformer.dtype is torch.bfloat16
        assert run(qwen).dtype is torch.float32
        (row,) = handle.report().passes
    assert (row.component, row.what) == ("transformer", "bf16 (was fp32)")
    assert row.figures["bytes_after"] == row.figures["bytes_before"] / 2


def test_the_report_says_what_was_done(sd: Any) -> None:
    with accelerate(sd, "none", precision={"unet": "fp8"}) as handle:
        assert "precision: unet: stored as fp8, computed in fp32 (was fp32), 0.2 → 0.1 MiB" in str(handle.report())
    assert handle.report().to_dict()["passes"][0]["component"] == "unet"


def test_a_cache_works_on_formats(qwen: Any) -> None:
    with accelerate(qwen, interval=2, first_enhance=1, precision={"denoiser": "bf16"}) as handle:
        result = qwen(**tiny.qwen_call(steps=6), return_dict=False)[0]
        report = handle.report()
    assert report.skipped_steps > 0
    assert (report.site, report.notes) == ("residual", ())
    assert torch.isfinite(result).all()


def test_a_component_that_is_not_there_is_refused_before_anything_is_touched(sd: Any) -> None:
    before = state(sd)
    with pytest.raises(PassError, match=r"precision\.transformer: StableDiffusionPipeline has no transformer; it has "):
        accelerate(sd, "none", precision={"vae": "bf16", "transformer": "bf16"})
    assert state(sd) == before


def test_a_failure_halfway_leaves_nothing_half_done(sd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = state(sd)
    monkeypatch.setattr("hasten.passes.precision.install_border", lambda part: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        accelerate(sd, "none", precision="bf16")
    assert state(sd) == before


def test_a_wrong_format_is_told_with_those_there_are() -> None:
    with pytest.raises(PlanError, match=r"precision\.vae: must be one of 'fp32', 'fp16', 'bf16', 'fp8'"):
        load_plan({"precision": {"vae": "fp4"}})


def test_what_a_model_keeps_in_fp32_stays_there() -> None:
    module = nn.ModuleDict({"time": nn.Linear(2, 2), "other": nn.Linear(2, 2)})
    module._keep_in_fp32_modules = ["time"]  # type: ignore[assignment]
    module.register_buffer("computed", torch.ones(1), persistent=False)
    module.register_buffer("loaded", torch.ones(1))
    cast_weights(module, torch.bfloat16)
    formats = {name: tensor.dtype for name, tensor in (*module.named_parameters(), *module.named_buffers())}
    assert {name for name, dtype in formats.items() if dtype is torch.float32} == {
        "time.weight",
        "time.bias",
        "computed",
    }


def test_transformers_means_its_list_for_fp16_alone() -> None:
    module = nn.Linear(2, 2)
    module._keep_in_fp32_modules, module._keep_in_fp32_modules_strict = ["wo"], ["gate"]  # type: ignore[assignment]
    names = ["block.wo.weight", "block.gate.weight", "block.wow.weight"]
    assert list(map(kept_in_fp32(module, torch.bfloat16), names)) == [False, True, False]
    assert list(map(kept_in_fp32(module, torch.float16), names)) == [True, True, False]


def test_a_vae_that_overflows_in_fp16_stays_in_fp32(sd: Any) -> None:
    sd.vae.register_to_config(force_upcast=True)
    with accelerate(sd, "none", precision={"vae": "fp16"}) as handle:
        assert sd.vae.dtype is torch.float32
        assert "stays fp32: fp16 was asked for, and this VAE overflows in it" in str(handle.report())


def test_tf32_has_no_effect_without_a_gpu_and_the_report_says_so(sd: Any) -> None:
    with accelerate(sd, "none", precision={"tf32": True}) as handle:
        assert "TF32 on: no effect on cpu" in str(handle.report())


@pytest.mark.gpu
def test_tf32_is_switched_on_and_back() -> None:
    pipe = tiny.stable_diffusion().to("cuda")
    before = torch.backends.cuda.matmul.fp32_precision
    with accelerate(pipe, "none", precision={"tf32": True}):
        assert torch.backends.cuda.matmul.fp32_precision == "tf32"
    assert torch.backends.cuda.matmul.fp32_precision == before


def test_components_are_loaded_in_their_own_formats_and_the_record_says_so(tmp_path: Any) -> None:
    folder = prompted.save(prompted.qwen(), tmp_path / "tiny-qwen", prompted.NATIVE)
    plan = load_plan(
        "taylorseer", model=str(folder), precision={"dtype": "bf16", "vae": "fp32"}, num_inference_steps=6, cooldown=0
    )
    pipe = load(plan)
    assert (pipe.transformer.dtype, pipe.vae.dtype) == (torch.bfloat16, torch.float32)
    result = generate(plan, "a red circle")[0]
    assert result.record.plan.precision.vae == "fp32"
    assert result.record.plan.precision.dtype == "bf16"
    assert result.record.device.dtype == "bfloat16"
    stored = generate(load_plan(plan, precision={"denoiser": "fp8"}), "a red circle", pipe=pipe)[0]
    assert [(row.component, row.name) for row in stored.record.passes] == [("transformer", "precision")]
