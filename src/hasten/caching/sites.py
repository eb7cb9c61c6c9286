"""Sites: the part of a denoiser whose work a skipped step leaves out, and where its stand-in is read and written.

A site does two things with a call of the denoiser: `compute` it, and take along the values that a later prediction
needs; or `skip` it, with predicted values in the place of the work.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hasten.caching.midway import EnoughError, Question
from hasten.caching.trees import Meta, replace, tensors
from hasten.caching.wiring import arguments

Call = Callable[..., Any]
Predict = Callable[[int, Tensor | None, torch.dtype], Tensor]
"""(which of the cached values, what it is a change of, the number format wanted) → its stand-in."""

Values = tuple[Tensor, ...]
Blanks = dict[int, Any]
"""What a branch's modules return, without values: by the position of the block, or 0 for the denoiser's own result."""


class UnfitError(Exception):
    """The site does not fit this call; the message says why. Nothing was computed."""


class MisfitError(UnfitError):
    """The site turned out not to fit while the step was computed in full: the result is there all the same."""

    def __init__(self, reason: str, result: Any) -> None:
        super().__init__(reason)
        self.result = result


class Site(Protocol):
    """Where a skipped step's work is left out."""

    name: str
    reached: bool
    """Whether the last call came to what the site leaves out; a layer outside of this one may leave it out, too."""

    def arm(self) -> None:
        """A run begins: put taps back that something else was put in the place of."""
        ...

    def detach(self) -> None:
        """Leave everything as it was."""
        ...

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        """Call the denoiser; give its result and, with `keep`, the values to store.

        Args:
            blanks: written to, for `skip` of the same branch.
            dtype: the number format of the values, None for the model's own.

        Raises:
            UnfitError: this denoiser has no such site.
        """
        ...

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        """The denoiser's result with predicted values in it.

        Raises:
            UnfitError: nothing came of it; compute instead.
        """
        ...


class Decided(NamedTuple):
    """What became of a call whose fate was decided on the way.

    Attributes:
        values: to store, where it was computed.
    """

    result: Any
    values: Values
    computed: bool


class OutputSite:
    """The whole denoiser: its result is predicted, and none of it runs."""

    name = "output"
    reached = True

    def arm(self) -> None:
        """There is nothing to put back."""

    def detach(self) -> None:
        """There is nothing to take off."""

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        result = inner(*args, **kwargs)
        return result, self.values(result, blanks, dtype) if keep else ()

    def decide(
        self,
        inner: Call,
        args: Any,
        kwargs: Any,
        blanks: Blanks,
        dtype: torch.dtype | None,
        predict: Predict,
        question: Question,
        *,
        keep: bool,
    ) -> Decided:
        """Compute until the question is put, and to the end unless the answer is no.

        Raises:
            UnfitError: as `compute` and `skip`.
        """
        question.stoppable = True
        try:
            result, values = self.compute(inner, args, kwargs, blanks, dtype, keep=keep)
        except EnoughError:
            return Decided(self.skip(inner, args, kwargs, blanks, predict), (), False)
        return Decided(result, values, True)

    def values(self, result: Any, blanks: Blanks, dtype: torch.dtype | None) -> Values:
        """What to store of a result: copies, because pipelines may write to what they get."""
        try:
            blanks[0] = blank_of(result)
        except TypeError as error:
            raise MisfitError(f"of what the denoiser returns, {error}", result) from None
        return tuple(tensor.detach().to(dtype or tensor.dtype, copy=True) for tensor in tensors(result))

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        if 0 not in blanks:
            raise UnfitError("no computed step has shown what it returns")
        slots = iter(range(len(list(tensors(blanks[0])))))
        return replace(blanks[0], lambda blank: predict(next(slots), None, blank.dtype))


class LatentSite(OutputSite):
    """The whole denoiser, like `output`; what is predicted is what it adds to its input, so that this still counts.

    Args:
        latent: finds the input among the arguments of a call.
    """

    name = "latent"

    def __init__(self, latent: Callable[[Any, Any], Tensor | None]) -> None:
        self._latent = latent

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        before = self._latent(args, kwargs)
        before = None if before is None else before.detach().clone() if keep else before
        result = inner(*args, **kwargs)
        (after, *more) = tensors(result)
        if before is None or before.shape != after.shape or more:
            raise MisfitError("what it returns is not of the shape of its input", result)
        if not keep:
            return result, ()
        blanks[0] = blank_of(result)
        wide = torch.promote_types(after.dtype, dtype or after.dtype)
        return result, (torch.sub(after.detach().to(wide), before).to(dtype or after.dtype),)

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        if 0 not in blanks:
            raise UnfitError("no computed step has shown what it returns")
        base = self._latent(args, kwargs)
        return replace(blanks[0], lambda blank: predict(0, base, blank.dtype))


def blank_of(tree: Any) -> Any:
    """What a module returns, without values. Raises TypeError for a structure that cannot be built again."""
    return replace(tree, lambda tensor: Meta.of(tensor).blank())


def sort_of(args: Sequence[Any], kwargs: dict[str, Any]) -> object:
    """The sort of a call: which optional arguments are given."""
    return tuple((slot, value is None) for slot, value in arguments(args, kwargs))


def close(one: Tensor, other: Tensor) -> bool:
    """Whether two results are one and the same but for rounding."""
    if not other.is_floating_point():
        return torch.equal(one, other)
    tolerance = 0.05 if torch.finfo(other.dtype).bits <= 16 else 0.002
    difference = torch.linalg.vector_norm(one.float() - other.float())
    return bool(difference <= tolerance * torch.linalg.vector_norm(other.float()))
