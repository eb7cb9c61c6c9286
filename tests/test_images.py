"""Pictures made of pictures."""

from __future__ import annotations

import io

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image

from hasten.images import Panel, difference, grid, save_png, side_by_side, to_pil


def test_pixels_are_rounded_as_diffusers_rounds_them() -> None:
    pixels = torch.rand(1, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil", do_denormalize=[False])[0]
    assert np.array_equal(np.array(to_pil(pixels[0])), np.array(theirs))


def test_grey_pixels_make_a_grey_image() -> None:
    assert to_pil(torch.zeros(1, 4, 5)).mode == "L"
    assert to_pil(torch.zeros(1, 4, 5)).size == (5, 4)


def test_the_difference_is_absolute_amplified_and_cut_off() -> None:
    dark, light = Image.new("RGB", (2, 2), (100, 100, 100)), Image.new("RGB", (2, 2), (101, 99, 200))
    for pair in ((dark, light), (light, dark)):
        assert difference(*pair, gain=10).getpixel((0, 0)) == (10, 10, 255)


def test_a_grid_holds_every_image_in_order() -> None:
    colours = ["red", "green", "blue", "white", "black"]
    sheet = grid([Image.new("RGB", (8, 8), colour) for colour in colours], gap=2)
    assert sheet.size == (28, 18)
    centres = [(4, 4), (14, 4), (24, 4), (4, 14), (14, 14)]
    expected = [Image.new("RGB", (1, 1), colour).getpixel((0, 0)) for colour in colours]
    assert [sheet.getpixel(centre) for centre in centres] == expected
    assert sheet.getpixel((24, 14)) == (255, 255, 255)


def test_a_grid_of_one_is_the_image() -> None:
    assert grid([Image.new("RGB", (8, 6), "red")]).size == (8, 6)


def test_side_by_side_enlarges_by_whole_factors_and_labels() -> None:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    picture = side_by_side([Panel(image, "reference", "10 s"), Panel(image, "fast", "2 s")], panel_size=128)
    width, height = 128, 128
    assert picture.width == 2 * width + 3 * 16
    panel = picture.crop((16, picture.height - 16 - height, 16 + width, picture.height - 16))
    assert np.array_equal(np.array(panel)[::2, ::2], np.array(image))
    head = np.array(picture.crop((0, 0, picture.width, picture.height - 16 - height)))
    assert (head < 128).any()  # there is something written


def test_a_film_becomes_an_animated_png() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "green", "blue")]
    file = io.BytesIO()
    save_png(frames, file)
    with Image.open(file) as film:
        assert film.n_frames == 3
        film.seek(2)
        assert film.convert("RGB").getpixel((0, 0)) == (0, 0, 255)
