"""The deep part of a UNet: found by watching where skip connections come back, left out, and put in again."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler
from torch import Tensor, nn
from torch.nn import functional

import tiny
from hasten import accelerate
from hasten.caching.branches import BranchSite
from hasten.caching.joins import JoinTracer
from hasten.caching.policies import quadratic_steps
from hasten.caching.sites import MisfitError, UnfitError
from hasten.caching.trees import fresh
from hasten.errors import CacheError, PlanError

LEVELS, LAYERS = 3, 2
BRANCHES = LEVELS * (LAYERS + 1)  # the last level has no downsampler, and the input convolution counts


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny.unet(layers=LAYERS)


def call(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    return tiny.noise(2, 4, 8, 8, seed=seed), torch.tensor(10), tiny.noise(2, tiny.TEXT, 24, seed=1)


def exact(values: tuple[Tensor, ...]) -> Callable[[int, Tensor | None, torch.dtype], Tensor]:
    return lambda slot, base, dtype: values[slot].clone()


@contextmanager
def ran(model: nn.Module, *kinds: str) -> Iterator[list[str]]:
    """The modules that compute, by name."""
    names: list[str] = []
    hooks = [
        module.register_forward_hook(lambda *_, name=name: names.append(name))
        for name, module in model.named_modules()
        if name.split(".")[-2:-1] and name.split(".")[-2] in kinds
    ]
    yield names
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("branch", range(BRANCHES))
def test_only_what_is_shallower_than_the_branch_runs(unet: Any, branch: int) -> None:
    """Branch b: level b // 3 at its layer b % 3, which with two layers to a level is the published numbering."""
    site, blanks = BranchSite(unet, branch), {}
    level, layer = branch // (LAYERS + 1), branch % (LAYERS + 1)
    with torch.no_grad():
        result, values = site.compute(unet, call(), {}, blanks, None, keep=True)
        with ran(unet, "resnets") as names:
            again = site.skip(unet, call(), {}, blanks, exact(values))
        assert torch.equal(again.sample, result.sample)
        known, same = site.compute(unet, call(), {}, blanks, None, keep=True)
    assert torch.equal(known.sample, result.sample)
    assert torch.equal(same[0], values[0])
    site.detach()
    assert not any("_compiled_call_impl" in vars(module) for module in unet.modules())
    down = [f"down_blocks.{i}.resnets.{j}" for i in range(LEVELS) for j in range(LAYERS) if (i, j) < (level, layer)]
    up = [
        f"up_blocks.{LEVELS - 1 - i}.resnets.{LAYERS - j}"
        for i in reversed(range(LEVELS))
        for j in reversed(range(LAYERS + 1))
        if (i, j) <= (level, layer)
    ]
    assert names == down + up


def test_a_branch_that_the_model_does_not_have_is_refused_with_those_that_it_has() -> None:
    pipe = tiny.stable_diffusion()
    with (
        accelerate(pipe, "deepcache", branch=4),
        pytest.raises(CacheError, match=r"unet_branch 4.*4 branches, cache.branch 0 to 3"),
    ):
        pipe(**tiny.stable_diffusion_call(4))
    pipe = tiny.qwen()
    with accelerate(pipe, "deepcache"), pytest.raises(CacheError, match="no skip connections"):
        pipe(**tiny.qwen_call(4))


def test_a_branch_of_another_site_is_refused() -> None:
    with pytest.raises(PlanError, match="needs site: unet_branch"):
        accelerate(None, branch=1)
    with pytest.raises(PlanError, match=r"needs cache\.power beside it"):
        accelerate(None, "deepcache", center=5)
    with pytest.raises(PlanError, match=r"is another name for cache\.interval"):
        accelerate(None, cache={"method": "deepcache", "cache_interval": 3, "interval": 4})


# --- what can stand between a skip connection's two ends ---


def controlnet(unet: Any) -> dict[str, Any]:
    shapes = [(8, 8)] * 3 + [(8, 4)] + [(16, 4)] * 2 + [(16, 2)] + [(24, 2)] * 2
    return {
        "down_block_additional_residuals": tuple(
            tiny.noise(2, width, side, side, seed=k) for k, (width, side) in enumerate(shapes)
        ),
        "mid_block_additional_residual": tiny.noise(2, 24, 2, 2),
    }


