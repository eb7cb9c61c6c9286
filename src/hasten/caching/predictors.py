"""Predictors: where the stand-in value of a skipped step comes from.

A predictor is a weight vector over the last computed snapshots, `ŷ(τ) = Σ_j w_j · y(τ_j)`. The weights depend only on
where the snapshots and the target lie on the noise schedule, so they are a handful of floats on the CPU, and one
weighted sum serves all predictors. All of them share one signature:

    f(anchors, target, …) -> weights

anchors: the coordinates τ_j of the snapshots, newest first (the noise level sigma, or the step index).
target: the coordinate τ of the step that is skipped.
weights: newest first, at most as many as there are anchors; they sum to 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import factorial

Weights = tuple[float, ...]


def reuse(anchors: Sequence[float], target: float) -> Weights:
    """The newest snapshot as it is.

    >>> reuse([8, 4], 9)
    (1.0,)
    """
    return (1.0,)


def poly(anchors: Sequence[float], target: float, order: int = 1, max_amplification: float = 4.0) -> Weights:
    """The polynomial of degree `order` through the last `order + 1` snapshots, as Lagrange weights.

    `w_j = Π_{i≠j} (τ − τ_i)/(τ_j − τ_i)`: exact for polynomials of that degree whatever the gaps between the anchors.
    The order falls while there are too few snapshots, and while `Σ|w|`, which bounds how much the noise in the
    snapshots is amplified, is more than `max_amplification`.

    >>> poly([8, 4], 10)
    (1.5, -0.5)
    """
    # Solvers with two calls per step visit one sigma twice: the newer snapshot speaks for both.
    used = [j for j, tau in enumerate(anchors) if tau not in anchors[:j]]
    for degree in range(min(order, len(used) - 1), 0, -1):
        nodes = used[: degree + 1]
        weights = [0.0] * (nodes[-1] + 1)
        for j in nodes:
            weights[j] = _lagrange(anchors, nodes, j, target)
        if sum(map(abs, weights)) <= max_amplification:
            return tuple(weights)
    return reuse(anchors, target)


def _lagrange(anchors: Sequence[float], nodes: Sequence[int], j: int, target: float) -> float:
    weight = 1.0
    for i in nodes:
        if i != j:
            weight *= (target - anchors[i]) / (anchors[j] - anchors[i])
    return weight


def taylor(anchors: Sequence[float], target: float, order: int = 1, first_enhance: int = 0) -> Weights:
    """The published TaylorSeer recursion (Liu et al. 2025, arXiv 2503.06923), run on unit vectors.

    At each computed step the derivatives are `F⁰ = y`, `Fⁱ⁺¹ = (Fⁱ − Fⁱ of the computed step before) / h`, with `h` the
    gap between these two steps; the stand-in is `Σ_i Fⁱ xⁱ / i!` at `x` steps after the newest. From order 2 on this
    differs from interpolation (`poly`): it does not pass through its own anchors, and at uneven gaps its second
    derivative has the wrong divisor. It is here for faithful comparison.

    Args:
        anchors: step indices, newest first.
        first_enhance: the published code forms no derivatives before step `first_enhance − 1`.

    >>> taylor([8, 4, 0], 10, order=2)
    (1.625, -0.75, 0.125)
    """
    nodes = list(anchors[: order + 1])
    derivatives: list[list[float]] = []
    for j in range(len(nodes) - 1, -1, -1):  # oldest first, as they were computed
        fresh = [[float(i == j) for i in range(len(nodes))]]
        if derivatives and nodes[j] > first_enhance - 2:
            gap = nodes[j] - nodes[j + 1]
            for before in derivatives[:order]:
                fresh.append([(new - old) / gap for new, old in zip(fresh[-1], before, strict=True)])
        derivatives = fresh
    elapsed = target - nodes[0]
    scales = [elapsed**i / factorial(i) for i in range(len(derivatives))]
    return tuple(
        sum(scale * derivative[j] for scale, derivative in zip(scales, derivatives, strict=True))
        for j in range(len(nodes))
    )


def damped(weights: Weights, damping: float) -> Weights:
    """Trust the prediction only so far: `w ← κ·w + (1 − κ)·(1, 0, 0, …)`.

    Args:
        damping: κ in [0, 1]; 1 leaves the weights as they are, 0 is `reuse`.

    >>> damped((1.5, -0.5), 0.5)
    (1.25, -0.25)
    """
    if damping == 1:
        return weights
    newest, *rest = weights
    return (damping * newest + (1 - damping), *(damping * weight for weight in rest))
