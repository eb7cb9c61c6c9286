"""Errors of films: by frame, and in how they move."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from PIL import Image

from hasten.errors import HastenError
from hasten.metrics import video_errors


def film(*levels: float) -> torch.Tensor:
    return torch.tensor(levels).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)


def test_flicker_that_frames_hide_shows_in_time() -> None:
    found = video_errors(film(0.1, 0.3, 0.1), film(0.2, 0.2, 0.2))
    assert found.psnr == pytest.approx((20.0, 20.0, 20.0), abs=1e-4)
    assert found.temporal_l1 == pytest.approx(0.2)
    assert found.temporal_relative_l2 == math.inf  # the reference stands still


def test_a_constant_offset_is_no_temporal_error() -> None:
    found = video_errors(film(0.2, 0.4, 0.6), film(0.1, 0.3, 0.5))
    assert found.temporal_l1 == pytest.approx(0, abs=1e-7)
    assert found.psnr[0] == pytest.approx(20.0, abs=1e-4)


def test_the_relative_error_is_of_the_movement() -> None:
    # The reference moves by 0.2 and 0.1, the film by 0.3 and 0.1.
    found = video_errors(film(0.0, 0.3, 0.4), film(0.0, 0.2, 0.3))
    assert found.temporal_relative_l2 == pytest.approx(0.1 / math.hypot(0.2, 0.1), rel=1e-5)
    assert found.temporal_l1 == pytest.approx(0.05)


def test_bytes_do_not_wrap_around() -> None:
    bright, dark = (
        np.stack([np.full((8, 8, 3), level, np.uint8) for level in levels]) for levels in ((0, 255), (255, 0))
    )
    assert video_errors(bright, dark).temporal_l1 == pytest.approx(2.0)


def test_grey_pictures_and_tensors_are_one_film() -> None:
    grey = [Image.new("L", (8, 8), level) for level in (0, 51)]
    found = video_errors(grey, film(0.0, 0.2))
    assert found.temporal_l1 == pytest.approx(0, abs=1e-7)
    assert found.psnr[0] == math.inf
    assert found.ssim == pytest.approx((1.0, 1.0))


def test_one_frame_does_not_move_and_nan_has_no_movement() -> None:
    assert math.isnan(video_errors(film(0.5), film(0.5)).temporal_l1)
    assert math.isnan(video_errors(film(0.5, math.nan), film(0.5, 0.5)).temporal_relative_l2)


@pytest.mark.parametrize(
    ("a", "message"),
    [
        (film(0.1, 0.2), "2 and 3 frames"),
        (film(0.1, 0.2, 0.3)[..., :4], "different sizes"),
        ([], "it has no frames"),
        ([torch.zeros(3, 8, 8), torch.zeros(3, 8, 9)], "its frames have different sizes"),
        (torch.zeros(2, 3, 3, 8, 8), "one film at a time"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: object, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        video_errors(a, film(0.1, 0.2, 0.3))  # type: ignore[arg-type]