def adapter(unet: Any) -> dict[str, Any]:
    """Adds to what the blocks return, in place."""
    shapes = [(8, 8), (16, 4), (24, 2)]
    return {"down_intrablock_additional_residuals": [tiny.noise(2, width, side, side) for width, side in shapes]}


def freeu(unet: Any) -> dict[str, Any]:
    """Writes into both sides of a join."""
    unet.enable_freeu(s1=0.9, s2=0.2, b1=1.2, b2=1.4)
    return {}


def compiled(unet: Any) -> dict[str, Any]:
    for block in unet.down_blocks[0].attentions:
        block.compile(backend="eager")
    return {}


@pytest.mark.parametrize("branch", [0, 4, 8])
@pytest.mark.parametrize("way", [controlnet, adapter, freeu, compiled])
def test_residuals_and_writing_in_between_do_no_harm(way: Callable[[Any], dict[str, Any]], branch: int) -> None:
    unet = tiny.unet(layers=LAYERS)
    more = way(unet)
    site, blanks = BranchSite(unet, branch), {}
    with torch.no_grad():
        expected = unet(*call(), **fresh(more))
        values: tuple[Tensor, ...] = ()
        for _ in range(2):  # where the join's deep side was written to, the second call is the first snapshot
            result, values = site.compute(unet, call(), fresh(more), blanks, None, keep=True)
            assert torch.equal(result.sample, expected.sample)
        again = site.skip(unet, call(), fresh(more), blanks, exact(values))
    assert torch.allclose(again.sample, expected.sample, atol=1e-5)
    site.detach()


def test_of_a_controlnets_residuals_those_of_the_shallow_part_count_at_a_skipped_step(unet: Any) -> None:
    residuals, mid = controlnet(unet).values()

    def steered(number: int | None) -> dict[str, Any]:
        changed = [residual + (k == number) for k, residual in enumerate(residuals)]
        return {"down_block_additional_residuals": tuple(changed), "mid_block_additional_residual": mid}

    site, blanks = BranchSite(unet, 1), {}
    with torch.no_grad():
        result, values = site.compute(unet, call(), steered(None), blanks, None, keep=True)
        skipped = [site.skip(unet, call(), steered(number), blanks, exact(values)).sample for number in (0, 1, 2, 5)]
    site.detach()
    assert [torch.equal(one, result.sample) for one in skipped] == [False, False, True, True]


