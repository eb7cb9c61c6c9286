"""Scenes, their captions and their pictures say the same."""

import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.metrics.scenes import parse, read, score
from hasten.zoo.evaluation import check_drawn, held_out_prompts
from hasten.zoo.scenes import (
    BACKGROUNDS,
    COLOURS,
    OPPOSITE,
    SHAPES,
    VOCABULARIES,
    Scene,
    Thing,
    arrange,
    caption,
    coverage,
    draw,
    sample_scene,
)


@given(st.integers(0, 10**9))
@settings(max_examples=100, deadline=None)
def test_a_caption_can_be_read_back_into_its_scene(seed: int) -> None:
    rng = random.Random(seed)
    scene = sample_scene(rng, VOCABULARIES["full"])
    assert parse(caption(scene, rng)) == scene


def test_the_vocabulary_is_as_large_as_promised() -> None:
    full = VOCABULARIES["full"]
    assert len(full.shapes) >= 6
    assert len(full.colours) >= 8
    assert full.textures


def test_training_never_draws_what_is_held_out() -> None:
    rng = random.Random(0)
    vocabulary = VOCABULARIES["full"]
    assert not any(sample_scene(rng, vocabulary).held_out for _ in range(300))
    assert all(sample_scene(rng, vocabulary, held_out=True).held_out for _ in range(30))
    assert all(parse(prompt).held_out for prompt in held_out_prompts(50, "full"))


def test_things_stand_where_the_relations_say() -> None:
    rng = random.Random(1)
    for _ in range(200):
        scene = sample_scene(rng, VOCABULARIES["full"])
        placed = arrange(scene, rng)
        for first, relation, second in scene.relations():
            a, b = placed[first], placed[second]
            distance = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}[relation]
            assert distance > 0.1
        for thing in placed:
            assert thing.radius <= thing.x <= 1 - thing.radius
            assert thing.radius <= thing.y <= 1 - thing.radius


def test_a_drawing_has_the_colours_asked_for_and_labels_where_they_are() -> None:
    scene = Scene((Thing("square", "red"),), background="black")
    pixels, labels = draw([arrange(scene)], ["black"], 64)
    assert pixels.shape == (1, 3, 64, 64)
    assert torch.allclose(pixels[0, :, 32, 32], torch.tensor(COLOURS["red"]) / 127.5 - 1)
    assert torch.allclose(pixels[0, :, 0, 0], torch.tensor(BACKGROUNDS["black"]) / 127.5 - 1)
    assert labels[0, 32, 32] == 1 + SHAPES.index("square") * len(COLOURS) + tuple(COLOURS).index("red")
    assert labels[0, 0, 0] == 0


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_covers_its_centre_part_of_the_canvas_only(shape: str) -> None:
    mask = coverage(shape, 0.5, 0.5, 0.3, 96)
    assert 0.05 < mask.mean() < 0.3
    assert mask[:16].sum() == mask[-16:].sum() == mask[:, :16].sum() == mask[:, -16:].sum() == 0


@pytest.mark.parametrize("vocabulary", ["small", "full"])
def test_the_checker_reads_drawn_scenes(vocabulary: str) -> None:
    report = check_drawn(100, vocabulary, seed=3)
    assert report.shares["right"] >= 0.98
    assert len(report.wrong) == round((1 - report.shares["right"]) * 100)


def _picture(prompt: str) -> torch.Tensor:
    scene = parse(prompt)
    return (draw([arrange(scene)], [scene.background], 128)[0][0] + 1) / 2


def test_the_checker_finds_each_kind_of_mistake() -> None:
    picture = _picture("a red circle left of a blue square")
    assert score("a red circle left of a blue square", picture).right
    swapped = score("a red circle right of a blue square", picture)
    assert (swapped.objects, swapped.relations, swapped.right) == (1.0, 0.0, False)
    recoloured = score("a green circle left of a blue square", picture)
    assert (recoloured.objects, recoloured.colours, recoloured.shapes) == (0.5, 0.5, 1.0)
    bound_wrongly = score("a blue circle left of a red square", picture)
    assert bound_wrongly.objects == 0.0
    reshaped = score("a red ring left of a blue square", picture)
    assert (reshaped.shapes, reshaped.colours, reshaped.right) == (0.5, 1.0, False)
    assert score("a red circle", picture).extra == 1
    assert not score("a red circle", picture).right
    assert not score("a red circle left of a blue square on a black background", picture).background


def test_noise_and_blank_pictures_show_nothing() -> None:
    assert read(torch.full((3, 128, 128), 0.98)).objects == ()
    blank = score("a red circle", torch.full((3, 128, 128), 0.98))
    assert (blank.objects, blank.right, blank.relations) == (0.0, False, None)
    noise = torch.rand(3, 128, 128, generator=torch.Generator().manual_seed(0))
    assert not score("a red circle", noise).right


def test_the_checker_takes_images_and_both_kinds_of_tensor() -> None:
    from PIL import Image

    pixels = _picture("a green cross above a purple ring")
    whole = (pixels * 255).round().to(torch.uint8)
    image = Image.fromarray(whole.permute(1, 2, 0).numpy())
    assert read(whole) == read(image)
    assert score("a green cross above a purple ring", image).right
    with pytest.raises(ValueError, match="PIL image or a tensor"):
        read(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match="no coloured shape"):
        parse("a cat on a mat")


def test_opposites_are_opposite() -> None:
    assert all(OPPOSITE[OPPOSITE[relation]] == relation for relation in OPPOSITE)


def test_connected_parts_are_those_of_a_flood() -> None:
    from hasten.metrics.scenes import _components

    for seed in range(10):
        mask = torch.rand(24, 30, generator=torch.Generator().manual_seed(seed)) < 0.35
        parts = _components(mask)
        assert torch.equal(sum(part.int() for part in parts), mask.int())  # type: ignore[arg-type]
        for part in parts:
            flood = torch.zeros_like(mask)
            flood.view(-1)[part.view(-1).int().argmax()] = True
            for _ in range(mask.numel()):
                grown = torch.nn.functional.max_pool2d(flood[None, None].float(), 3, 1, 1)[0, 0].bool() & mask
                if torch.equal(grown, flood):
                    break
                flood = grown
            assert torch.equal(flood, part)
