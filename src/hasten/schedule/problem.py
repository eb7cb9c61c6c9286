"""The error that a schedule of computed and predicted steps leaves in the final latent, without running the model.

With `y_k` the denoiser's output at step k, as the scheduler gets it (guidance included), and `a_k` how the scheduler
lets it act on the final latent, a prediction `ŷ_k = Σ_j w_kj y_j` moves the final latent by `g_k a_k (ŷ_k − y_k)`. The
gain `g_k` says what the steps after it make of a disturbance. All of it together is `Σ_j c_j y_j` with

    c = Σ_k g_k a_k (w_k − e_k)    and    E‖δx‖² = cᵀ G c,    G_ij = E⟨y_i, y_j⟩,

so that one T × T matrix, measured once, judges any mask and any linear predictor. Where skipped steps are corrected
(`caching.ledger`), the computed step m after them takes `κ Σ_k a_k (w_k − v_k)` off again, with v_k the weights that
interpolate step k between m and the computed steps before; the last step of all does not.

All this is linear, and a model is not: what cancels on paper, between gaps or by a correction, remains in part. So of
what each gap G does alone, c_G, before any correction, the share λ is added as if nothing of it cancelled:

    error² = cᵀ G c + λ² (Σ_G ‖c_G‖)²,    ‖c‖² = cᵀ G c

Without it a search finds the masks whose errors cancel best on paper.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hasten.caching import predictors
from hasten.caching.clock import places_of
from hasten.caching.ledger import DEGREE, SHARE, integral
from hasten.caching.tolerance import LEAK

Vector = NDArray[np.float64]
Mask = tuple[int, ...]
"""The computed steps, ascending; the first is 0."""
Fitted = tuple[predictors.Weights, ...]
"""For each skipped step of a mask the weights of the last computed values, newest first."""
_RIDGE = 1e-3
"""Of least squares, as a share of the mean square: other prompts are not quite those that were measured."""


@dataclass(frozen=True)
class Forecast:
    """A predictor that a schedule is searched for: `poly` in sigma, order 0 being reuse.

    Attributes:
        corrected: see `caching.ledger`.
        fitted: not a polynomial: the weights of the last order + 1 values that the Gram matrix says are best.
    """

    order: int
    damping: float = 1.0
    max_amplification: float = 4.0
    corrected: bool = False
    fitted: bool = False

    @property
    def reach(self) -> int:
        """How many computed steps before the last one it looks at."""
        return max(self.order, DEGREE - 1) if self.corrected else self.order

    def weights(self, anchors: Sequence[float], target: float) -> predictors.Weights:
        """As the cache computes them; anchors newest first."""
        if self.order == 0:
            return predictors.reuse(anchors, target)
        weights = predictors.poly(anchors, target, self.order, self.max_amplification)
        return predictors.damped(weights, self.damping)

    def __str__(self) -> str:
        return self._plain + (", corrected" if self.corrected else "")

    @property
    def _plain(self) -> str:
        if self.order == 0:
            return "reuse"
        if self.fitted:
            return f"least squares of {self.order + 1}"
        return f"poly {self.order}" + ("" if self.damping == 1 else f" × {self.damping:g}")

    def section(self, mask: Mask, weights: Fitted | None = None) -> dict[str, object]:
        """The `cache` section of a plan that computes these steps and predicts the others like this.

        Args:
            weights: those of `Problem.fitted`, where the forecast is.
        """
        section: dict[str, object] = {"method": "taylorseer", "site": "output", "mask": list(mask), "cooldown": 0}
        if self.corrected:
            section["correct"] = True
        if self.order == 0:
            return section | {"method": "reuse"}
        if self.fitted:
            assert weights is not None
            return section | {"predictor": "least_squares", "fitted_weights": [list(row) for row in weights]}
        return section | {
            "predictor": "poly",
            "coordinate": "sigma",
            "order": self.order,
            "damping": self.damping,
            "max_amplification": self.max_amplification,
        }


FORECASTS = tuple(
    Forecast(order, damping, corrected=corrected, fitted=fitted)
    for corrected in (True, False)
    for order, damping, fitted in (
        (0, 1.0, False),
        (2, 1.0, True),
        *((order, damping, False) for order in (1, 2) for damping in (0.5, 0.75, 1.0)),
    )
)


class Gap(NamedTuple):
    """The steps between two computed ones.

    Attributes:
        part: what is theirs of `c`, with their correction, shape (T,).
        alone: ‖c_G‖ without it.
    """

    part: Vector
    alone: float


@dataclass(frozen=True)
class Problem:
    """What was measured of a model's full runs at one number of steps.

    Attributes:
        sigmas: noise level of each step, shape (T,).
        impact: `g_k a_k`, shape (T,): what an error of one in step k's output does to the final latent.
        gram: `E⟨y_i, y_j⟩` per element, shape (T, T).
        power: mean square of the final latent per element.
        response: a_k alone; None where all gains are 1.
        leak: λ, the share that remains of what cancels on paper.
    """

    sigmas: Vector
    impact: Vector
    gram: Vector
    power: float
    response: Vector | None = None
    leak: float = LEAK
    _known: dict[tuple[object, ...], predictors.Weights] = field(default_factory=dict, repr=False)
    _gaps: dict[tuple[Forecast, tuple[int, ...], int], Gap] = field(default_factory=dict, repr=False)

    @property
    def steps(self) -> int:
        return len(self.sigmas)

    def error(self, mask: Mask, forecast: Forecast) -> float:
        """The expected error of the final latent, relative to its root mean square."""
        c, alone = np.zeros(self.steps), 0.0
        for position, anchor in enumerate(mask):
            until = mask[position + 1] if position + 1 < len(mask) else self.steps
            if until > anchor + 1:
                gap = self._gap(forecast, mask[max(0, position - forecast.reach) : position + 1], until)
                c += gap.part
                alone += gap.alone
        return float(np.sqrt((self._square(c) + (self.leak * alone) ** 2) / self.power))

    def _square(self, c: Vector) -> float:
        """`‖c‖² = cᵀ G c`."""
        return max(float(c @ self.gram @ c), 0.0)

    def _gap(self, forecast: Forecast, anchors: tuple[int, ...], until: int) -> Gap:
        """The steps after the last of these anchors and before `until`."""
        # A search asks for the same gap over and over.
        key = (forecast, anchors, until)
        gap = self._gaps.get(key)
        if gap is None:
            part = self._errors(forecast, anchors, until).sum(axis=0)
            alone = self._square(part) ** 0.5
            if forecast.corrected and until < self.steps - 1:
                part = part - self._correction(forecast, anchors, until)
            gap = self._gaps[key] = Gap(part, alone)
        return gap

    def _correction(self, forecast: Forecast, anchors: tuple[int, ...], until: int) -> Vector:
        """`g_m κ Σ_k a_k (w_k − v_k)` for the steps between the last anchor and the computed step m = `until`."""
        response = self.impact if self.response is None else self.response
        nodes = (until, *anchors[::-1][:DEGREE])
        put = np.zeros(self.steps)
        between = range(anchors[-1] + 1, until)
        for node, weight in zip(nodes, integral(self._places, response.tolist(), between, nodes), strict=True):
            put[node] -= weight
        newest_first = anchors[::-1]
        for target in between:
            weights = self._weights(forecast, newest_first, target)
            for anchor, weight in zip(newest_first, weights, strict=False):
                put[anchor] += response[target] * weight
        gain = self.impact[until] / response[until] if response[until] else 0.0
        return put * gain * SHARE

    def _errors(self, forecast: Forecast, anchors: tuple[int, ...], until: int) -> Vector:
        """`g_k a_k (w_k − e_k)` for each step k between the last anchor and `until`, shape (steps, T)."""
        newest_first = anchors[::-1]
        targets = range(anchors[-1] + 1, until)
        rows = np.zeros((len(targets), self.steps))
        for row, target in zip(rows, targets, strict=True):
            for anchor, weight in zip(newest_first, self._weights(forecast, newest_first, target), strict=False):
                row[anchor] += weight
            row[target] -= 1.0
            row *= self.impact[target]
        return rows

    def _weights(self, forecast: Forecast, newest_first: tuple[int, ...], target: int) -> predictors.Weights:
        anchors = newest_first[: forecast.order + 1]
        key = (forecast.order, forecast.damping, forecast.max_amplification, forecast.fitted, anchors, target)
        weights = self._known.get(key)
        if weights is None:
            if forecast.fitted:
                weights = self._least_squares(anchors, target)
            else:
                weights = forecast.weights([self._places[anchor] for anchor in anchors], self._places[target])
            self._known[key] = weights
        return weights

    def _least_squares(self, anchors: Sequence[int], target: int) -> predictors.Weights:
        """`argmin_w E‖Σ_j w_j y_j − y_k‖²` with Σw = 1, that is D⁻¹1 / 1ᵀD⁻¹1 with `D_ij = E⟨y_i − y_k, y_j − y_k⟩`."""
        G, a, k = self.gram, list(anchors), target
        D = G[np.ix_(a, a)] - G[a, k][:, None] - G[k, a][None, :] + G[k, k]
        D = D + np.eye(len(a)) * (_RIDGE * np.trace(D) / len(a) + 1e-30)
        w = np.linalg.solve(D, np.ones(len(a)))
        return tuple((w / w.sum()).tolist())

    def fitted(self, mask: Mask, forecast: Forecast) -> Fitted | None:
        """The weights of every skipped step, to four digits; None where the forecast needs none."""
        if not forecast.fitted:
            return None
        rows = []
        for step in (step for step in range(self.steps) if step not in mask):
            newest_first = tuple(anchor for anchor in reversed(mask) if anchor < step)
            *older, last = reversed(self._weights(forecast, newest_first, step))
            older = [round(weight, 4) for weight in older]
            rows.append((1 - sum(older), *reversed(older)) if older else (last,))
        return tuple(rows)

    @cached_property
    def _places(self) -> list[float]:
        return list(places_of([float(sigma) for sigma in self.sigmas], float(self.sigmas.max())))

    def stretch_costs(self, forecast: Forecast) -> Vector:
        """`C[i, j, k]`: the squared error of the steps between anchors j and k alone where i was the anchor before j.

        i = j stands for "there is none before"; k = T for the end of the run. Shape (T, T, T + 1), infinite where the
        order is not i ≤ j < k. Stretches do not see each other in it, which is what dynamic programming asks for.
        """
        steps = self.steps
        costs = np.full((steps, steps, steps + 1), np.inf)
        for j in range(steps):
            for i in range(j + 1):
                anchors = (j,) if i == j else (i, j)
                costs[i, j, j + 1] = 0.0
                for k in range(j + 2, steps + 1):
                    gap = self._gap(forecast, anchors, k)
                    costs[i, j, k] = self._square(gap.part) + (self.leak * gap.alone) ** 2
        return costs
