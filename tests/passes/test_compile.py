"""Compilation: by blocks or as a whole, counted, cached beside, and taken off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

import tiny
from hasten import accelerate
from hasten.errors import CacheError, PassError
from hasten.passes.compile import blocks_of, options
from hasten.plan.speed import Compile
from passes.states import state

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*:UserWarning:torch"),
    pytest.mark.filterwarnings("ignore:.torch.jit.:DeprecationWarning"),  # inductor's own
]


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch.compiler.reset()  # what tests of other files compiled, too
    yield
    torch.compiler.reset()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.qwen(4)


def figures(handle: Any) -> dict[str, Any]:
    return dict(handle.report().passes[0].figures)


def test_equal_blocks_are_compiled_once_and_never_again_at_a_fixed_shape(qwen: Any) -> None:
    plain = qwen(**tiny.qwen_call(steps=3, guided=False)).images
    before = state(qwen)
    with accelerate(qwen, "none", compile={"backend": "eager"}) as handle:
        result = qwen(**tiny.qwen_call(steps=3, guided=False)).images
        first = figures(handle)
        qwen(**tiny.qwen_call(steps=3, guided=False, seed=1))
        assert figures(handle) == first
        assert "compile: transformer: 4 blocks, each by itself (eager)" in str(handle.report())
    assert first["compilations"] >= 1
    assert first["graph_breaks"] == 0
    assert first["recompilations"] <= 1  # fewer than there are blocks
    assert torch.allclose(result, plain, atol=1e-4)
    assert state(qwen) == before


@pytest.mark.parametrize(("scope", "site"), [("blocks", "residual"), ("blocks", "span"), ("model", "output")])
def test_skipped_steps_run_no_compiled_code(qwen: Any, scope: str, site: str) -> None:
    call = {"steps": 6, "guided": False}
    with accelerate(qwen, "reuse", interval=2, first_enhance=1, site=site):
        expected = qwen(**tiny.qwen_call(**call)).images
    settings = {"scope": scope, "backend": "eager"}
    with accelerate(qwen, "reuse", interval=2, first_enhance=1, site=site, compile=settings) as handle:
        qwen(**tiny.qwen_call(**call))
        warm = figures(handle)
        result = qwen(**tiny.qwen_call(**call)).images
        report = handle.report()
        assert figures(handle) == warm
    assert (report.site, report.notes) == (site, ())
    assert report.skipped_steps >= 2
    assert torch.allclose(result, expected, atol=1e-4)


def test_a_whole_model_has_its_output_predicted_where_no_site_was_asked_for(qwen: Any) -> None:
    with accelerate(qwen, interval=2, first_enhance=1, compile={"scope": "model", "backend": "eager"}) as handle:
        qwen(**tiny.qwen_call(steps=5, guided=False))
        assert handle.report().site == "output"
        assert any("compiled as a whole" in note for note in handle.report().notes)


def test_the_decoder_can_be_compiled_too() -> None:
    pipe = tiny.stable_diffusion()
    with accelerate(pipe, "none", compile={"compile_vae": True, "backend": "eager"}) as handle:
        assert {row.component for row in handle.report().passes} == {"pipeline", "unet", "vae"}


def test_what_is_off_stays_off(qwen: Any) -> None:
    with accelerate(qwen, "none", compile={"enabled": False, "mode": "max-autotune"}) as handle:
        assert handle.report().passes == ()


def test_settings_reach_torch() -> None:
    assert options(Compile(mode="max-autotune", fullgraph=True)) == {
        "backend": "inductor",
        "mode": "max-autotune",
        "fullgraph": True,
        "dynamic": None,
    }
    both = options(Compile(mode="max-autotune", inductor="diffusers", dynamic=False))
    assert "mode" not in both
    assert both["options"]["conv_1x1_as_mm"]
    assert both["options"]["max_autotune"]


def test_a_compiler_that_is_not_there_is_refused(qwen: Any) -> None:
    with pytest.raises(PassError, match=r"compile\.backend: torch has no 'inductr' here; it has .*inductor"):
        accelerate(qwen, "none", compile={"backend": "inductr"})


def test_blocks_are_those_that_the_model_names_or_its_lists(qwen: Any) -> None:
    assert blocks_of(qwen.transformer) == list(qwen.transformer.transformer_blocks)
    names = {type(block).__name__ for block in blocks_of(tiny.stable_diffusion().unet)}
    assert names == {"BasicTransformerBlock"}


@pytest.mark.slow
def test_inductor_computes_the_same_image_and_finds_its_code_again(qwen: Any, tmp_path: Any) -> None:
    plain = qwen(**tiny.qwen_call(steps=3, guided=False)).images
    found = []
    for _ in range(2):
        with accelerate(qwen, "none", compile={"fullgraph": True, "cache_dir": str(tmp_path)}) as handle:
            result = qwen(**tiny.qwen_call(steps=3, guided=False)).images
            found.append(figures(handle))
            qwen(**tiny.qwen_call(steps=3, guided=False, seed=1))
            assert figures(handle) == found[-1]
        assert torch.allclose(result, plain, atol=1e-3)
        torch.compiler.reset()
    assert [one["from_cache"] > 0 for one in found] == [False, True]
    assert all((one["recompilations"], one["graph_breaks"]) == (0, 0) for one in found)


@pytest.mark.slow
def test_inductor_takes_weights_for_constants_of_each_model_its_own() -> None:
    for seed in (1, 2):
        pipe = tiny.qwen(1, seed=seed)
        plain = pipe(**tiny.qwen_call(steps=2, guided=False)).images
        with accelerate(pipe, "none", compile={"scope": "model", "inductor": "freezing"}) as handle:
            result = pipe(**tiny.qwen_call(steps=2, guided=False)).images
            assert "flags of freezing" in str(handle.report())
        assert torch.allclose(result, plain, atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "scope", "site"),
    [
        ("qwen", "model", "output"),
        *(("qwen", "blocks", site) for site in ("output", "residual", "span", "block")),
        *(("unet", "blocks", site) for site in ("output", "unet_branch")),
    ],
)
def test_every_site_skips_beside_inductors_code(qwen: Any, family: str, scope: str, site: str) -> None:
    pipe = qwen if family == "qwen" else tiny.stable_diffusion()

    def image() -> torch.Tensor:
        call = tiny.qwen_call(steps=6, guided=False) if family == "qwen" else tiny.stable_diffusion_call(steps=6)
        return torch.as_tensor(pipe(**call).images)

    cache = {"interval": 2, "first_enhance": 1, "site": site}
    with accelerate(pipe, "reuse", **cache):
        expected = image()
    with accelerate(pipe, "reuse", **cache, compile={"scope": scope}) as handle:
        image()
        warm = figures(handle)
        result = image()
        assert figures(handle) == warm  # nothing compiled anew, nothing broken
        assert handle.report().skipped_steps >= 2
    assert torch.allclose(result, expected, atol=1e-3)


@pytest.mark.parametrize("site", ["attention", "feed_forward"])
def test_within_compiled_blocks_nothing_can_be_left_out(qwen: Any, site: str) -> None:
    with (
        accelerate(qwen, "reuse", interval=2, first_enhance=1, site=site, compile={"backend": "eager"}),
        pytest.raises(CacheError, match=r"transformer_blocks\.0 is compiled, so that modules within it cannot"),
    ):
        qwen(**tiny.qwen_call(steps=3, guided=False))


@pytest.mark.slow
@pytest.mark.parametrize(
    "settings",
    [{"dynamic": True}, {"mode": "max-autotune-no-cudagraphs"}, {"mode": "reduce-overhead"}, {"inductor": "diffusers"}],
    ids=str,
)
def test_settings_of_inductor_change_the_code_and_not_the_image(qwen: Any, settings: dict[str, Any]) -> None:
    call = {"steps": 2, "guided": False}
    plain = qwen(**tiny.qwen_call(**call)).images
    with accelerate(qwen, "none", compile=settings) as handle:
        result = qwen(**tiny.qwen_call(**call)).images
        assert figures(handle)["graph_breaks"] == 0
        if "dynamic" in settings:  # another size needs no other code
            before = figures(handle)["compilations"]
            qwen(**tiny.qwen_call(**call, height=2 * tiny.SIZE))
            assert figures(handle)["compilations"] == before
    assert torch.allclose(result, plain, atol=1e-3)


@pytest.mark.slow
def test_inductor_compiles_the_decoder() -> None:
    pipe = tiny.stable_diffusion()
    plain = pipe(**tiny.stable_diffusion_call(steps=2, output_type="pt")).images
    with accelerate(pipe, "none", compile={"compile_vae": True}):
        assert torch.allclose(pipe(**tiny.stable_diffusion_call(steps=2, output_type="pt")).images, plain, atol=1e-3)


def test_blocks_that_share_compiled_code_have_no_constants(qwen: Any) -> None:
    with pytest.raises(PassError, match=r"compile\.inductor: freezing makes constants of weights.*take scope: model"):
        accelerate(qwen, "none", compile={"inductor": "freezing"})


def test_a_denoiser_can_be_traced(qwen: Any) -> None:
    plain, before = qwen(**tiny.qwen_call(steps=3)).images, state(qwen)
    with accelerate(qwen, "none", compile={"backend": "trace"}) as handle:
        result = qwen(**tiny.qwen_call(steps=3)).images
        other = qwen(**tiny.qwen_call(steps=3, seed=5)).images
        (row,) = handle.report().passes
    assert (row.component, row.what, row.figures["traces"]) == ("transformer", "traced as a whole", 2)  # two branches
    assert torch.allclose(result, plain, atol=1e-4)
    assert state(qwen) == before
    assert torch.allclose(other, qwen(**tiny.qwen_call(steps=3, seed=5)).images, atol=1e-4)


def test_a_unet_can_be_traced_and_its_output_cached() -> None:
    pipe = tiny.stable_diffusion()
    call = {"steps": 6}
    with accelerate(pipe, "reuse", interval=2, first_enhance=1, site="output"):
        expected = pipe(**tiny.stable_diffusion_call(**call)).images
    with accelerate(pipe, "reuse", interval=2, first_enhance=1, compile={"backend": "trace"}) as handle:
        result = pipe(**tiny.stable_diffusion_call(**call)).images
        report = handle.report()
    assert report.site == "output"
    assert report.skipped_steps >= 2
    assert torch.allclose(result, expected, atol=1e-4)


class Deciding(nn.Module):
    """Takes another way for large numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        return self.layer(x) if float(timestep) > 499 else x


def test_what_decides_by_values_is_not_traced() -> None:
    model = Deciding().eval()
    with (
        accelerate(model, "none", compile={"backend": "trace"}),
        pytest.raises(PassError, match=r"what was traced of denoiser \(Deciding\) does not hold for other numbers"),
        torch.no_grad(),
    ):
        model(torch.ones(1, 4), torch.tensor(499.2))


@pytest.mark.parametrize(
    ("settings", "named"),
    [({"mode": "max-autotune"}, "mode"), ({"scope": "blocks", "dynamic": True}, "scope: blocks, dynamic")],
)
def test_tracing_has_no_settings_of_torch_compile(qwen: Any, settings: Any, named: str) -> None:
    with pytest.raises(PassError, match=rf"compile\.backend: trace records .* it has no {named}"):
        accelerate(qwen, "none", compile={"backend": "trace", **settings})
