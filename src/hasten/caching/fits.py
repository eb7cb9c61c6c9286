"""Predictors that solve a small least-squares problem for their weights: the signature of `predictors`, with numpy.

Their weights do not sum to 1 in general: a ridge shrinks, and modes decay.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.polynomial.chebyshev import chebvander

from hasten.caching.predictors import Gram, Weights, poly

# Directions of the snapshots that hold less than this share of the greatest are noise. It is the square root of what a
# Gram matrix can resolve.
_NOISE = 1e-4


def chebyshev(
    anchors: Sequence[float],
    target: float,
    length: int,
    order: int = 4,
    ridge: float = 0.1,
    blend: float = 0.5,
    max_amplification: float = 4.0,
) -> Weights:
    """Spectrum: a ridge regression on Chebyshev polynomials, blended with a straight line.

    `w = φ(u)ᵀ(ΦᵀΦ + λI)⁻¹Φᵀ` with `φ = (T₀ … T_order)` and the steps mapped to `u = 2·step/length − 1`; then
    `blend·w + (1 − blend)·poly of order 1`. The order falls while `Σ|w|` is more than `max_amplification`. The ridge
    falls on the constant, too, so that the weights sum to a little less than 1.

    Args:
        anchors: step indices, newest first.
        length: the number of steps of the run.
        ridge: λ.

    >>> [round(w, 3) for w in chebyshev([20, 14, 8], 23, 50)]
    [1.29, -0.284, -0.08]
    """
    line = poly(anchors, target, 1, max_amplification)
    u = 2 * np.asarray([target, *anchors], dtype=float) / length - 1
    for degree in range(order, 0, -1):
        at, basis = np.split(chebvander(u, degree), [1])
        fit = np.linalg.solve(basis.T @ basis + ridge * np.eye(degree + 1), basis.T)
        weights = blend * (at @ fit)[0]
        weights[: len(line)] += (1 - blend) * np.asarray(line)
        if np.abs(weights).sum() <= max_amplification:
            return tuple(map(float, weights))
    return line


def dmd(anchors: Sequence[float], target: float, gram: Gram, max_amplification: float = 4.0) -> Weights:
    """Dynamic mode decomposition: the snapshots are taken for a few modes, each of which turns and decays.

    With `X` and `X'` the snapshots without their newest and without their oldest, `X' ≈ A·X`, and `A`'s eigenvalues λ
    and modes say how to go on: `ŷ = Re Σ Φ λ^q b`, `q` the steps ahead in units of the gap. All of that lies in the
    span of the snapshots, so their Gram matrix is enough. Eigenvalues outside the unit circle would grow without
    bounds; they are drawn back onto it.

    It needs snapshots at even gaps: the newest that lie evenly are used. Where these are fewer than four, and where
    `Σ|w|` would be more than `max_amplification`, it is `poly` of order 1. Schmid 2010; for caching: hicache++.

    Args:
        anchors: step indices, newest first.
        gram: the snapshots' inner products, newest first.

    >>> y = [0.5**k for k in range(4)]  # decays by one half from snapshot to snapshot
    >>> w = dmd([12, 8, 4, 0], 16, [[a * b for a in y[::-1]] for b in y[::-1]])
    >>> round(sum(a * b for a, b in zip(w, y[::-1])) / y[-1], 6)
    0.5
    """
    even = _even(anchors)
    if even >= 4:
        G = np.asarray(gram, dtype=float)[:even, :even][::-1, ::-1]  # oldest first
        ahead = (target - anchors[0]) / (anchors[0] - anchors[1])
        weights = _modes(G, ahead)[::-1]
        if np.isfinite(weights).all() and np.abs(weights).sum() <= max_amplification:
            return tuple(map(float, weights))
    return poly(anchors, target, 1, max_amplification)


def _modes(G: np.ndarray, ahead: float) -> np.ndarray:
    """Weights of the snapshots, oldest first, from their Gram matrix."""
    variances, V = np.linalg.eigh(G[:-1, :-1])
    kept = variances > _NOISE**2 * variances[-1]
    if not kept.any():
        return np.full(len(G), np.nan)
    V = V[:, kept] / np.sqrt(variances[kept])  # V Σ⁻¹
    turns, W = np.linalg.eig(V.T @ G[:-1, 1:] @ V)
    if np.isrealobj(turns) and (turns < 0).any():
        return np.full(len(G), np.nan)  # a mode that only turns its sign at every gap has no value between two of them
    modes = V @ W  # Φ = X' V Σ⁻¹ W, as weights of X'
    inner = G[1:, 1:]
    b, *_ = np.linalg.lstsq(modes.conj().T @ inner @ modes, modes.conj().T @ inner[:, -1], rcond=None)
    turns = turns / np.maximum(np.abs(turns), 1)
    return np.concatenate([[0.0], (modes @ (turns**ahead * b)).real])


def _even(anchors: Sequence[float]) -> int:
    """How many of the newest anchors lie at even gaps."""
    count = min(len(anchors), 2)
    while count < len(anchors) and anchors[count - 1] - anchors[count] == anchors[0] - anchors[1]:
        count += 1
    return count
