"""What a configuration can say of a smaller model, found by trying."""

from __future__ import annotations

import pytest
import torch

import tiny
from denoisers import CASES
from hasten.errors import HastenError
from hasten.inspect.sources import Part
from hasten.prune.siblings import Number, depths_of, numbers, part_of, renumbered, shapes_of, shortened, sibling
from hasten.prune.widths import _least, widths_of


def part(name: str, **more: object) -> Part:
    return Part("transformer", "diffusers", name, {**CASES[name].config, **more})


def test_numbers_are_found_in_lists_too() -> None:
    config = {"num_layers": 4, "flag": True, "rope": (4, 6), "one": 1, "_version": 3, "name": "x"}
    assert [str(number) for number in numbers(config)] == ["num_layers", "rope[0]", "rope[1]"]
    assert Number("rope", 1).changed(config, 5)["rope"] == [4, 5]


def test_what_says_how_many_blocks_there_are_is_found_by_trying() -> None:
    depths = {str(depth.number): depth.lists for depth in depths_of(part("FluxTransformer2DModel"))}
    assert depths == {"num_layers": ("transformer_blocks",), "num_single_layers": ("single_transformer_blocks",)}


def test_a_unets_layers_are_counted_for_each_level() -> None:
    unet = tiny.unet(layers=2)
    found = part_of("unet", unet, by_level=True)
    assert found.config["layers_per_block"] == [2, 2, 2]
    assert shapes_of(found) == {name: tuple(tensor.shape) for name, tensor in unet.state_dict().items()}
    depths = {str(depth.number): depth.lists for depth in depths_of(found)}
    assert set(depths) >= {f"layers_per_block[{level}]" for level in range(3)}
    assert "down_blocks.1.resnets" in depths["layers_per_block[1]"]
    assert "up_blocks.1.resnets" in depths["layers_per_block[1]"]


def test_blocks_that_stay_are_numbered_anew() -> None:
    state = {f"blocks.{index}.w": torch.tensor(index) for index in range(4)} | {"out": torch.tensor(9)}
    kept = renumbered(state, {"blocks": frozenset({0, 2})})
    assert {name: int(value) for name, value in kept.items()} == {"blocks.0.w": 1, "blocks.1.w": 3, "out": 9}


def test_numbers_of_blocks_in_a_configuration_follow() -> None:
    whole = part("SD3Transformer2DModel", num_layers=4, dual_attention_layers=(1, 2))
    depth = next(depth for depth in depths_of(whole) if depth.number.key == "num_layers")
    less = shortened(whole, [depth], {"transformer_blocks": frozenset({1})})
    assert (less.config["num_layers"], less.config["dual_attention_layers"]) == (3, (1,))


def test_weights_that_do_not_fit_are_named() -> None:
    model = tiny.qwen_transformer(2)
    state = dict(model.state_dict())
    state.pop("proj_out.bias")
    with pytest.raises(HastenError, match=r"do not fit its configuration: proj_out.bias is missing"):
        sibling(model, part_of("transformer", model), state)


def test_widths_are_found_by_trying() -> None:
    assert "ffn_dim" in {str(number) for number in widths_of(part("WanTransformer3DModel"))}
    assert "num_layers" not in {str(number) for number in widths_of(part("FluxTransformer2DModel"))}


def test_as_many_channels_go_from_each_section_or_whole_sections() -> None:
    scores = torch.tensor([5.0, 1.0, 2.0, 6.0, 0.5, 3.0])
    assert _least(scores, 2, 1) == [1, 4]
    assert _least(scores, 2, 2) == [1, 4]
    assert _least(scores, 3, 3) == [1, 2, 4]
    assert _least(scores, 2, -3) == [4, 5]
