"""Errors of latents against values computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from hasten.errors import HastenError
from hasten.metrics import latent_errors


def test_the_errors_are_what_pen_and_paper_say() -> None:
    found = latent_errors(torch.tensor([[3.0, 0.0]]), torch.tensor([[0.0, 4.0]]))
    assert found.relative_l1 == pytest.approx(7 / 4)
    assert found.relative_l2 == pytest.approx(5 / 4)
    assert found.cosine == 0
    assert found.max_difference == 4


def test_equal_latents_have_no_error_even_where_they_are_zero() -> None:
    for latents in (torch.randn(1, 4, 8, 8), torch.zeros(2, 3)):
        found = latent_errors(latents, latents.clone())
        assert (found.relative_l1, found.relative_l2, found.max_difference) == (0, 0, 0)
    assert math.isnan(found.cosine)  # nothing has no direction


def test_a_scaled_latent_points_the_same_way() -> None:
    latents = torch.randn(64, generator=torch.Generator().manual_seed(0))
    found = latent_errors(1.5 * latents, latents)
    assert found.cosine == pytest.approx(1.0)
    assert found.cosine <= 1
    assert found.relative_l2 == pytest.approx(0.5)


def test_something_beside_a_zero_reference_is_infinitely_off() -> None:
    found = latent_errors(torch.ones(3), torch.zeros(3))
    assert (found.relative_l1, found.relative_l2) == (math.inf, math.inf)


def test_bytes_do_not_wrap_around_and_halves_do_not_overflow() -> None:
    assert latent_errors(np.array([1], np.uint8), np.array([2], np.uint8)).max_difference == 1
    big = torch.full((1000,), 60000.0, dtype=torch.float16)
    assert latent_errors(big, -big).relative_l2 == pytest.approx(2.0)


def test_what_is_not_finite_has_no_error() -> None:
    found = latent_errors(torch.tensor([1.0, math.nan]), torch.ones(2))
    assert all(math.isnan(x) for x in (found.relative_l1, found.relative_l2, found.cosine, found.max_difference))


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (torch.zeros(1, 4), torch.zeros(4), r"different shapes cannot be compared: \(1, 4\) and \(4,\)"),
        (torch.zeros(0), torch.zeros(0), "no latents"),
        (torch.zeros(2, dtype=torch.complex64), torch.zeros(2), "no latents"),
    ],
)
def test_what_cannot_be_compared_is_refused(a: torch.Tensor, b: torch.Tensor, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        latent_errors(a, b)
