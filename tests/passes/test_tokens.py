"""Token merging in models: what tomesd computes, in any model whose parts take it, and nothing where it is off."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers import SD3Transformer2DModel, WanTransformer3DModel
from torch import Tensor, nn

import tiny
from hasten import accelerate, load_plan
from hasten.errors import PassError, PlanError
from hasten.passes import tokens
from hasten.passes.token_parts import STATE
from passes.states import state

HALF = {"ratio": 0.5, "destinations": "fixed"}
ALL = ["self_attention", "cross_attention", "feed_forward"]


@pytest.fixture(scope="module")
def sd() -> Any:
    return tiny.stable_diffusion()


@pytest.fixture(scope="module")
def qwen() -> Any:
    return tiny.qwen(2)


@pytest.fixture(scope="module")
def unet() -> Any:
    return tiny.unet(2)


def call(unet: Any, batch: int = 2, size: tuple[int, int] = (8, 8), timestep: int = 500) -> Tensor:
    sample, text = tiny.noise(batch, 4, *size), tiny.noise(batch, tiny.TEXT, 24, seed=1)
    with torch.no_grad():
        return unet(sample, timestep, encoder_hidden_states=text).sample


def run(pipe: Any, **more: Any) -> Tensor:
    arguments = tiny.qwen_call if hasattr(pipe, "transformer") else tiny.stable_diffusion_call
    return pipe(**arguments(**{"steps": 3} | more), return_dict=False)[0]


@pytest.mark.peer
@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({}, {}),
        ({"ratio": 0.7, "stride": [2, 4]}, {"ratio": 0.7, "sy": 2, "sx": 4}),
        ({"merge": ALL, "max_downsample": 2}, {"merge_crossattn": True, "merge_mlp": True, "max_downsample": 2}),
        ({"merge": ["mlp"]}, {"merge_attn": False, "merge_mlp": True}),
    ],
)
@pytest.mark.parametrize("size", [(8, 8), (12, 8)])
def test_it_computes_what_tomesd_computes(unet: Any, ours: Any, theirs: Any, size: tuple[int, int]) -> None:
    tomesd = pytest.importorskip("tomesd")
    plain = call(unet, size=size)
    tomesd.apply_patch(unet, use_rand=False, **theirs)
    try:
        expected = call(unet, size=size)
    finally:
        tomesd.remove_patch(unet)
        del unet._tome_info
    with accelerate(unet, "none", tokens={**HALF, **ours}):
        first, again = call(unet, size=size), call(unet, size=size)
    assert torch.allclose(first, expected, atol=1e-5)
    assert torch.equal(again, first)
    assert not torch.allclose(first, plain, atol=1e-3)


@pytest.mark.parametrize("family", ["sd", "qwen"])
@pytest.mark.parametrize("destinations", ["fixed", "random"])
def test_it_is_put_on_and_taken_off_exactly(family: str, destinations: str, request: Any) -> None:
    pipe = request.getfixturevalue(family)
    plain, before = run(pipe), state(pipe)
    numbers = torch.get_rng_state()
    with accelerate(
        pipe, "none", tokens={"merge": ALL if family == "sd" else ["attn", "mlp"], "destinations": destinations}
    ) as handle:
        result = run(pipe)
        assert torch.equal(run(pipe), result)
        report = str(handle.report())
    assert torch.equal(torch.get_rng_state(), numbers)
    assert "50% merged for self-attention, " in report
    assert f"{destinations} destinations in cells of 2 × 2" in report
    assert not torch.allclose(result, plain, atol=1e-4)
    assert torch.isfinite(result).all()
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


@pytest.mark.parametrize("off", [{"ratio": 0}, {"enabled": False, "ratio": 0.5}])
def test_nothing_merged_is_bit_identical(sd: Any, off: Any) -> None:
    plain, before = run(sd), state(sd)
    with accelerate(sd, "none", tokens=off) as handle:
        assert handle.report().passes == ()
        assert torch.equal(run(sd), plain)
    assert state(sd) == before


def test_so_small_a_share_that_no_token_is_merged_is_bit_identical(sd: Any) -> None:
    plain = run(sd)
    with accelerate(sd, "none", tokens=0.01):
        assert torch.equal(run(sd), plain)


def test_equal_tokens_are_merged_without_loss(unet: Any) -> None:
    sample, text = torch.ones(1, 4, 8, 8), tiny.noise(1, tiny.TEXT, 24)
    block = next(module for module in unet.modules() if type(module).__name__ == "BasicTransformerBlock")
    x = tiny.noise(1, 1, 8).expand(1, 64, 8)
    plain = block(x, encoder_hidden_states=text)
    with accelerate(unet, "none", tokens={**HALF, "merge": ALL}), torch.no_grad():
        unet(sample, 500, encoder_hidden_states=text)
        assert torch.allclose(block(x, encoder_hidden_states=text), plain, atol=1e-5)


def test_random_destinations_depend_on_the_step_alone(unet: Any) -> None:
    def merged(timestep: int) -> Tensor:
        torch.manual_seed(int(torch.randint(1000, ())))
        with accelerate(unet, "none", tokens=0.5):
            return call(unet, timestep=timestep)

    drawn: list[Tensor] = []
    real = tokens.split

    def watched(*args: Any) -> Any:
        found = real(*args)
        drawn.append(found.destinations)
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokens, "split", watched)
        assert torch.equal(merged(500), merged(500))
        same = drawn[0]
        assert all(torch.equal(same, one) for one in drawn if len(one) == len(same))
        drawn.clear()
        merged(400)
        assert not torch.equal(same, drawn[0])


class Watched:
    """How many tokens the parts of a model computed on."""

    def __init__(self, model: nn.Module, names: str) -> None:
        self.tokens: list[int] = []
        for name, module in model.named_modules():
            if name.endswith(names):
                module.register_forward_pre_hook(self._see)

    def _see(self, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        self.tokens.append(args[0].shape[1])


def test_positions_go_with_the_tokens_that_are_left(qwen: Any) -> None:
    watched = Watched(qwen.transformer, ("attn.to_q", "img_mlp.net.0"))
    with accelerate(qwen, "none", tokens={**HALF, "merge": ["attn", "mlp"]}) as handle:
        run(qwen, steps=2, width=64, height=64)
        assert "merged in 4 of 6 parts" in str(handle.report())  # not in the text's feed-forward networks
    # The first call tries each part in other orders.
    assert watched.tokens[-8:] == [8] * 8


def sd3() -> Any:
    model = SD3Transformer2DModel(
        sample_size=8,
        patch_size=1,
        in_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_projection_dim=16,
        joint_attention_dim=24,
        pooled_projection_dim=12,
        out_channels=4,
    )
    return tiny.random_(model, 1)


def wan() -> Any:
    model = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=12,
        in_channels=4,
        out_channels=4,
        text_dim=24,
        freq_dim=16,
        ffn_dim=32,
        num_layers=2,
        rope_max_seq_len=32,
    )
    return tiny.random_(model, 2)


MODELS: dict[str, Any] = {
    "joint attention without positions": (
        sd3,
        lambda: {
            "hidden_states": tiny.noise(2, 4, 8, 8),
            "encoder_hidden_states": tiny.noise(2, tiny.TEXT, 24, seed=1),
            "pooled_projections": tiny.noise(2, 12, seed=2),
        },
        ["attn", "mlp"],
        "4 of 5 parts",
    ),
    "text and image in one table": (
        lambda: tiny.flux(2, 1).transformer,
        lambda: {
            "hidden_states": tiny.noise(2, 16, 16),
            "encoder_hidden_states": tiny.noise(2, tiny.TEXT, 24, seed=1),
            "pooled_projections": tiny.noise(2, 12, seed=2),
            "img_ids": torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)),
            "txt_ids": torch.zeros(tiny.TEXT, 3),
            "guidance": torch.ones(2),
        },
        ["attn", "mlp"],
        "4 of 7 parts",
    ),
    "films": (
        wan,
        lambda: {
            "hidden_states": tiny.noise(2, 4, 2, 8, 8),
            "encoder_hidden_states": tiny.noise(2, tiny.TEXT, 24, seed=1),
        },
        ALL,
        "6 of 6 parts",
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_transformers_of_all_sorts_take_it(name: str) -> None:
    make, inputs, merge, figure = MODELS[name]
    model = make()
    given = inputs() | {"timestep": torch.full((2,), 500.0)}
    with torch.no_grad():
        plain = model(**given, return_dict=False)[0]
        with accelerate(model, "none", tokens={**HALF, "merge": merge}) as handle:
            first = model(**given, return_dict=False)[0]
            assert torch.equal(model(**given, return_dict=False)[0], first)
            assert f"merged in {figure}" in str(handle.report())
        assert 1e-4 < float((first - plain).norm() / plain.norm()) < 1.5
        assert torch.equal(model(**given, return_dict=False)[0], plain)


class Mixing(nn.Module):
    """A feed-forward network that looks at neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(8, 8)
        self.mix = nn.Conv1d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(self.up(x).transpose(1, 2)).transpose(1, 2)


