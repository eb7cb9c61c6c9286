"""Predictors: where the stand-in value of a skipped step comes from.

A predictor is a weight vector over the last computed snapshots, `ŷ(τ) = Σ_j w_j · y(τ_j)`. The weights depend only on
where the snapshots and the target lie on the noise schedule, so they are a handful of floats on the CPU, and one
weighted sum serves all predictors. All of them share one signature:

    f(anchors, target, …) -> weights

anchors: the coordinates τ_j of the snapshots, newest first (the noise level sigma, or the step index).
target: the coordinate τ of the step that is skipped.
weights: newest first, at most as many as there are anchors; they sum to 1 (not those of `fits`).

The predictors in here are closed formulas; `fits` has those that solve a small least-squares problem.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import zip_longest
from math import exp, factorial, isfinite, sqrt

Weights = tuple[float, ...]
Gram = Sequence[Sequence[float]]
"""The inner products of the snapshots, newest first: `gram[i][j] = <y_i, y_j>`."""


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
    used = _distinct(anchors)
    for degree in range(min(order, len(used) - 1), 0, -1):
        nodes = [anchors[j] for j in used[: degree + 1]]
        weights = tuple(_lagrange(nodes, j, target) for j in range(degree + 1))
        if sum(map(abs, weights)) <= max_amplification:
            return _spread(weights, used)
    return reuse(anchors, target)


def _lagrange(nodes: Sequence[float], j: int, target: float) -> float:
    weight = 1.0
    for i, node in enumerate(nodes):
        if i != j:
            weight *= (target - node) / (nodes[j] - node)
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
    derivatives = _derivatives(anchors, order, first_enhance)
    x = target - anchors[0]
    return _sum((x**i / factorial(i), derivative) for i, derivative in enumerate(derivatives))


def hermite(
    anchors: Sequence[float],
    target: float,
    order: int = 2,
    sigma_scale: float = 0.5,
    first_enhance: int = 0,
    max_amplification: float = 4.0,
) -> Weights:
    """HiCache: scaled Hermite polynomials in the place of TaylorSeer's powers.

    `ŷ = y + Σ_i Fⁱ/i! · σⁱ Hᵢ(σx)` with the derivatives of `taylor` and the physicists' polynomials `H₁ = 2x`,
    `Hᵢ₊₁ = 2x·Hᵢ − 2i·Hᵢ₋₁`. Of order 1 it is the straight line damped by `2σ²`. Of order 2 and more it does not pass
    through its newest anchor: there is a bias of `−σ²F²` at x = 0. The order falls as that of `poly` does.

    Args:
        anchors: step indices, newest first.
        sigma_scale: σ.

    >>> hermite([8, 4], 10, order=1)
    (1.25, -0.25)
    """
    derivatives = _derivatives(anchors, order, first_enhance)
    x = sigma_scale * (target - anchors[0])
    before, now, scales = 0.0, 1.0, [1.0]
    for i in range(1, len(derivatives)):
        before, now = now, 2 * x * now - 2 * (i - 1) * before
        scales.append(sigma_scale**i * now / factorial(i))
    for degree in range(len(derivatives), 1, -1):
        weights = _sum(zip(scales[:degree], derivatives[:degree], strict=True))
        if sum(map(abs, weights)) <= max_amplification:
            return weights
    return reuse(anchors, target)


def ab2(anchors: Sequence[float], target: float, max_amplification: float = 4.0) -> Weights:
    """AB-Cache: the second Adams–Bashforth formula, for steps of any size.

    `ŷ = y₀ + e·[(1 + e/2h)·f₀ − (e/2h)·f₁]` with the slopes `f₀ = (y₀ − y₁)/h` and `f₁` between the anchors before,
    and `e` from the newest anchor to the target. Exact for straight lines. With fewer than three anchors, and where
    `Σ|w|` would be more than `max_amplification`, it is `poly` of order 1.

    >>> ab2([8, 4, 0], 10)
    (1.625, -0.75, 0.125)
    """
    used = _distinct(anchors)[:3]
    if len(used) == 3:
        nodes = [anchors[j] for j in used]
        e, h = target - nodes[0], nodes[0] - nodes[1]
        weights = _sum(((1, (1,)), (e + e * e / (2 * h), _slope(nodes, 0, 1)), (-e * e / (2 * h), _slope(nodes, 1, 2))))
        if sum(map(abs, weights)) <= max_amplification:
            return _spread(weights, used)
    return poly(anchors, target, 1, max_amplification)


def bdf2(anchors: Sequence[float], target: float) -> tuple[Weights, Weights]:
    """The second backward differentiation formula from three anchors, for steps of any size.

    Returns:
        the forecast at the target, and the derivative that goes with it.

    >>> forecast, derivative = bdf2([2, 1, 0], 3)
    >>> [round(3 * w) for w in forecast], [2 * w for w in derivative]
    ([7, -5, 1], [3.0, -4.0, 1.0])
    """
    newest, middle, oldest = anchors[:3]
    e, h = target - newest, newest - middle
    # At the newest of the parabola through the three: (3y₀ − 4y₁ + y₂) / 2h where gaps are even.
    bend = h / (newest - oldest)
    derivative = _sum(((1 + bend, _slope(anchors, 0, 1)), (-bend, _slope(anchors, 1, 2))))
    r = e / h
    past = ((1 + r) ** 2 / (1 + 2 * r), -(r**2) / (1 + 2 * r))
    return _sum(((1, past), (e * (1 + r) / (1 + 2 * r), derivative))), derivative


def foca(anchors: Sequence[float], target: float, max_amplification: float = 4.0) -> Weights:
    """FoCa: forecast with `bdf2`, then calibrate with Heun's rule.

    `ŷ = y₀ + e/2 · (f₀ + f̂)`: `f₀` is the slope between the two newest anchors, `f̂` the slope at the target, which
    the forecast has by its own formula. The authors' code is not public and the readings of others differ; this one is
    anchored (it never builds on its own predictions) and holds for uneven gaps. Exact for straight lines. With fewer
    than three anchors, and where `Σ|w|` would be more than `max_amplification`, it is `poly` of order 1.

    >>> foca([8, 4, 0], 12)
    (2.25, -1.5, 0.25)
    """
    used = _distinct(anchors)[:3]
    if len(used) == 3:
        nodes = [anchors[j] for j in used]
        # The slope of a BDF2 forecast at its target is the derivative that it was made with.
        _, slope_there = bdf2(nodes, target)
        half = (target - nodes[0]) / 2
        weights = _sum(((1, (1,)), (half, _slope(nodes, 0, 1)), (half, slope_there)))
        if sum(map(abs, weights)) <= max_amplification:
            return _spread(weights, used)
    return poly(anchors, target, 1, max_amplification)


def dcta(alignment: float, max_amplification: float = 2.0) -> Weights:
    """The last two snapshots, taken as far as a probe has gone: DiCache's trajectory alignment.

    Bu et al. 2025, arXiv 2508.17356.
    `w = (γ, 1 − γ)`, with γ the probe's distance from the second newest computed step by that between the last two.

    Args:
        alignment: γ; below 1, or no number, the newest snapshot alone counts.
        max_amplification: the most that the weights' absolute values may sum to; 2 is the published γ ≤ 1.5.

    >>> dcta(1.25)
    (1.25, -0.25)
    >>> dcta(7.0)
    (1.5, -0.5)
    """
    gamma = min(max(alignment, 1.0), (max_amplification + 1) / 2) if isfinite(alignment) else 1.0
    return (gamma, 1 - gamma)


def difference(anchors: Sequence[float], target: float) -> Weights:
    """The newest snapshot plus its difference to the one before, whatever the gaps: damped by w it is FasterCache's.

    Lv et al. 2024, arXiv 2410.19355: `o₁ + w · (o₁ − o₂)`.

    >>> damped(difference([8, 6], 9), 0.5)
    (1.5, -0.5)
    """
    return (2.0, -1.0) if len(anchors) > 1 else reuse(anchors, target)


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


def mixed(predictions: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """`Σ_i μ_i ŷ_i`, as weights.

    >>> mixed([(1.0,), (1.5, -0.5)], (0.5, 0.5))
    (1.25, -0.25)
    """
    return _sum(zip(shares, predictions, strict=True))


def trusted(weights: Weights, observer: Weights, gram: Gram, horizon: float, theta: float) -> Weights:
    """Shrink a prediction towards the newest snapshot as far as a second opinion differs from it.

    `κ = exp(−0.3·max(horizon − 1, 0)) · sigmoid(4(θ − r))` with the risk `r = ‖ŷ − ŷ_observer‖ / ‖ŷ‖`, then `damped`
    by κ. After RACER (2026, arXiv 2608.01740), with the constants of a port of it.

    Args:
        observer: the weights of another predictor over the same snapshots.
        gram: the snapshots' inner products, newest first.
        horizon: steps since the newest snapshot.
        theta: θ, the risk at which half of the trust is gone.
    """
    difference = _sum(((1, weights), (-1, observer)))
    size = _norm(weights, gram)
    risk = _norm(difference, gram) / size if size else 0.0
    return damped(weights, exp(-0.3 * max(horizon - 1, 0)) / (1 + exp(-4 * (theta - risk))))


def _norm(weights: Weights, gram: Gram) -> float:
    """‖Σ_j w_j y_j‖, from inner products."""
    pairs = ((i, j) for i in range(len(weights)) for j in range(len(weights)))
    return sqrt(max(sum(weights[i] * weights[j] * gram[i][j] for i, j in pairs), 0.0))


def _derivatives(anchors: Sequence[float], order: int, first_enhance: int) -> list[Weights]:
    """The derivatives 0 to `order` of the published recursion, as weights."""
    nodes = list(anchors[: order + 1])
    derivatives: list[Weights] = []
    for j in range(len(nodes) - 1, -1, -1):  # oldest first, as they were computed
        fresh: list[Weights] = [tuple(float(i == j) for i in range(len(nodes)))]
        if derivatives and nodes[j] > first_enhance - 2:
            gap = nodes[j] - nodes[j + 1]
            for before in derivatives[:order]:
                fresh.append(tuple((new - old) / gap for new, old in zip(fresh[-1], before, strict=True)))
        derivatives = fresh
    return derivatives


def _distinct(anchors: Sequence[float]) -> list[int]:
    """The positions of anchors that no newer anchor shares: solvers with two calls per step visit one sigma twice."""
    return [j for j, tau in enumerate(anchors) if tau not in anchors[:j]]


def _slope(anchors: Sequence[float], newer: int, older: int) -> Weights:
    """The difference quotient between two anchors."""
    weights = [0.0] * (older + 1)
    weights[newer] = 1 / (anchors[newer] - anchors[older])
    weights[older] = -weights[newer]
    return tuple(weights)


def _sum(terms: Iterable[tuple[float, Weights]]) -> Weights:
    """`Σ factor · weights`, the shorter ones filled up with zeros."""
    scaled = [[factor * weight for weight in weights] for factor, weights in terms]
    return tuple(map(sum, zip_longest(*scaled, fillvalue=0.0)))


def _spread(weights: Weights, used: Sequence[int]) -> Weights:
    """Weights over some of the anchors as weights over all of them."""
    spread = [0.0] * (used[len(weights) - 1] + 1)
    for weight, j in zip(weights, used, strict=False):
        spread[j] = weight
    return tuple(spread)
