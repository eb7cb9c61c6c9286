"""The policy `tolerance`: gaps between computed steps as an adaptive solver chooses its steps.

Let s_k be the place of step k on the way of the run (`clock.places_of`) and a_k what the scheduler makes of its output
(`effects`), y the output with guidance, and n_0, n_1, … the last computed steps, newest first. A polynomial of degree p
through them errs at step k by

    ‖ŷ_k − y_k‖ = C_p · Π_{i≤p} |s_k − s_{n_i}|,        C_p = ‖y[n_0, …, n_{p+1}]‖

with the divided difference of order p + 1 in the place of a derivative. At a computed step C_p costs nothing: the error
that the prediction of this very step would have had, over that product. A gap up to the computed step m then moves the
final latent by at most

    D(m) = C_p · Σ_{n_0<k<m} |a_k| · Π_{i≤p} |s_k − s_{n_i}|

With the correction (`ledger`) the skipped steps are interpolated once m is known: its error is of the same form, with
s_m and one old step less among the nodes.

The tolerance is a bound for the whole run: for the root of the sum of the squares of all D over the latent's own size.
Least computed steps for a given sum means the same D in every gap. So of the square of the bound the share (k/T)^ρ may
be spent up to step k. What was really spent is known after every gap. Of the first gap nothing is known, and divided
differences over a short gap see little but the roughness of the outputs: it is `T/2 · √tolerance` steps wide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, prod, sqrt

from hasten.caching.adaptive import Adaptive
from hasten.caching.policies import Decision
from hasten.caching.predictors import poly

NODES = 4
"""So many computed steps are looked at, the one just computed included."""
FIRST = 0.5
"""The first gap, as a share of the run's steps at a tolerance of 1; it goes with the root of the tolerance."""
GROWTH = 2
"""A gap is at most so many times as wide as the one before: what was measured near by says nothing of far away."""


@dataclass(frozen=True)
class Shown:
    """What a computed step showed of what the scheduler gets, y.

    Attributes:
        index: the step.
        places, effects: s_k and a_k of every step of the run.
        products: `E⟨d_i, d_j⟩` with d_i = y_{n_i} − y, over the computed steps n_i before this one, newest first.
        size: the root mean square of the final latent, as this step foretells it.
    """

    index: int
    places: Sequence[float]
    effects: Sequence[float]
    products: Sequence[Sequence[float]]
    size: float


@dataclass
class Tolerance(Adaptive):
    """Skip while the error that is to be expected leaves the final latent within a bound.

    Args:
        tolerance: for the relative error of the final latent.
        order: the highest degree of a prediction.
        corrects: what skipped steps did wrong is put right afterwards, see `ledger`.
        rho: ρ.
        leak: what a correction does not take back, as a share.
    """

    tolerance: float = 0.01
    order: int = 2
    corrects: bool = False
    rho: float = 1.0
    leak: float = 0.3

    def __post_init__(self) -> None:
        super().__post_init__()
        self._nodes: deque[int] = deque(maxlen=NODES)
        self._next = 0
        self._spent = 0.0
        self._why = "no step has reached a scheduler yet"

    def foresee(self, index: int, total: int | None) -> Decision:
        return Decision(index >= self._next, self._why)

    @property
    def expected(self) -> float:
        """The error of the final latent so far, relative."""
        return sqrt(self._spent)

    def learn(self, shown: Shown) -> None:
        """Plan the next gap by what a computed step showed."""
        before, self._why = list(self._nodes), "tolerance"
        self._nodes.appendleft(shown.index)
        constants = self._constants(shown, before) if shown.size else []
        if constants and before[0] < shown.index - 1:
            self._spent += (self._gap(shown, constants, before, shown.index) / shown.size) ** 2
        self._next = shown.index + 1
        if not before:
            self._next = shown.index + max(1, round(FIRST * len(shown.places) * sqrt(min(self.tolerance, 1.0))))
        if not constants:
            return
        nodes, total = list(self._nodes), len(shown.places)
        widest = shown.index + GROWTH * (shown.index - before[0])
        for until in range(shown.index + 2, min(total, widest + 1)):
            error = self._gap(shown, constants, nodes, until) / shown.size
            if not self._spent + error**2 <= self.tolerance**2 * (until / total) ** self.rho:  # NaN: compute
                break
            self._next = until
        ahead = [self._predicted(shown, constants, nodes, self._next, p) for p in range(len(constants))]
        self.order_now = min(range(len(ahead)), key=ahead.__getitem__)

    def _constants(self, shown: Shown, before: Sequence[int]) -> list[float]:
        """C_p for every degree that there are computed steps for."""
        place = shown.places[shown.index]
        found = []
        for p in range(min(self.order + 1, len(before))):
            nodes = [shown.places[node] for node in before[: p + 1]]
            weights = poly(nodes, place, p, max_amplification=inf)
            pairs = ((i, j) for i in range(len(weights)) for j in range(len(weights)))
            product = prod(abs(place - node) for node in nodes)
            if not product:  # a step without effect lies where the one before does
                break
            square = sum(weights[i] * weights[j] * shown.products[i][j] for i, j in pairs)
            found.append(sqrt(square if square != square else max(square, 0.0)) / product)
        return found

    def _gap(self, shown: Shown, constants: Sequence[float], nodes: Sequence[int], until: int) -> float:
        """D(until), by the best degree."""
        predicted = min(self._predicted(shown, constants, nodes, until, p) for p in range(len(constants)))
        degree = min(len(constants) - 1, 2)
        if not self.corrects or degree < 1 or until >= len(shown.places) - 1:
            return predicted
        rest = self._sum(shown, nodes[0], until, [until, *nodes[:degree]])
        return constants[degree] * rest + self.leak * predicted

    def _predicted(self, shown: Shown, constants: Sequence[float], nodes: Sequence[int], until: int, p: int) -> float:
        return constants[p] * self._sum(shown, nodes[0], until, nodes[: p + 1])

    def _sum(self, shown: Shown, begin: int, until: int, nodes: Sequence[int]) -> float:
        """`Σ_{begin<k<until} |a_k| Π |s_k − s_node|`."""
        places = shown.places
        return sum(
            abs(shown.effects[k]) * prod(abs(places[k] - places[node]) for node in nodes)
            for k in range(begin + 1, until)
        )