def test_what_depends_on_the_order_of_tokens_is_left_alone_and_said(unet: Any) -> None:
    model = tiny.unet(1)
    for module in list(model.modules()):
        if type(module).__name__ == "BasicTransformerBlock":
            width = module.ff.net[2].out_features
            module.ff = tiny.random_(Mixing(), 1) if width == 8 else module.ff
    with accelerate(model, "none", tokens={**HALF, "merge": ["mlp", "attn"]}) as handle:
        call(model)
        assert "merged in " in str(handle.report())
    with (
        accelerate(model, "none", tokens={**HALF, "merge": ["mlp"]}),
        pytest.raises(
            PassError, match=r"has no feed_forward that takes merged tokens: .*depends on the order of the tokens"
        ),
    ):
        call(model)


def test_a_cache_skips_as_before(qwen: Any) -> None:
    for site in ("residual", "output", "attention"):
        with accelerate(qwen, "reuse", interval=2, first_enhance=1, site=site, tokens=HALF) as handle:
            result = run(qwen, steps=6)
            report = handle.report()
            assert torch.equal(run(qwen, steps=6), result)
        assert report.skipped_steps >= 2
        assert (report.site, report.notes) == (site, ())


@pytest.fixture
def _fresh() -> Iterator[None]:
    yield
    torch.compiler.reset()


