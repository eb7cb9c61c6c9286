"""The ledger of a run, kept where all sites, policies and predictors come together: at what the scheduler is given.

It shows the policy `tolerance` how wrong predictions are, and corrects: at a skipped step k the scheduler was given a
stand-in ŷ_k. At the computed step j after it the output is known on both sides, so that y_k can be interpolated (y*_k)
where it was extrapolated before. By then the stand-ins have moved the final latent by

    δ = Σ_k a_k (ŷ_k − y*_k),        a_k = ∂x_T/∂y_k

over the skipped steps since the last computed one. So the scheduler is given y_j − κδ/a_j in the place of y_j. For an
Euler step of a flow and κ = 1 this is what the corrector of a multistep method does: the integral over the gap is taken
once more, with both of its ends. The model at step j has seen the latent that the stand-ins led to, though, and answers
to it: some of δ is gone already. κ = 0.7 did well on both bundled models (docs/tolerance.md). The last step takes the
latent to the model's own estimate of the image, δ and all, so that nothing is left for a correction there.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

import torch
from torch import Tensor

from hasten.caching.clock import Clock
from hasten.caching.effects import Effects
from hasten.caching.predictors import poly
from hasten.caching.tolerance import NODES, Shown

DEGREE = 2
"""Of the polynomial that skipped steps are interpolated with."""
SHARE = 0.7
"""So much of δ is taken back: the model, which saw the latent that the stand-ins led to, has taken back some of it."""


class Ledger:
    """One run.

    Args:
        clock: tells the step, and what the scheduler makes of outputs.
        corrects: put right what skipped steps did wrong.
        shows: tell what computed steps show.
        degree: of the polynomial that skipped steps are interpolated with; it falls while fewer steps were computed.
        share: κ.
    """

    def __init__(
        self, clock: Clock, *, corrects: bool, shows: bool, degree: int = DEGREE, share: float = SHARE
    ) -> None:
        self._clock = clock
        self._corrects, self._shows, self._degree, self._share = corrects, shows, degree, share
        self._indices: deque[int] = deque(maxlen=NODES - 1)
        self._values: deque[Tensor] = deque(maxlen=NODES - 1)
        self._skipped: list[int] = []
        self._sum: Tensor | None = None
        self.note = ""
        """Why there is nothing to go by, where the scheduler cannot be followed."""

    @property
    def nbytes(self) -> int:
        """The memory that its own tensors take."""
        held = [*self._values, *([] if self._sum is None else [self._sum])]
        return sum(tensor.nbytes for tensor in held)

    def see(self, output: Tensor, latent: Tensor, computed: bool) -> tuple[Tensor, Shown | None]:
        """A step's output on its way to the scheduler.

        Args:
            latent: what the scheduler is given with it.
            computed: nothing was left out in this step.

        Returns:
            what the scheduler is to be given, and what a computed step showed.
        """
        try:
            effects = self._clock.effects()
        except ValueError as unknown:
            self.note = str(unknown)
            return output, None
        index = self._clock.index
        if index >= len(effects.outputs):
            return output, None
        if self._values and self._values[0].shape != output.shape:
            self._forget()
        value = output.detach().to(torch.float32, copy=True)
        if not computed:
            self._skip(index, value, effects.outputs[index])
            return output, None
        corrected = output
        is_last = index == len(effects.outputs) - 1
        if self._sum is not None and self._values and effects.outputs[index] and not is_last:
            error = self._error(index, value, effects)
            corrected = (value - self._share * error / effects.outputs[index]).to(output.dtype)
        shown = self._shown(index, value, latent, effects) if self._shows else None
        self._indices.appendleft(index)
        self._values.appendleft(value)
        self._skipped, self._sum = [], None
        return corrected, shown

    def _skip(self, index: int, value: Tensor, effect: float) -> None:
        self._skipped.append(index)
        if self._corrects:
            self._sum = value.mul_(effect) if self._sum is None else self._sum.add_(value, alpha=effect)

    def _error(self, index: int, value: Tensor, effects: Effects) -> Tensor:
        """δ of the skipped steps before this one, float32."""
        assert self._sum is not None
        nodes = (index, *list(self._indices)[: self._degree])
        weights = integral(self._places(effects), effects.outputs, self._skipped, nodes)
        error = self._sum
        for weight, known in zip(weights, (value, *self._values), strict=False):
            error = error.sub_(known, alpha=weight)
        return error

    def _shown(self, index: int, value: Tensor, latent: Tensor, effects: Effects) -> Shown:
        """What a computed step shows: a single wait for the device."""
        rest = sum(effects.outputs[index:])
        final = torch.add(value * rest, latent.detach().float(), alpha=effects.latents[index])
        differences = [known - value for known in self._values]
        count = len(differences)
        pairs = [(differences[i] * differences[j]).mean() for i in range(count) for j in range(count)]
        size, *products = torch.stack([final.square().mean(), *pairs]).tolist()
        rows = [products[i * count : (i + 1) * count] for i in range(count)]
        return Shown(index, self._places(effects), effects.outputs, rows, size**0.5)

    def _places(self, effects: Effects) -> list[float]:
        return [self._clock.place(step) for step in range(len(effects.outputs))]

    def _forget(self) -> None:
        self._indices.clear()
        self._values.clear()
        self._skipped, self._sum = [], None


def integral(
    places: Sequence[float], effects: Sequence[float], steps: Sequence[int], nodes: Sequence[int]
) -> tuple[float, ...]:
    """`Σ_k a_k w_k`: the weights of the nodes in the sum over some steps, each interpolated between the nodes.

    Args:
        places: where each step of the run lies.
        effects: a_k of each step.
        steps: the steps to sum over.
        nodes: steps whose outputs are known.

    >>> integral([0, 1, 2, 3, 4], [1, 1, 1, 1, 1], [1, 2, 3], [4, 0])
    (1.5, 1.5)
    """
    sums = [0.0] * len(nodes)
    anchors = [places[node] for node in nodes]
    for step in steps:
        for j, weight in enumerate(poly(anchors, places[step], len(nodes) - 1, max_amplification=16.0)):
            sums[j] += effects[step] * weight
    return tuple(sums)
