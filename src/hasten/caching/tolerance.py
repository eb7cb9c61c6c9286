"""The policy `tolerance`: gaps between computed steps as an adaptive solver chooses its steps.

Let s_k be the place of step k on the way of the run (`clock.places_of`) and a_k what the scheduler makes of its output
(`effects`), y the output with guidance, and n_0, n_1, … the last computed steps, newest first. A polynomial of degree p
through them errs at step k by

    ŷ_k − y_k = V_p · Π_{i≤p} |s_k − s_{n_i}|,        V_p = ±y[n_0, …, n_{p+1}]

with the divided difference of order p + 1 in the place of a derivative. At a computed step V_p costs nothing: the error
that the prediction of this very step would have had, over that product. A gap up to the computed step m then moves the
final latent by at most

    D(m) = min_p S_p(m) ‖V_p‖,        S_p(m) = Σ_{n_0<k<m} |a_k| · Π_{i≤p} |s_k − s_{n_i}|

Errors of different degrees point to different sides, so what stands in is a mixture of all degrees, in the shares
μ_p ≥ 0, Σμ_p = 1, that make ‖Σ_p μ_p S_p V_p‖ least. How well they cancel is not counted on in D: the sides change.
So without the correction, where nothing takes back what did not cancel, the best degree stands alone.

With the correction (`ledger`) the skipped steps are interpolated once m is known: its error is of the same form, with
s_m and one old step less among the nodes.

The tolerance is a bound for the whole run: for the root of the sum of the squares of all D over the latent's own size.
Of its square the share (k/T)^ρ may be spent up to step k. ρ = 1 would allow the same to every gap; but what is done to
an early step, while it is being decided what the picture is to show, grows in the steps after it, and ρ = 2 keeps more
for the end. What was really spent is known after every gap. Of the first gap nothing is known, and divided differences
over a short gap see little but the roughness of the outputs: it is `T/2 · √tolerance` steps wide.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import inf, prod, sqrt

from hasten.caching.adaptive import Adaptive
from hasten.caching.policies import Decision
from hasten.caching.predictors import Weights, poly

NODES = 4
"""So many computed steps are looked at, the one just computed included."""
FIRST = 0.5
"""The first gap, as a share of the run's steps at a tolerance of 1; it goes with the root of the tolerance."""
GROWTH = 2
"""A gap is at most so many times as wide as the one before: what was measured near by says nothing of far away."""
LEAK = 0.3
"""Of what cancels on paper so much remains: the model answers to an error before it is taken back."""
_ROUNDS = 40
"""Shares are exact to a thousandth of the error after so many, however alike the errors are."""


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
        order: the highest degree in a prediction.
        corrects: what skipped steps did wrong is put right afterwards, see `ledger`.
        rho: ρ.
        leak: what a correction does not take back, as a share.
    """

    tolerance: float = 0.01
    order: int = 2
    corrects: bool = False
    rho: float = 2.0
    leak: float = LEAK

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
        gram = self._gram(shown, before) if shown.size else []
        if gram and before[0] < shown.index - 1:
            self._spent += (self._gap(shown, gram, before, shown.index) / shown.size) ** 2
        self._next = shown.index + 1
        if not before:
            self._next = shown.index + max(1, round(FIRST * len(shown.places) * sqrt(min(self.tolerance, 1.0))))
        if not gram:
            return
        nodes, total = list(self._nodes), len(shown.places)
        widest = shown.index + GROWTH * (shown.index - before[0])
        for until in range(shown.index + 2, min(total, widest + 1)):
            error = self._gap(shown, gram, nodes, until) / shown.size
            if not self._spent + error**2 <= self.tolerance**2 * (until / total) ** self.rho:  # NaN: compute
                break
            self._next = until
        errors = self._errors(shown, gram, nodes, self._next)
        self.shares = best_shares(errors, _ROUNDS if self.corrects else 0)

    def _gram(self, shown: Shown, before: Sequence[int]) -> list[list[float]]:
        """`E⟨V_p, V_q⟩` of all degrees that there are computed steps for."""
        place = shown.places[shown.index]
        found: list[Weights] = []
        for p in range(min(self.order + 1, len(before))):
            nodes = [shown.places[node] for node in before[: p + 1]]
            weights = poly(nodes, place, p, max_amplification=inf)
            product = prod(abs(place - node) for node in nodes)
            if not product:  # a step without effect lies where the one before does
                break
            found.append(tuple(weight / product for weight in weights))
        return [[_form(shown.products, one, other) for other in found] for one in found]

    def _gap(self, shown: Shown, gram: Sequence[Sequence[float]], nodes: Sequence[int], until: int) -> float:
        """D(until), or what a correction leaves of it."""
        errors = self._errors(shown, gram, nodes, until)
        predicted = sqrt(max(min(errors[p][p] for p in range(len(errors))), 0.0))
        degree = min(len(gram) - 1, 2)
        if not self.corrects or degree < 1 or until >= len(shown.places) - 1:
            return predicted
        rest = self._sum(shown, nodes[0], until, [until, *nodes[:degree]])
        return sqrt(max(gram[degree][degree], 0.0)) * rest + self.leak * predicted

    def _errors(
        self, shown: Shown, gram: Sequence[Sequence[float]], nodes: Sequence[int], until: int
    ) -> list[list[float]]:
        """`⟨S_p V_p, S_q V_q⟩`."""
        sums = [self._sum(shown, nodes[0], until, nodes[: p + 1]) for p in range(len(gram))]
        return [[gram[p][q] * sums[p] * sums[q] for q in range(len(gram))] for p in range(len(gram))]

    def _sum(self, shown: Shown, begin: int, until: int, nodes: Sequence[int]) -> float:
        """`Σ_{begin<k<until} |a_k| Π |s_k − s_node|`."""
        places = shown.places
        return sum(
            abs(shown.effects[k]) * prod(abs(places[k] - places[node]) for node in nodes)
            for k in range(begin + 1, until)
        )


def best_shares(gram: Sequence[Sequence[float]], rounds: int = _ROUNDS) -> Weights:
    """The shares μ ≥ 0, Σμ = 1, for which ‖Σ μ_p E_p‖ is least.

    From the best single one on, each pair of degrees in turn passes share from one to the other as far as it helps.

    Args:
        gram: `⟨E_p, E_q⟩`.
        rounds: so often; 0 leaves the best single one.

    >>> best_shares([[1.0, -1.0], [-1.0, 1.0]])  # errors to opposite sides
    (0.5, 0.5)
    """
    best = min(range(len(gram)), key=lambda p: gram[p][p])
    shares = [float(p == best) for p in range(len(gram))]
    for _ in range(rounds):
        for p, q in combinations(range(len(gram)), 2):
            slope = sum((a - b) * share for a, b, share in zip(gram[p], gram[q], shares, strict=True))
            curvature = gram[p][p] + gram[q][q] - 2 * gram[p][q]
            passed = min(max(-slope / curvature, -shares[p]), shares[q]) if curvature > 0 else 0.0
            shares[p] += passed
            shares[q] -= passed
    return tuple(shares)


def _form(gram: Sequence[Sequence[float]], one: Sequence[float], other: Sequence[float]) -> float:
    return sum(a * b * gram[i][j] for i, a in enumerate(one) for j, b in enumerate(other))
