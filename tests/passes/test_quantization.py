"""Quantization: fewer bytes, a small error that is told, and everything back."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest
import torch
from torch import nn

import prompted
import tiny
from hasten import accelerate, load_plan
from hasten.errors import PassError, PlanError
from hasten.passes.quantization import error_squares, layers_of
from passes.states import state


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted.qwen()


def run(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return pipe(
        "a red circle", num_inference_steps=2, width=32, height=32, generator=generator, output_type="latent"
    ).images


@pytest.mark.parametrize(
    ("plan", "component", "what"),
    [
        ({"quantization": "int8"}, "transformer", "int8 in "),
        ({"quantization": "int8_weight_only"}, "transformer", "int8-weight-only in "),
        ({"quantization": {"text_encoder": "int8"}}, "text_encoder", "int8 in "),
        ({"precision": {"text_encoder": "int8"}}, "text_encoder", "int8 in "),
        ({"precision": {"dtype": "bf16"}, "quantization": "int8"}, "transformer", "int8 in "),
    ],
)
def test_weights_shrink_and_come_back(pipe: Any, plan: dict[str, Any], component: str, what: str) -> None:
    pytest.importorskip("torchao")
    plain = run(pipe)
    before = state(pipe)
    with accelerate(pipe, {"cache": None, **plan}) as handle:
        result = run(pipe)
        row = next(row for row in handle.report().passes if row.name == "quantization")
    assert (row.component, row.what[: len(what)]) == (component, what)
    assert row.figures["bytes_after"] < row.figures["bytes_before"]
    assert 0 < float(str(row.figures["weight_error"]).rstrip("%")) < 2
    assert 0 < float((result - plain).norm() / plain.norm()) < 0.4
    assert state(pipe) == before
    assert torch.equal(run(pipe), plain)


def test_delicate_and_excluded_layers_are_left_out() -> None:
    transformer = tiny.qwen_transformer(2)
    names = set(layers_of(transformer))
    assert "transformer_blocks.0.attn.to_q" in names
    assert not {"proj_out", "norm_out.linear"} & names
    fewer = layers_of(transformer, ("attn",))
    assert fewer
    assert not any("attn" in name for name in fewer)


def test_the_error_is_relative_to_the_weights() -> None:
    assert error_squares(torch.tensor([3.0, 4.0]), torch.tensor([3.0, 3.5])) == pytest.approx((0.25, 25.0))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"scheme": "fp8"}, "quantization: fp8 needs a GPU; on the CPU there are int8, int8-weight-only"),
        ({"unet": "int8"}, r"quantization\.unet: QwenImagePipeline has no unet"),
        ({"scheme": "int8", "exclude": ["."]}, "has no linear layers that are not excluded"),
    ],
)
def test_what_cannot_be_is_refused(pipe: Any, plan: Any, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: True)
    with pytest.raises(PassError, match=message):
        accelerate(pipe, "none", quantization=plan)


def test_without_torchao_it_says_what_to_install(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(PassError, match=r'pip install "hasten\[torchao\]"'):
        accelerate(pipe, "none", quantization="int8")


def test_a_pattern_that_is_none_is_refused() -> None:
    with pytest.raises(PlanError, match="is no regular expression"):
        load_plan({"quantization": {"exclude": ["("]}})


def test_layers_without_a_model_list_are_found_too() -> None:
    assert list(layers_of(nn.Sequential(nn.Linear(2, 2), nn.ReLU()))) == ["0"]
