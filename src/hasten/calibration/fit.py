"""The polynomial of TeaCache, by least squares (Liu et al. 2024, arXiv 2411.19108)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from hasten.calibration.store import Fit

DEGREE = 4
# So many samples for each coefficient: fewer, and the polynomial goes through the noise.
_SAMPLES_EACH = 4
_GRID = 64


def fit(signals: Sequence[float], changes: Sequence[float]) -> Fit | None:
    """The polynomial that best tells the output's change from the input's.

    Its degree is the highest, up to 4, with which it neither falls nor is negative between the least and the largest
    signal: the published polynomials do both in places, and then a larger change counts less than a smaller one.

    Args:
        signals, changes: one pair for each step of each run.

    Returns:
        None where no rising function fits: the input's change does not tell the output's.
    """
    x, y = np.asarray(signals, float), np.asarray(changes, float)
    finite = np.isfinite(x) & np.isfinite(y)
    x, y = x[finite], y[finite]
    if len(x) < 2 or np.ptp(x) == 0:
        return None
    grid = np.linspace(x.min(), x.max(), _GRID)
    for degree in range(min(DEGREE, len(x) // _SAMPLES_EACH), 0, -1):
        # Around the middle of the data and to their scale, the equations are well conditioned.
        polynomial = np.polynomial.Polynomial.fit(x, y, degree)
        values = polynomial(grid)
        if values[0] >= 0 and np.all(np.diff(values) >= 0):
            left = float(np.sum((polynomial(x) - y) ** 2))
            spread = float(np.sum((y - y.mean()) ** 2))
            coefficients = polynomial.convert().coef[::-1]
            return Fit(
                polynomial=tuple(float(f"{value:.9g}") for value in coefficients),
                fitted=(float(x.min()), float(x.max())),
                explained=1 - left / spread if spread else 1.0,
            )
    return None
