"""Signals: the one number that an adaptive policy decides a step by, measured on the model's own tensors.

A meter compares a tensor with the one of the step before, or of the last computed step, and gives a float: at most one
wait for the device per step, and only where the policy asks. Samples of a batch are measured apart, and the one that
changed most speaks for all.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from math import nan
from typing import Any

import torch
from torch import Tensor, nn

from hasten.caching.adaptive import Observed
from hasten.caching.figures import Figures
from hasten.caching.policies import Decision
from hasten.caching.settings import Settings
from hasten.caching.snapshots import History
from hasten.caching.trees import tensors


def relative_l1(value: Tensor, reference: Tensor) -> Tensor:
    """`mean |v − r| / mean |r|` of the sample of a batch where it is largest; NaN where 0 is divided by 0.

    Args:
        value, reference: of the same shape, (samples, …).

    Returns:
        a number in float32, on the tensors' device.
    """
    return (_size(value - reference) / _size(reference)).max()


def _size(value: Tensor) -> Tensor:
    """The mean absolute value of each sample, shape (samples,)."""
    return value.abs().flatten(int(value.ndim > 1)).mean(-1, dtype=torch.float32)


class Meter:
    """Measures how far a tensor has changed.

    Args:
        since_computed: against the last computed step (policy `compare`), not the last step (`accumulate`).
    """

    def __init__(self, since_computed: bool) -> None:
        self._since_computed = since_computed
        self._reference: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The memory that the meter's own tensors take."""
        return 0 if self._reference is None else self._reference.nbytes

    def measure(self, value: Tensor) -> float:
        """The signal; NaN where there is nothing to compare with."""
        reference = self._reference
        if reference is None or reference.shape != value.shape or reference.device != value.device:
            return nan
        return float(relative_l1(value, reference))

    def settle(self, value: Tensor, computed: bool, result: Any) -> None:
        """Learn what became of the step.

        Args:
            value: what was, or could have been, measured.
            result: what the denoiser returned.
        """
        if computed or not self._since_computed:
            self._reference = value.detach().clone()


class Estimate(Meter):
    """The output's change as EasyCache estimates it (Zhou et al. 2025, arXiv 2507.02860): `k · mean|x − x′| / mean|y|`.

    x is the denoiser's input, y its last computed output, and `k = mean|y − y′| / mean|x − x′|` of the last two
    computed steps: how much more the output changes than the input.
    """

    def __init__(self, since_computed: bool) -> None:
        super().__init__(since_computed)
        self._anchor: tuple[Tensor, Tensor] | None = None
        self._gain: Tensor | None = None

    @property
    def nbytes(self) -> int:
        held = () if self._anchor is None else self._anchor
        return super().nbytes + sum(tensor.nbytes for tensor in held)

    def measure(self, value: Tensor) -> float:
        x = self._reference
        if x is None or self._gain is None or self._anchor is None or x.shape != value.shape:
            return nan
        _, y = self._anchor
        return float((self._gain * _size(value - x) / _size(y)).max())

    def settle(self, value: Tensor, computed: bool, result: Any) -> None:
        super().settle(value, computed, result)
        y = next((tensor for tensor in tensors(result) if tensor.is_floating_point()), None)
        if not computed or y is None:
            return
        if self._anchor is not None and self._anchor[0].shape == value.shape and self._anchor[1].shape == y.shape:
            x_before, y_before = self._anchor
            self._gain = _size(y - y_before) / _size(value - x_before)
        else:
            self._gain = None
        self._anchor = value.detach().clone(), y.detach().clone()


