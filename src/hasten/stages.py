"""Watch one run of a pipeline from outside: how long its stages take, which step it is at, its last latents."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch

from hasten.devices import synchronize
from hasten.record import Timings


class StageWatch:
    """Times text encoding, denoising and decoding of the calls made inside a `with` block.

    Only methods that the pipeline's parts have are wrapped, on the instances, and put back at the end:
    `encode_prompt` of the pipeline, `set_timesteps` and `step` of the scheduler, `decode` of the VAE. The device is
    synchronised where stages meet and nowhere else, so that watching does not slow a step down.

    Attributes:
        steps_done: scheduler steps so far (a two-call solver makes two of them per step).
        steps_total: the length of the schedule, which may change in the run; 0 before it is known.
        latents: what the last scheduler step returned.
    """

    def __init__(self, pipe: Any, device: torch.device, on_step: Callable[[], None] | None = None) -> None:
        self.steps_done = self.steps_total = 0
        self.latents: torch.Tensor | None = None
        self._pipe, self._device, self._on_step = pipe, device, on_step
        self._undo: list[Callable[[], None]] = []
        self._text = self._decode = self._text_inside = 0.0
        self._began = self._schedule_set = self._denoised = self._ended = 0.0

    def __enter__(self) -> Self:
        scheduler, vae = getattr(self._pipe, "scheduler", None), getattr(self._pipe, "vae", None)
        self._wrap(self._pipe, "encode_prompt", self._around_text)
        self._wrap(scheduler, "set_timesteps", self._around_set_timesteps)
        self._wrap(scheduler, "step", self._around_step)
        self._wrap(vae, "decode", self._around_decode)
        self._began = self._now()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:
            self._undo.pop()()
        if error is None:
            self._ended = self._now()

    def timings(self) -> Timings:
        """Seconds per stage of the run that has ended."""
        total = self._ended - self._began
        denoise = 0.0
        if self._schedule_set:
            denoise = (self._denoised or self._ended) - self._schedule_set - self._text_inside
        other = total - self._text - denoise - self._decode
        return Timings(
            text=self._text,
            denoise=denoise,
            decode=self._decode,
            other=max(0.0, other),
            total=total,
            per_step=denoise / max(1, self.steps_done),
        )

    def _now(self) -> float:
        synchronize(self._device)
        return time.perf_counter()

    def _wrap(self, owner: Any, name: str, around: Callable[..., Any]) -> None:
        original = getattr(owner, name, None)
        if original is None:
            return
        before = vars(owner).get(name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            return around(original, args, kwargs)

        def undo() -> None:
            if before is None:
                vars(owner).pop(name, None)
            else:
                vars(owner)[name] = before

        # functools.wraps would do, but pipelines look at signatures: `set_timesteps` is asked whether it takes sigmas.
        wrapped.__wrapped__ = original  # type: ignore[attr-defined]
        wrapped.__name__ = name
        vars(owner)[name] = wrapped
        self._undo.append(undo)

    def _around_text(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        start = self._now()
        result = call(*args, **kwargs)
        spent = self._now() - start
        self._text += spent
        if self._schedule_set:
            self._text_inside += spent
        return result

    def _around_set_timesteps(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        self._count()
        if not self.steps_done:
            self._schedule_set = self._now()
        return result

    def _around_step(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        result = call(*args, **kwargs)
        self.steps_done += 1
        self._count()
        # A tuple, a diffusers output (a mapping that also takes numbers), or the tensor itself.
        latents = result if isinstance(result, torch.Tensor) else result[0]
        self.latents = latents.detach() if isinstance(latents, torch.Tensor) else None
        if self._on_step is not None:
            self._on_step()
        return result

    def _count(self) -> None:
        timesteps = getattr(self._pipe.scheduler, "timesteps", None)
        self.steps_total = len(timesteps) if timesteps is not None else 0

    def _around_decode(self, call: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        start = self._now()
        self._denoised = self._denoised or start
        result = call(*args, **kwargs)
        self._decode += self._now() - start
        return result
