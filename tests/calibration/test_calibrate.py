"""`hasten calibrate`: full runs are measured, and found again for the same model, scheduler and adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor, nn

import tiny
from hasten import accelerate
from hasten.caching.patching import CALL
from hasten.calibration import store
from hasten.calibration.key import key_of
from hasten.calibration.measure import measure
from hasten.calibration.store import Calibration, read
from hasten.errors import CacheError, HastenError
from hasten.handle import Handle
from hasten.targets import ports_of

STEPS = 8


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.qwen()


@pytest.fixture(scope="module")
def calibration(pipe: Any) -> Calibration:
    return measure(pipe, lambda run: pipe(**tiny.qwen_call(STEPS, seed=run)), 2)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_HOME", str(tmp_path))
    return tmp_path


def kinds(handle: Handle) -> str:
    return "".join("C" if step.computed else "s" for step in handle.report().steps)


def test_measuring_changes_no_image_and_leaves_nothing_behind(pipe: Any) -> None:
    reference = pipe(**tiny.qwen_call(4)).images
    images: list[Tensor] = []
    measure(pipe, lambda run: images.append(pipe(**tiny.qwen_call(4)).images), 1)
    assert torch.equal(images[0], reference)
    assert all(CALL not in vars(module) for module in pipe.transformer.modules())


def test_ratios_are_what_magcache_publishes(pipe: Any, calibration: Calibration) -> None:
    entered: list[Tensor] = []
    left: list[Tensor] = []
    blocks = pipe.transformer.transformer_blocks
    hooks = [
        blocks[0].register_forward_pre_hook(lambda m, a, k: entered.append(k["hidden_states"]), with_kwargs=True),
        blocks[-1].register_forward_hook(lambda m, a, out: left.append(out[1])),
    ]
    for run in range(2):
        pipe(**tiny.qwen_call(STEPS, seed=run))
    for hook in hooks:
        hook.remove()
    residuals = [after - before for before, after in zip(entered, left, strict=True)]
    expected = torch.zeros(STEPS)
    for run in range(2):
        cond = residuals[run * 2 * STEPS : (run + 1) * 2 * STEPS : 2]
        for step in range(1, STEPS):
            ratio = cond[step].norm(dim=-1) / cond[step - 1].norm(dim=-1)
            expected[step] += ratio.mean().log() / 2
    found = calibration.denoisers["transformer"]["cond"].ratios
    assert found == pytest.approx(expected.exp().tolist(), rel=1e-4)
    assert list(calibration.denoisers["transformer"]) == ["cond", "uncond"]
    assert (calibration.steps, calibration.prompts, calibration.site) == (STEPS, 2, "residual")


def test_the_polynomial_is_fitted_to_the_changes_of_modulated_input_and_output(calibration: Calibration) -> None:
    fit = calibration.denoisers["transformer"]["cond"].fit
    assert fit is not None
    assert 0 < fit.fitted[0] < fit.fitted[1] < 1
    assert 0 <= fit.explained <= 1


def test_what_was_measured_is_found_again_whatever_the_number_of_steps(
    pipe: Any, calibration: Calibration, home: Path
) -> None:
    written = calibration.save()
    assert written.parent == home / "calibrations"
    assert read(written) == calibration
    for steps in (STEPS, 12):
        with accelerate(pipe, "magcache", threshold=1, retention=0, first_enhance=2) as handle:
            pipe(**tiny.qwen_call(steps))
        assert "s" in kinds(handle)
    with accelerate(pipe, "teacache", threshold=1.5) as handle:
        pipe(**tiny.qwen_call(STEPS))
    assert "s" in kinds(handle)


def test_at_the_measured_steps_the_file_says_what_a_plan_would(pipe: Any, calibration: Calibration, home: Path) -> None:
    limits = {"threshold": 0.5, "retention": 0, "first_enhance": 2}
    calibration.save()
    with accelerate(pipe, "magcache", **limits) as handle:
        found = pipe(**tiny.qwen_call(STEPS)).images
    ratios = list(calibration.denoisers["transformer"]["cond"].ratios)
    with accelerate(pipe, "magcache", ratios=ratios, **limits) as by_hand:
        expected = pipe(**tiny.qwen_call(STEPS)).images
    assert kinds(handle) == kinds(by_hand)
    assert torch.equal(found, expected)


@pytest.mark.parametrize(("method", "what"), [("teacache", "polynomial"), ("magcache", "ratios")])
def test_a_method_without_its_figures_says_how_to_get_them(pipe: Any, method: str, what: str) -> None:
    with pytest.raises(CacheError, match=rf"method '{method}' needs .*{what}.*hasten calibrate MODEL.*cache.{what}"):
        accelerate(pipe, method)


def test_another_scheduler_or_another_model_is_another_key(pipe: Any, calibration: Calibration, home: Path) -> None:
    path = calibration.save(home / "mine.json")
    shifted = tiny.qwen(scheduler=FlowMatchEulerDiscreteScheduler(shift=5.0))
    with pytest.raises(CacheError, match=r"mine.json is for another scheduler \(FlowMatch"):
        accelerate(shifted, "magcache", calibration=path)
    other = tiny.qwen(seed=9)
    with pytest.raises(CacheError, match=r"mine.json is for other weights"):
        accelerate(other, "magcache", calibration=path)
    with accelerate(pipe, "magcache", calibration=path) as handle:
        assert handle.active


def test_the_same_weights_in_another_number_format_are_the_same_model(pipe: Any, calibration: Calibration) -> None:
    calibration.save()
    half = tiny.qwen()
    half.transformer.to(torch.bfloat16)
    with accelerate(half, "magcache") as handle:
        assert handle.active


class Adapted(nn.Module):
    """A linear layer with an adapter, as PEFT lays one over it."""

    def __init__(self, base: nn.Module) -> None:
        super().__init__()
        self.base_layer = base
        self.lora_A = nn.ModuleDict({"style": nn.Linear(4, 2)})
        self.active_adapters = ["style"]
        self.scaling = {"style": 0.5}
        self.disable_adapters = False
        self.requires_grad_(False)

    def forward(self, *args: Any) -> Any:
        return self.base_layer(*args)


def test_adapters_that_are_switched_between_calls_switch_the_figures(calibration: Calibration) -> None:
    pipe = tiny.qwen()
    calibration.save()
    with accelerate(pipe, "magcache", threshold=1, retention=0, first_enhance=2) as handle:
        pipe(**tiny.qwen_call(STEPS))
        before = kinds(handle)
        plain = pipe.transformer.proj_out
        pipe.transformer.proj_out = Adapted(plain)
        with pytest.warns(UserWarning, match=r"no calibration of Qwen.*other adapters \(none; here style 0.5"):
            pipe(**tiny.qwen_call(STEPS))
        assert kinds(handle) == "C" * STEPS
        assert "other adapters" in handle.report().notes[0]
        pipe.transformer.proj_out = plain
        pipe(**tiny.qwen_call(STEPS))
        assert kinds(handle) == before
        assert handle.report().notes == ()


@pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
def test_loras_and_ip_adapters_are_in_the_key_with_their_scales() -> None:
    peft = pytest.importorskip("peft", reason="diffusers needs peft for LoRA")
    pipe = tiny.stable_diffusion()
    plain = key_of(pipe, ports_of(pipe))

    def adapters() -> tuple[str, ...]:
        """Those of the key; nothing else in it differs from the plain model's."""
        key = key_of(pipe, ports_of(pipe))
        assert all("other adapters" in difference for difference in plain.differences(key))
        return key.adapters

    pipe.load_ip_adapter(tiny.ip_adapter(pipe.unet), subfolder="", weight_name="", image_encoder_folder=None)
    seen = []
    for scale in (1.0, 0.4, {"down": {"block_0": [0.4]}}):
        pipe.set_ip_adapter_scale(scale)
        (one,) = adapters()
        assert one.startswith("image-prompt-0 ")
        seen.append(one)
    pipe.unload_ip_adapter()
    assert key_of(pipe, ports_of(pipe)) == plain
    for name in ("style", "other"):
        config = peft.LoraConfig(r=2, target_modules=["to_q", "to_v"], init_lora_weights=False)
        pipe.unet.add_adapter(config, name)
    for names, scales in ((["style"], [1.0]), (["style"], [0.5]), (["other"], [1.0]), (["style", "other"], [1.0, 1.0])):
        pipe.unet.set_adapters(names, scales)
        found = adapters()
        assert [one.split()[0] for one in found] == names
        seen.append(" ".join(found))
    assert len(set(seen)) == len(seen)
    pipe.unet.disable_adapters()
    assert adapters() == ()
    pipe.unet.delete_adapters(["style", "other"])
    assert key_of(pipe, ports_of(pipe)) == plain