class Gauge:
    """An adaptive policy at work on one denoiser, or on one of its branches, for one run.

    At each step: `begin`, then `see` once the tensor to measure is there, then `end`.

    Args:
        total: the number of steps of the run, None when nobody knows it.
        sigmas: their noise levels, as far as they are known beforehand.
        figures, lacking: what was measured of the branch, or why there is nothing.

    Attributes:
        meter: None where the policy needs no signal.
        signal: what was measured at this step; None if it was not asked for.
    """

    def __init__(
        self,
        settings: Settings,
        total: int | None,
        sigmas: tuple[float, ...],
        figures: Figures | None = None,
        lacking: str = "",
    ) -> None:
        policy = settings.adaptive(sigmas, figures, lacking)
        assert policy is not None
        self.policy = policy
        self.total = total
        self.meter: Meter | None = None
        if settings.signal is not None:
            kind = Estimate if settings.signal == "estimate" else Meter
            self.meter = kind(since_computed=settings.policy == "compare")
        self.signal: float | None = None
        self._aligns = settings.predictor == "dcta"
        self._change: Tensor | None = None
        # What the first blocks did at the last two computed steps, newest first.
        self._anchors: list[Tensor] = []
        self._index = 0
        self._decision: Decision | None = None
        self._value: Tensor | None = None

    def begin(self, index: int) -> Decision | None:
        """What can be said of a step without its signal; None if nothing."""
        self._index, self._value, self.signal = index, None, None
        self._decision = self.policy.decide(index, self.total)
        return self._decision

    def force(self, decision: Decision) -> Decision:
        """The step has to be computed for another reason than the policy's."""
        self._decision = decision
        return decision

    def see(self, value: Tensor, change: Tensor | None = None) -> Decision:
        """The tensor to measure is there: decide, if that is still open.

        Args:
            change: what the blocks so far did to the stream, where that is known.
        """
        self._value, self._change = value, change if self._aligns else None
        if self._decision is None:
            assert self.meter is not None
            self.signal = self.meter.measure(value)
            self._decision = self.policy.decide(self._index, self.total, self.signal)
            assert self._decision is not None
        return self._decision

    def alignment(self) -> float:
        """How far the first blocks have gone since the second newest computed step, by how far the newest had.

        DiCache's γ; NaN where there are no two steps to compare with.
        """
        change = self._change
        if change is None or len(self._anchors) < 2 or any(one.shape != change.shape for one in self._anchors):
            return nan
        newest, second = self._anchors
        gone, had = ((one - second).abs().mean(dtype=torch.float32) for one in (change, newest))
        return float(gone / had)

    @property
    def nbytes(self) -> int:
        """The memory that what is measured with takes."""
        return sum(one.nbytes for one in self._anchors) + (0 if self.meter is None else self.meter.nbytes)

    def check(self, error: Tensor) -> None:
        """A skipped step was verified; its error counts as the signal of the step."""
        self.signal = float(error)
        self.policy.check(self._index, self.total, self.signal)

    def end(self, computed: bool, result: Any) -> Decision:
        """The step is done.

        Args:
            result: what the denoiser returned.

        Returns:
            what was decided of it; to compute, if nothing was.
        """
        self.policy.settle(self._index, computed)
        if self.meter is not None and self._value is not None:
            self.meter.settle(self._value, computed, result)
            self._value = None
        if computed and self._change is not None:
            self._anchors = [self._change.detach().clone(), *self._anchors[:1]]
        return self._decision or Decision(True, "no signal was seen")


def observed(
    index: int,
    sigmas: tuple[float, float],
    values: Sequence[Tensor],
    history: History,
    predict: Callable[[int, Tensor | None, torch.dtype], Tensor] | None,
) -> Observed:
    """What the values of a computed step show beside those of the last one, and beside their prediction.

    Args:
        index, sigmas: see `Observed`.
        values: what was computed; not yet part of the history.
        predict: what would have stood in for it, see `sites.Predict`; None where nothing could.
    """
    floats = [(slot, value) for slot, value in enumerate(values) if value.is_floating_point()]
    compared = [value for _, value in floats]
    known = predict is not None and all(history.values[0][slot].shape == value.shape for slot, value in floats)
    if predict is not None and known:
        compared += [value - history.values[0][slot] for slot, value in floats]
        compared += [value - predict(slot, None, value.dtype) for slot, value in floats]
    sums = [value.abs().sum(dtype=torch.float32) for value in compared]
    if known:
        sums.append(_growth(floats[0][1], history.values[0][floats[0][0]]))
    numbers = torch.stack(sums).tolist()
    count, slots = sum(value.numel() for _, value in floats), len(floats)
    means = [sum(numbers[begin : begin + slots]) / count for begin in range(0, len(compared), slots)]
    if not known:
        return Observed(index, sigmas, means[0])
    size, change, error = means
    return Observed(index, sigmas, size, change, error, numbers[-1])


def _growth(value: Tensor, before: Tensor) -> Tensor:
    """The mean over tokens of ‖value‖ / ‖before‖; tokens lie along the last dimension, channels of pictures second."""
    along = -1 if value.ndim <= 3 else 1
    now, then = (torch.linalg.vector_norm(one, dim=along, dtype=torch.float32) for one in (value, before))
    ratio: Tensor = (now / (then + 1e-8)).mean()
    return ratio


def latent_of(module: nn.Module, timestep: Callable[[Any, Any], object]) -> Callable[[Any, Any], Tensor | None]:
    """How to find the denoiser's input, the latent, among the arguments of a call.

    It is the first floating-point tensor, in the order of the signature, that is not the timestep.
    """
    module = getattr(module, "_orig_mod", module)
    names = list(inspect.signature(type(module).forward).parameters)[1:]

    def latent(args: Any, kwargs: Any) -> Tensor | None:
        step = timestep(args, kwargs)
        ordered = sorted(kwargs, key=lambda name: names.index(name) if name in names else len(names))
        for value in (*args, *(kwargs[name] for name in ordered)):
            if value is not step:
                for tensor in tensors(value):
                    if tensor.is_floating_point() and tensor.ndim > 0:
                        return tensor
        return None

    return latent
