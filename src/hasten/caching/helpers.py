"""Helpers with the interface of AngelSlim's diffusion caches, on this library's parts.

They take lists of blocks, not a model, and are told each step by `helper.cur_timestep = i`:

    helper = TaylorCacheHelper(transformer.transformer_blocks, no_cache_steps=steps)
    helper.enable()
    helper.clear_states()  # at the beginning of every generation
    for i, t in enumerate(timesteps):
        helper.cur_timestep = i
        …

What differs from the published ones, and `legacy=True`, which brings their results back, is told in docs/angelslim.md.
Where there is a model and not only its blocks, `hasten.accelerate` does more, knows the noise levels, and needs no
loop of one's own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from hasten.caching.bands import Grid
from hasten.caching.blockwise import Computing, Forecast, Key, Memory, Skipping, blocks_of, sort_of
from hasten.caching.clock import Clock
from hasten.caching.patching import CALL, Tap
from hasten.caching.prediction import Prediction
from hasten.caching.published import Published, PublishedTaylor, PublishedTeaCache
from hasten.errors import CacheError

# Where the low frequencies end, as a share of the highest.
_CUT = 0.1
# What order 2 needs between evenly spaced computed steps, up to the next of them.
_MOST_AMPLIFICATION = 7.0


class CacheHelper:
    """Leaves blocks out at all steps but those that are named; the last computed results stand in for them.

    Args:
        double_blocks, single_blocks: the blocks, in the order of their calls, the double ones first.
        no_cache_steps: the steps that are computed, counted from the first one of a generation; None for all. The first
            step is computed in any case.
        legacy: the published results, its defects included.

    Attributes:
        start_timestep: the step at which the generation began; None before.
        function_dict: block → its own `forward`, while enabled.
        cached_output: block → what stands in for its result, where that is kept.
        notes: why nothing is left out although it should be.
    """

    _forecast = Forecast(Prediction("reuse", order=0))

    def __init__(
        self,
        double_blocks: Sequence[nn.Module] | None = None,
        single_blocks: Sequence[nn.Module] | None = None,
        no_cache_steps: Collection[int] | None = None,
        *,
        legacy: bool = False,
    ) -> None:
        self.double_blocks = double_blocks
        self.single_blocks = single_blocks
        self.no_cache_steps = no_cache_steps
        self.start_timestep: int | None = None
        self.function_dict: dict[Key, Any] = {}
        self.notes: list[str] = []
        self._published = self._legacy() if legacy else None
        self._taps: list[Tap] = []
        self._clock: Clock | None = None
        self._step = 0
        self._forget()

    # -- as published

    def enable(self) -> None:
        """Put the helper between the model and its blocks. Doing it twice does no harm.

        Raises:
            ValueError: there are no blocks.
        """
        blocks = dict(
            [*blocks_of("double_blocks", self.double_blocks), *blocks_of("single_blocks", self.single_blocks)]
        )
        if not blocks:
            raise ValueError("there is nothing to cache: double_blocks and single_blocks are both empty")
        self.reset_states()
        if self._taps:
            return
        self._first, self._last = next(iter(blocks)), next(reversed(blocks))
        self.function_dict = {key: block.forward for key, block in blocks.items()}
        self._taps = [Tap(block, CALL, partial(self._call, key, block)) for key, block in blocks.items()]

    def disable(self) -> None:
        """Leave the blocks as they were, and forget everything."""
        for tap in reversed(self._taps):
            tap.remove()
        self._taps = []
        if self._clock is not None:
            self._clock.detach()
            self._clock = None
        self.function_dict = {}
        self.reset_states()

    def clear_states(self) -> None:
        """A generation begins: forget the last one."""
        self.start_timestep = None
        self._step = 0
        self._forget()

    def reset_states(self) -> None:
        """The same as `clear_states`; published it could not be called while enabled."""
        self.clear_states()

    @property
    def cur_timestep(self) -> int:
        """The index of the step; set it before each. One that is lower than before begins a generation.

        Raises:
            CacheError: when it is set although the helper follows a scheduler.
        """
        return self._step if self._clock is None else self._clock.index

    @cur_timestep.setter
    def cur_timestep(self, step: int) -> None:
        if self._clock is not None:
            raise CacheError("cur_timestep: the steps come from a scheduler since follow(); disable() ends that")
        if step < self._step and self._published is None:
            self.clear_states()
        self._step = step

    def is_skip(self) -> bool:
        """Whether the blocks are left out at this step, as far as `no_cache_steps` says."""
        if self.start_timestep is None:
            self.start_timestep = self.cur_timestep
        elapsed = self.cur_timestep - self.start_timestep
        if self.no_cache_steps is None:
            return False
        return elapsed != 0 and elapsed not in self.no_cache_steps

    @property
    def cached_output(self) -> dict[Key, Any]:
        """Block → what it returned last, where that is kept."""
        if self._published is not None:
            return self._published.cached_output
        kept: dict[Key, Any] = {}
        for memory in self._memories.values():
            kept |= memory.newest
        return kept

    # -- beyond

    def follow(self, pipe: Any) -> CacheHelper:
        """Take the steps from a pipeline's scheduler, where its loop cannot set `cur_timestep`; until `disable`.

        Args:
            pipe: whatever has a `scheduler`, such as any diffusers pipeline.

        Returns:
            the helper itself.
        """
        if self._clock is not None:
            self._clock.detach()
        self._clock = Clock(pipe, on_run=self.clear_states, on_end=self._forget)
        self._clock.attach()
        return self

    # -- inside

    def _legacy(self) -> Published:
        return Published()

    def _forget(self) -> None:
        self._memories: dict[int, Memory] = {}
        self._pass: Computing | Skipping | None = None
        self._moment: int | None = None
        self._passes = 0
        self._forced = False
        if self._published is not None:
            self._published.clear()

    def _runs(self, key: Key) -> bool:
        """Whether a block runs at skipped steps, too."""
        return False

    def _call(self, key: Key, block: nn.Module, inner: Any, args: Any, kwargs: Any) -> Any:
        if key == self._first and self._clock is not None:
            self._clock.arrive()
        if self._published is not None:
            skip = CacheHelper.is_skip(self) and not self._runs(key)
            return self._published.call(key, self._last, self.cur_timestep, skip, inner, args, kwargs)
        if key == self._first:
            self._begin(args, kwargs)
        if self._pass is None:
            return inner(*args, **kwargs)
        result = self._pass.block(key, block, inner, args, kwargs)
        if key == self._last:
            self._pass = None
        return result

    def _begin(self, args: Any, kwargs: Any) -> None:
        """A pass through the blocks begins."""
        skips, step = CacheHelper.is_skip(self), self.cur_timestep
        if step != self._moment:
            self._moment, self._passes, self._forced = step, 0, False
        # The passes of a step are told apart by their order: with the prompt, without it, …
        memory = self._memories.setdefault(self._passes, Memory())
        self._passes += 1
        sort = sort_of(args, kwargs)
        if sort != memory.sort:
            memory.forget()
            memory.sort = sort
        if not memory.history.finite():
            memory.forget()
        if skips and not self._forced and len(memory.history):
            self._pass = Skipping(memory, step, self._last, self._runs, self._forecast, (args, kwargs))
            return
        if skips:
            # All later passes of the step share its fate: a difference of a computed and a cached one is neither.
            self._forced = True
            self.notes += [memory.lost] if memory.lost and memory.lost not in self.notes else []
        self._pass = Computing(memory, step, self._last, self._runs, self._forecast)


class DeepCacheHelper(CacheHelper):
    """`CacheHelper` with blocks that run at every step: the last ones, usually.

    Args:
        no_cache_block_id: "double_blocks" or "single_blocks" → the places of blocks that run at every step.

    Raises:
        ValueError: a list of another name, or a place that it does not have.
    """

    def __init__(
        self,
        double_blocks: Sequence[nn.Module] | None = None,
        single_blocks: Sequence[nn.Module] | None = None,
        no_cache_steps: Collection[int] | None = None,
        no_cache_block_id: Mapping[str, Collection[int]] | None = None,
        *,
        legacy: bool = False,
    ) -> None:
        super().__init__(double_blocks, single_blocks, no_cache_steps, legacy=legacy)
        self.no_cache_block_id = dict(no_cache_block_id or {})
        counts = {"double_blocks": len(double_blocks or ()), "single_blocks": len(single_blocks or ())}
        for name, places in self.no_cache_block_id.items():
            if name not in counts:
                raise ValueError(f"no_cache_block_id: {name!r}: must be one of {', '.join(map(repr, counts))}")
            beyond = sorted(place for place in places if not 0 <= place < counts[name])
            if beyond:
                raise ValueError(
                    f"no_cache_block_id: {name} has {counts[name]} blocks, numbered from 0; no {beyond[0]}"
                )

    def is_skip(self, block_id: int | None = None, blocktype: str | None = None) -> bool:
        """Whether a block is left out at this step; without a block, whether any is."""
        return super().is_skip() and block_id not in self.no_cache_block_id.get(blocktype or "", ())

    def _runs(self, key: Key) -> bool:
        return key[1] in self.no_cache_block_id.get(key[0], ())


class TeaCacheHelper(CacheHelper):
    """Adds to what enters the blocks how much they changed it at the last computed step.

    There is no TeaCache in it, published or here: nothing is measured, `no_cache_steps` decides. The method itself is
    `hasten.accelerate(pipe, "teacache")`.

    Args:
        cache_name: with `legacy`, the keyword by which the first block gets the image; else streams are followed.
    """

    def __init__(
        self,
        double_blocks: Sequence[nn.Module] | None = None,
        single_blocks: Sequence[nn.Module] | None = None,
        no_cache_steps: Collection[int] | None = None,
        cache_name: str = "img",
        *,
        legacy: bool = False,
    ) -> None:
        self.cache_name = cache_name
        super().__init__(double_blocks, single_blocks, no_cache_steps, legacy=legacy)
        self._forecast = Forecast(Prediction("reuse", order=0), residual=True)

    @property
    def cached_input(self) -> Tensor | None:
        """With `legacy`: what entered the first block at the last computed step."""
        return self._published.cached_input if isinstance(self._published, PublishedTeaCache) else None

    @property
    def previous_residual(self) -> Tensor | None:
        """With `legacy`: how much the blocks changed it."""
        return self._published.previous_residual if isinstance(self._published, PublishedTeaCache) else None

    def _legacy(self) -> Published:
        return PublishedTeaCache(self.cache_name)


class TaylorCacheHelper(CacheHelper):
    """Extrapolates what leaves the blocks, low and high frequencies each with an order of its own.

    Args:
        max_order: no band has a higher order than this.
        low_freqs_order, high_freqs_order: of frequencies up to a tenth of the highest, and of the others. 0 repeats the
            last computed value.
        grid: (height, width) or (frames, height, width) of the tokens, for real spatial frequencies; without it, they
            are those along the line of tokens.
    """

    def __init__(
        self,
        double_blocks: Sequence[nn.Module] | None = None,
        single_blocks: Sequence[nn.Module] | None = None,
        no_cache_steps: Collection[int] | None = None,
        max_order: int = 2,
        low_freqs_order: int = 2,
        high_freqs_order: int = 2,
        *,
        grid: Grid = (),
        legacy: bool = False,
    ) -> None:
        self.max_order = max_order
        self.low_freqs_order, self.high_freqs_order = low_freqs_order, high_freqs_order
        super().__init__(double_blocks, single_blocks, no_cache_steps, legacy=legacy)
        low, high = min(low_freqs_order, max_order), min(high_freqs_order, max_order)
        prediction = Prediction(
            "poly", "index", order=high, low_order=low, cut=_CUT, max_amplification=_MOST_AMPLIFICATION
        )
        self._forecast = Forecast(prediction, keeps=max(low, high) + 1, grid=grid)

    @property
    def last_full_computation_step(self) -> int | None:
        """The last computed step of this generation."""
        if isinstance(self._published, PublishedTaylor):
            return self._published.last_full_computation_step
        steps = [memory.history.indices[0] for memory in self._memories.values() if len(memory.history)]
        return max(steps, default=None)

    @property
    def counter(self) -> int:
        """Steps since then; with `legacy`, passes."""
        if isinstance(self._published, PublishedTaylor):
            return self._published.counter
        last = self.last_full_computation_step
        return 0 if last is None else self.cur_timestep - last

    def _legacy(self) -> Published:
        return PublishedTaylor(self.max_order, self.low_freqs_order, self.high_freqs_order)