class Hourglass(nn.Module):
    """A UNet of nobody's class: one level down, one up, and the skip connection as `way` joins it."""

    def __init__(self, way: Callable[[Any, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.before, self.deep, self.after = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 4)
        self.way = way
        tiny.random_(self, 0)

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        return self.after(self.way(self, self.deep(x[..., ::2, :]), x))


def stretched(model: Any, deep: Tensor, skip: Tensor) -> Tensor:
    return torch.cat([functional.interpolate(deep.mT, scale_factor=2).mT, skip], dim=-1)


def mixed(model: Any, deep: Tensor, skip: Tensor) -> Tensor:
    """Two results of modules on the deep side: none of them is all of it."""
    return torch.cat([functional.interpolate((deep + model.deep(deep)).mT, scale_factor=2).mT, skip], dim=-1)


def apart(model: Any, deep: Tensor, skip: Tensor) -> Tensor:
    with torch._C.DisableTorchFunction():
        return stretched(model, deep, skip)


X = tiny.noise(1, 6, 4)


def test_what_is_done_to_the_deep_side_before_the_join_still_runs() -> None:
    model = Hourglass(stretched)
    site, blanks = BranchSite(model), {}
    _, values = site.compute(model, (X,), {}, blanks, None, keep=True)
    if not values:
        _, values = site.compute(model, (X,), {}, blanks, None, keep=True)
    assert values[0].shape == (1, 3, 4)
    again = site.skip(model, (2 * X,), {}, blanks, exact(values))
    assert torch.allclose(again, model.after(stretched(model, values[0], model.before(2 * X))))
    site.detach()


@pytest.mark.parametrize(
    ("way", "reason"),
    [(mixed, "no skip connections"), (apart, "no skip connections")],
)
def test_where_no_deep_side_can_be_cut_off_the_step_is_computed_and_the_reason_told(way: Any, reason: str) -> None:
    model = Hourglass(way)
    site = BranchSite(model)
    with pytest.raises(MisfitError, match=reason) as caught:
        site.compute(model, (X,), {}, {}, None, keep=True)
    assert torch.equal(caught.value.result, model(X))
    with pytest.raises(UnfitError, match=reason):
        site.compute(model, (X,), {}, {}, None, keep=True)


def test_joins_are_counted_from_the_shallowest(unet: Any) -> None:
    tracer = JoinTracer(unet, 0)
    with torch.no_grad(), tracer:
        result = unet(*call())
    tracer.returned(result)
    assert tracer.count == BRANCHES
    wiring, _, value = tracer.wiring()
    names = {module: name for name, module in unet.named_modules()}
    assert names[wiring.sequence[0]] == "down_blocks.0"
    assert names[wiring.sequence[-1]] == f"up_blocks.{LEVELS - 1}.attentions.{LAYERS - 1}"
    assert value is not None
    too_much, _, _ = tracer.wiring(least=1.0)
    assert not too_much.spans
    assert "less than 100%" in too_much.reason


# --- the method ---


def pipeline() -> Any:
    pipe = tiny.stable_diffusion(layers=LAYERS)
    pipe.scheduler = DDIMScheduler(clip_sample=False, beta_schedule="scaled_linear", steps_offset=1)
    return pipe


def steps(handle: Any) -> list[int]:
    return [step.index for step in handle.report().steps if step.computed]


@pytest.fixture(scope="module")
def published() -> Any:
    """The package's helper, without the pipelines beside it, which are for a diffusers of long ago."""
    package = importlib.util.find_spec("DeepCache")
    if package is None or not package.submodule_search_locations:
        pytest.skip("the package DeepCache is not installed: pip install --no-deps DeepCache")
    path = f"{package.submodule_search_locations[0]}/extension/deepcache.py"
    spec = importlib.util.spec_from_file_location("deepcache_extension", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.DeepCacheSDHelper


@pytest.mark.parametrize(("interval", "branch"), [(3, 0), (2, 1), (5, 4)])
def test_deepcache_is_what_the_package_of_that_name_computes(published: Any, interval: int, branch: int) -> None:
    pipe = pipeline()
    reference = pipe(**tiny.stable_diffusion_call(8), return_dict=False)[0]
    helper = published(pipe=pipe)
    helper.set_params(cache_interval=interval, cache_branch_id=branch)
    helper.enable()
    expected = pipe(**tiny.stable_diffusion_call(8), return_dict=False)[0]
    helper.disable()
    with accelerate(pipe, "deepcache", cache_interval=interval, cache_branch_id=branch) as handle:
        result = pipe(**tiny.stable_diffusion_call(8), return_dict=False)[0]
    assert steps(handle) == list(range(0, 8, interval))
    assert torch.allclose(result, expected, atol=1e-4)
    assert not torch.allclose(result, reference, atol=1e-2)


def test_steps_can_gather_around_one() -> None:
    pipe = pipeline()
    with accelerate(pipe, "deepcache", center=4, power=1.4, interval=3) as handle:
        pipe(**tiny.stable_diffusion_call(16))
    assert steps(handle) == list(quadratic_steps(16, 6, 4, 1.4))
    assert steps(handle) != list(range(0, 16, 3))
    assert handle.report().steps[steps(handle)[1]].reason == "schedule"


def test_any_predictor_serves_the_site() -> None:
    pipe = pipeline()
    with accelerate(pipe, site="unet_branch", branch=2, order=1) as handle:
        result = pipe(**tiny.stable_diffusion_call(12), return_dict=False)[0]
    report = handle.report()
    assert report.site == "unet_branch 2"
    assert report.skipped == 6
    assert result.isfinite().all()


@pytest.mark.parametrize("total", [20, 50])
@pytest.mark.parametrize("every", [2, 3, 5])
def test_gathered_steps_are_as_many_as_even_ones_and_closest_at_the_centre(total: int, every: int) -> None:
    count = -(-total // every)
    for center in (total // 4, total // 3):
        found = quadratic_steps(total, count, center, 1.4)
        assert found[0] == 0
        assert len(set(found)) == len(found) == count
        assert list(found) == sorted(found)
        assert found[-1] < total
        gaps = [after - before for before, after in pairwise(found)]
        assert max(gaps) == max(gaps[-2:])


def test_a_centre_that_no_schedule_fits_is_refused() -> None:
    with pytest.raises(CacheError, match=r"cache.center.*step 50"):
        quadratic_steps(10, 5, 50, 1.4)
