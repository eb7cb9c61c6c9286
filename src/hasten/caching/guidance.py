"""The site of guidance: the unconditional branch is left out, and predicted from the conditional one beside it.

What is stored is how the two differ. Pipelines call the denoiser for the two in turn, or once for a batch of both: then
both halves of the latents are the same, and the denoiser is called with the conditional half alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hasten.caching.bands import Grid, grid_for, grids_of
from hasten.caching.sites import Blanks, Call, MisfitError, Predict, UnfitError, Values, blank_of, close, sort_of
from hasten.caching.trees import replace, tensors

if TYPE_CHECKING:
    from hasten.caching.denoiser import Port

Role = Literal["conditional", "unconditional", "both"]


class GuidanceSite:
    """The unconditional branch of one denoiser.

    Published as the guidance half of FasterCache (Lv et al. 2024, arXiv 2410.19355), in two frequency bands, and as
    the end of guidance in T-GATE (Zhang et al. 2024, arXiv 2404.02747).

    Args:
        port: the denoiser's; it is told which rows of a batch a call is about.

    Attributes:
        gains: what the low and the high frequencies of the difference are multiplied with; 0 drops guidance.
    """

    name = "guidance"
    reached = True

    def __init__(self, port: Port) -> None:
        self.gains = (1.0, 1.0)
        self._port = port
        self._checked: set[object] = set()
        self._conditional: tuple[int, Any] | None = None

    def arm(self) -> None:
        """A run begins."""
        self._conditional = None

    def detach(self) -> None:
        """There is nothing to take off."""
        self._conditional = None

    def role(self, args: Any, kwargs: Any) -> Role:
        """What a call is for: by the pipeline's own name for it, by its batch, or by its place in the step."""
        name = self._port.branch
        if name.isdecimal() or ("uncond" in name and "cond" in name.replace("uncond", "")):
            if self.halves(args, kwargs):
                return "both"
            return "conditional" if name == "0" or not name.isdecimal() else "unconditional"
        return "unconditional" if "cond" not in name or "uncond" in name else "conditional"

    def halves(self, args: Any, kwargs: Any) -> int:
        """The samples in half of a batch whose halves have the same latents; 0 where it is no such batch."""
        latent = self._port.latent(args, kwargs)
        if latent is None or latent.ndim < 2 or len(latent) % 2:
            return 0
        half = len(latent) // 2
        return half if torch.equal(latent[:half], latent[half:]) else 0

    def keep(self, result: Any) -> None:
        """The conditional branch of a step, to predict the other one from."""
        self._conditional = self._port.moment, result

    def compute(
        self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, dtype: torch.dtype | None, *, keep: bool
    ) -> tuple[Any, Values]:
        both = self.role(args, kwargs) == "both"
        result = inner(*args, **kwargs)
        conditional = result if both else self._beside()
        if not keep or conditional is None:
            return result, ()
        if both and any(len(tensor) % 2 for tensor in tensors(result)):
            raise MisfitError("what it returns for a batch has no halves", result)
        try:
            blanks[0] = blank_of(result)
        except TypeError as error:
            raise MisfitError(f"of what the denoiser returns, {error}", result) from None
        values = []
        for one, other in zip(tensors(result), tensors(conditional), strict=True):
            without, given = one.detach().chunk(2) if both else (one.detach(), other.detach())
            store = dtype or without.dtype
            values.append(torch.sub(without.to(torch.promote_types(without.dtype, store)), given).to(store))
        if both and sort_of(args, kwargs) not in self._checked:
            self._check(inner, args, kwargs, result)
        return result, tuple(values)

    def _check(self, inner: Call, args: Any, kwargs: Any, result: Any) -> None:
        """Compute the conditional half of the very step that was computed: the result has to be the same half.

        It costs half a step, once, and finds arguments that were taken for a batch and are none.
        """
        half = self.halves(args, kwargs)
        try:
            with self._conditional_half():
                again = inner(*_rows(args, half), **_rows(kwargs, half))
            pairs = zip(tensors(again), tensors(result), strict=True)
            same = all(one.shape == other[half:].shape and close(one, other[half:]) for one, other in pairs)
        except (RuntimeError, ValueError, TypeError, IndexError):
            same = False
        if not same:
            raise MisfitError("its batch cannot be computed by halves", result)
        self._checked.add(sort_of(args, kwargs))

    def skip(self, inner: Call, args: Any, kwargs: Any, blanks: Blanks, predict: Predict) -> Any:
        if 0 not in blanks:
            raise UnfitError("no computed step has shown what it returns")
        half = self.halves(args, kwargs)
        grids = grids_of(args, kwargs)
        if not half:
            conditional = self._beside()
            if conditional is None:
                raise UnfitError("its unconditional branch does not come after the conditional one")
            given = list(tensors(conditional))
            stand_ins = iter([self._without(slot, one, predict, grids) for slot, one in enumerate(given)])
            return replace(blanks[0], lambda _: next(stand_ins))
        if sort_of(args, kwargs) not in self._checked:
            raise UnfitError("called with other arguments than in the computed steps")
        with self._conditional_half():
            conditional = inner(*_rows(args, half), **_rows(kwargs, half))
        given = list(tensors(conditional))
        wholes = iter([torch.cat([self._without(slot, one, predict, grids), one]) for slot, one in enumerate(given)])
        return replace(conditional, lambda _: next(wholes))

    @contextmanager
    def _conditional_half(self) -> Iterator[None]:
        before, self._port.half, self._port.alone = self._port.alone, True, True
        try:
            yield
        finally:
            self._port.half, self._port.alone = False, before

    def _beside(self) -> Any:
        """What the conditional branch of this very step returned; None if it has not been called yet."""
        if self._conditional is None or self._conditional[0] != self._port.moment:
            return None
        return self._conditional[1]

    def _without(self, slot: int, given: Tensor, predict: Predict, grids: Sequence[Grid]) -> Tensor:
        """The unconditional stand-in: `conditional + P_low(g_low · Δ) + P_high(g_high · Δ)`."""
        low, high = self.gains
        if low == high == 1:
            return predict(slot, given, given.dtype)
        if low == high == 0:
            return given.clone()
        wide = torch.promote_types(given.dtype, torch.float32)
        difference = predict(slot, None, wide)
        scaled = difference * high
        if low != high:
            scaled += (low - high) * low_disc(difference, grid_for(difference, grids))
        return (given.to(wide) + scaled).to(given.dtype)


