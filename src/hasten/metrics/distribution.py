"""How far two sets of pictures are from each other, in the features of a network or a reader that the user names.

A distance means something only together with its features. None of these is called FID or KID here: those names belong
to one particular Inception network (`hasten.metrics.features` says how to name its file).
"""

from __future__ import annotations

import math

import torch

from hasten.errors import HastenError


def frechet_distance(features: torch.Tensor, reference: torch.Tensor) -> float:
    """Fréchet distance of two sets' Gaussians, |μ₁ − μ₂|² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½); 0 for equal sets.

    Heusel et al., 2017, arXiv 1706.08500. It falls with the number of pictures: compare only sets of equal sizes.

    Args:
        features, reference: (N, D) and (M, D), N and M at least 2.

    Raises:
        HastenError: too few pictures, or features that do not fit together or are not finite.
    """
    a, b = _checked(features, reference)
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = (torch.atleast_2d(x.T.cov()) for x in (a, b))
    # tr (Σ₁Σ₂)^½ by the symmetric Σ₁^½ Σ₂ Σ₁^½: real and stable where the covariances are singular.
    values, vectors = torch.linalg.eigh(cov_a)
    root = vectors * values.clamp_min(0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov_b @ root).clamp_min(0).sqrt().sum()
    return max(0.0, (mean + cov_a.trace() + cov_b.trace() - 2 * cross).item())


def kernel_distance(
    features: torch.Tensor, reference: torch.Tensor, subsets: int = 100, subset_size: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """Unbiased squared maximum mean discrepancy under the kernel (x·y / D + 1)³: mean and deviation over subsets.

    Bińkowski et al., 2018, arXiv 1801.01401. Unbiased at every number of pictures; below zero for sets that are alike.

    Args:
        features, reference: (N, D) and (M, D), N and M at least 2.
        subsets, subset_size: as many random subsets; sets no larger than one are taken whole, once.

    Raises:
        HastenError: too few pictures, or features that do not fit together or are not finite.
    """
    a, b = _checked(features, reference)
    if subset_size < 2 or subsets < 1:
        raise HastenError(f"a kernel distance needs 1 subset of 2 pictures at least, not {subsets} of {subset_size}")
    if max(len(a), len(b)) <= subset_size:
        return _discrepancy(a, b), 0.0
    generator = torch.Generator().manual_seed(seed)

    def draw(x: torch.Tensor) -> torch.Tensor:
        return x[torch.randperm(len(x), generator=generator)[:subset_size]]

    values = torch.tensor([_discrepancy(draw(a), draw(b)) for _ in range(subsets)], dtype=torch.float64)
    return values.mean().item(), values.std(correction=0).item()


def _discrepancy(a: torch.Tensor, b: torch.Tensor) -> float:
    def kernel(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: torch.Tensor) -> torch.Tensor:
        square = kernel(x, x)
        return (square.sum() - square.trace()) / (len(x) * (len(x) - 1))

    return (within(a) + within(b) - 2 * kernel(a, b).mean()).item()


def _checked(features: torch.Tensor, reference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = features.detach().double().cpu(), reference.detach().double().cpu()
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise HastenError(f"features are (pictures, dimensions), not {tuple(a.shape)} and {tuple(b.shape)}")
    if min(len(a), len(b)) < 2:
        raise HastenError(f"a distance of sets needs 2 pictures in each at least, not {len(a)} and {len(b)}")
    if not math.isfinite((a.sum() + b.sum()).item()):
        raise HastenError("features hold NaN or infinity")
    return a, b