@pytest.mark.usefixtures("_fresh")
@pytest.mark.filterwarnings("ignore:.*:UserWarning:torch")
@pytest.mark.parametrize("scope", ["blocks", "model"])
def test_compiled_it_computes_the_same_and_compiles_equal_blocks_once(scope: str) -> None:
    pipe = tiny.qwen(3)
    with accelerate(pipe, "none", tokens={"merge": ["attn", "mlp"]}):
        expected = run(pipe, guided=False)
    settings = {"scope": scope, "backend": "eager", "fullgraph": True}
    with accelerate(pipe, "none", tokens={"merge": ["attn", "mlp"]}, compile=settings) as handle:
        run(pipe, guided=False)
        warm = handle.report().passes[1].figures
        result = run(pipe, guided=False, seed=1), run(pipe, guided=False)
        assert handle.report().passes[1].figures == warm
        assert (warm["graph_breaks"], int(warm["recompilations"]) <= 1) == (0, True)
    assert torch.allclose(result[1], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("tokens", "message"),
    [
        (
            {"ratio": 0.8},
            r"tokens\.ratio: of every 2 × 2 tokens one is left, so that at most 0\.75 of them can be merged",
        ),
        (
            {"merge": ["crossattn"]},
            r"has no cross_attention that takes merged tokens: it has feed_forward, self_attention",
        ),
    ],
)
def test_what_cannot_be_is_refused(qwen: Any, tokens: Any, message: str) -> None:
    with pytest.raises(PassError, match=message), accelerate(qwen, "none", tokens=tokens):
        run(qwen)
    assert not any(hasattr(module, STATE) for module in qwen.transformer.modules())


def test_plans_say_it_in_short_and_in_tomesds_words() -> None:
    plan = load_plan({"tokens": 0.4})
    assert plan.tokens.ratio == 0.4
    assert load_plan({"tokens": {"merge": ["attn", "crossattn", "mlp"]}}).tokens.merge == ALL
    assert load_plan(plan.to_dict()) == plan
    with pytest.raises(PlanError, match=r"tokens\.ratio"):
        load_plan({"tokens": 1.5})