def low_disc(value: Tensor, grid: Grid) -> Tensor:
    """The low frequencies as FasterCache takes them: a disc of radius `min(height, width) // 5` around 0.

    Args:
        value: (batch, tokens, channels) on the grid, or (batch, …, height, width).

    Raises:
        UnfitError: tokens of which nobody knows how they lie.
    """
    if not grid:
        raise UnfitError("how its tokens lie in space is not known, so that they have no frequency bands")
    if value.ndim == 3:
        batch, _, channels = value.shape
        laid = value.reshape(batch, *grid, channels).movedim(-1, 1)
        return low_disc(laid, grid).movedim(1, -1).reshape(value.shape)
    height, width = value.shape[-2:]
    rows = torch.fft.fftfreq(height, 1 / height, device=value.device)
    columns = torch.fft.fftfreq(width, 1 / width, device=value.device)
    disc = rows[:, None] ** 2 + columns**2 <= (min(height, width) // 5) ** 2
    low: Tensor = torch.fft.ifft2(torch.fft.fft2(value) * disc).real
    return low


def _rows(tree: Any, half: int) -> Any:
    """The second half of whatever has two halves along its first dimension."""
    if isinstance(tree, Tensor):
        return tree[half:] if tree.ndim and len(tree) == 2 * half else tree
    if isinstance(tree, Mapping):
        return {key: _rows(value, half) for key, value in tree.items()}
    if isinstance(tree, list) and len(tree) == 2 * half and not any(isinstance(value, Tensor) for value in tree):
        return tree[half:]
    if isinstance(tree, tuple | list):
        return type(tree)(_rows(value, half) for value in tree)
    return tree
