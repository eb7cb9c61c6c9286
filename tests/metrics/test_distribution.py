"""Distances of sets against values computed by hand and another implementation."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.errors import HastenError
from hasten.metrics import frechet_distance, kernel_distance


def test_the_frechet_distance_of_two_lines_is_what_pen_and_paper_say() -> None:
    # Means 0 and 3, variances 2 and 8: 9 + (√2 − √8)² = 11.
    a, b = torch.tensor([[-1.0], [1.0]]), torch.tensor([[1.0], [5.0]])
    assert frechet_distance(a, b) == pytest.approx(11.0)


def test_equal_sets_are_at_distance_zero_although_their_covariance_is_singular() -> None:
    a = torch.randn(5, 20, generator=torch.Generator().manual_seed(0))
    assert frechet_distance(a, a.flip(0)) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(a, a + 1) == pytest.approx(20, rel=1e-6)


def test_the_kernel_distance_is_what_pen_and_paper_say() -> None:
    # k(x, y) = (xy + 1)³: within {0, 1} 1, within {1, 2} 27, between (1 + 1 + 8 + 27) / 4.
    a, b = torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])
    value, spread = kernel_distance(a, b)
    assert value == pytest.approx(1 + 27 - 2 * 37 / 4)
    assert spread == 0


def test_the_kernel_distance_of_subsets_is_near_that_of_the_whole_and_repeats() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(60, 4, generator=generator) + shift for shift in (0, 1))
    whole, _ = kernel_distance(a, b)
    value, spread = kernel_distance(a, b, subsets=40, subset_size=30)
    assert spread > 0
    assert abs(value - whole) < spread
    assert kernel_distance(a, b, subsets=40, subset_size=30) == (value, spread)


def test_both_agree_with_torchmetrics() -> None:
    fid, kid = pytest.importorskip("torchmetrics.image.fid"), pytest.importorskip("torchmetrics.image.kid")
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(30, 5, generator=generator, dtype=torch.float64) * scale for scale in (1, 2))
    expected = fid._compute_fid(a.mean(0), a.T.cov(), b.mean(0), b.T.cov()).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-6)
    assert kernel_distance(a, b)[0] == pytest.approx(kid.poly_mmd(a, b).item(), rel=1e-6)


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    ("a", "message"),
    [
        (torch.zeros(1, 3), "2 pictures in each at least, not 1 and 4"),
        (torch.zeros(4, 2), r"not \(4, 2\) and \(4, 3\)"),
        (torch.full((4, 3), math.nan), "NaN"),
    ],
)
def test_what_has_no_distance_is_refused(distance, a: torch.Tensor, message: str) -> None:
    with pytest.raises(HastenError, match=message):
        distance(a, torch.zeros(4, 3))
