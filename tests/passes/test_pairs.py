"""Every pair of passes that can meet works, or is refused with a reason; the documentation says which."""

from __future__ import annotations

from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from hasten import accelerate
from hasten.errors import PassError
from hasten.passes.conflicts import CONFLICTS, FEATURES, alternatives, matrix
from hasten.plan import load_plan
from passes.states import state

PLANS: dict[str, dict[str, Any]] = {
    "adaptive": {
        "adaptive": {"warmup_steps": 3, "min_steps": 6, "uncertainty": {"threshold_low": 1e8, "threshold_high": 1e9}}
    },
    "formats": {"precision": {"denoiser": "bf16"}},
    "fp8 storage": {"precision": {"vae": "fp8", "denoiser": "fp8"}},
    "quantization": {"quantization": {"scheme": "int8"}},
    "attention.kernel": {"attention": {"kernel": "math"}},
    "attention.backend": {"attention": {"backend": "native"}},
    "attention.slicing": {"attention": {"slicing": "max"}},
    "attention.fused_qkv": {"attention": {"fused_qkv": True}},
    "attention.channels_last": {"attention": {"channels_last": True}},
    "tokens": {"tokens": {"ratio": 0.5}},
    "cache of the output": {"cache": {"method": "reuse", "interval": 2, "first_enhance": 1, "site": "output"}},
    "cache of blocks": {"cache": {"method": "reuse", "interval": 2, "first_enhance": 1, "site": "residual"}},
    # torch's tracing is what can meet other passes; code generation would take minutes.
    "compile.scope: blocks": {"compile": {"scope": "blocks", "backend": "eager"}},
    "compile.scope: model": {"compile": {"scope": "model", "backend": "eager"}},
    "compile.backend: trace": {"compile": {"backend": "trace"}},
    "memory.vae_slicing": {"memory": {"vae_slicing": True}},
    "memory.vae_tiling": {"memory": {"vae_tiling": True}},
    "offload: group, leaf": {"memory": {"offload": "group"}},
    "offload: group, block": {"memory": {"offload": "group", "group": "block"}},
}
REFUSED = {frozenset((pair.first, pair.second)): pair.reason for pair in CONFLICTS}
PAIRS = [pair for pair in combinations(FEATURES, 2) if not alternatives(*pair)]
ALLOWED = [pair for pair in PAIRS if frozenset(pair) not in REFUSED]
# What only one of the tiny pipelines has.
UNET = {"attention.slicing", "attention.fused_qkv", "attention.channels_last"}


def family(first: str, second: str) -> str:
    """A pipeline that has both."""
    if {first, second} & UNET:
        return "flux" if "attention.backend" in (first, second) else "sd"
    return "qwen"


def both(first: str, second: str, disk: Path = Path("unused")) -> dict[str, Any]:
    made: dict[str, Any] = {"cache": None}
    for name in (first, second):
        for section, values in PLANS[name].items():
            made[section] = {**(made.get(section) or {}), **values}
        if name.startswith("offload"):
            made["memory"]["disk"] = str(disk)
        if name == "cache of blocks" and family(first, second) == "sd":
            made["cache"]["site"] = "unet_branch"
    return made


@pytest.fixture(scope="module")
def pipes() -> dict[str, Any]:
    return {"qwen": tiny.qwen(2), "sd": tiny.stable_diffusion(), "flux": tiny.flux(2, 1)}


@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
@pytest.mark.parametrize(
    ("first", "second"),
    # Tracing takes seconds each time.
    [pytest.param(*pair, marks=pytest.mark.slow if "compile" in "".join(pair) else ()) for pair in ALLOWED],
)
def test_a_pair_that_is_not_refused_works_and_is_taken_off_again(
    first: str, second: str, pipes: Any, tmp_path: Path
) -> None:
    if "quantization" in (first, second):
        pytest.importorskip("torchao")
    name = family(first, second)
    calls = {"sd": tiny.stable_diffusion_call, "qwen": tiny.qwen_call, "flux": tiny.flux_call}
    pipe, call = pipes[name], calls[name]
    steps = 8 if "adaptive" in (first, second) else 4
    plain = pipe(**call(steps=steps)).images
    # What comes back from disk is the same in another place.
    places = not any(name.startswith("offload") for name in (first, second))
    before = state(pipe, places=places)
    with accelerate(pipe, both(first, second, tmp_path)) as handle:
        result = pipe(**call(steps=steps)).images
        report = handle.report()
    torch.compiler.reset()
    assert 0 <= float((result - plain).norm() / plain.norm()) < 0.6
    assert (report.skipped_steps > 0) == any("cache" in name for name in (first, second))
    assert not report.notes
    assert state(pipe, places=places) == before
    assert torch.equal(pipe(**call(steps=steps)).images, plain)


@pytest.mark.parametrize("pair", CONFLICTS, ids=lambda pair: f"{pair.first}, {pair.second}")
def test_a_conflict_is_refused_with_its_reason_before_anything_is_touched(pair: Any, pipes: Any) -> None:
    before = state(pipes["qwen"])
    with pytest.raises(PassError) as refusal:
        accelerate(pipes["qwen"], both(pair.first, pair.second))
    assert str(refusal.value) == f"{pair.first} and {pair.second} do not go together: {pair.reason}"
    assert state(pipes["qwen"]) == before


def test_every_feature_is_told_from_the_others() -> None:
    for name, plan in PLANS.items():
        made = load_plan({"cache": None, **plan})
        assert [feature for feature, is_on in FEATURES.items() if is_on(made)] == [name]


def test_the_documentation_has_the_table() -> None:
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text("utf-8")
    inside = page.partition("<!-- table:pairs -->\n")[2].partition("\n<!-- /table:pairs -->")[0]
    assert inside == matrix()