def test_a_denoiser_without_a_time_embedding_has_ratios_but_no_polynomial() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
            tiny.random_(self, 0)

        def forward(self, sample: Tensor, timestep: Tensor) -> Tensor:
            for block in self.blocks:
                sample = sample + block(sample)
            return sample

    model = Plain()

    def run(number: int) -> None:
        for k in range(6):
            model(tiny.noise(1, 4, seed=number) * (1 + 0.1 * k), torch.tensor(1 - k / 6))

    found = measure(model, run, 2)
    branch = found.denoisers["denoiser"]["0"]
    assert branch.fit is None
    assert len(branch.ratios) == 6
    assert "no polynomial: denoiser (Plain) shows no signal 'modulated'" in found.notes[0]


def test_two_denoisers_are_measured_each_in_its_steps() -> None:
    pipe = tiny.wan()
    found = measure(pipe, lambda run: pipe(**tiny.wan_call(STEPS, seed=run)), 1)
    first, second = (found.denoisers[name]["cond"] for name in ("transformer", "transformer_2"))
    assert len(first.sigmas) + len(second.sigmas) == STEPS
    assert min(first.sigmas) > max(second.sigmas)


def test_files_of_a_later_hasten_may_hold_more(calibration: Calibration, home: Path) -> None:
    path = calibration.save()
    data = json.loads(path.read_text())
    path.write_text(json.dumps(data | {"gram": [[1.0]]}))
    assert read(path).denoisers == calibration.denoisers
    path.write_text(json.dumps(data | {"version": 2}))
    with pytest.raises(HastenError, match="is no calibration: version"):
        read(path)


def test_the_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HASTEN_HOME")
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert store.folder() == Path("/somewhere/hasten/calibrations")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert store.folder() == Path.home() / ".cache" / "hasten" / "calibrations"
