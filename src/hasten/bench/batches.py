"""Several images in one call: how many a second, until memory ends."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import psutil
import torch

from hasten.bench.schema import Batch
from hasten.devices import clean_up
from hasten.errors import HastenError
from hasten.generation import Session

ROUNDS = 3


def measure_batches(
    sessions: Mapping[str, Session],
    prompt: str,
    seed: int,
    sizes: Sequence[int],
    *,
    known: Sequence[Batch] = (),
    tell: Callable[[str], None] = lambda label: None,
    rounds: int = ROUNDS,
) -> Iterator[Batch]:
    """Every session at every size, smallest first, taking turns within a size after one untimed call each.

    A session that ran out of memory is not tried with more.

    Args:
        known: what is measured already and left out.
    """
    rows = {(batch.variant, batch.size): batch for batch in known}
    for size in sorted(sizes):
        todo = [name for name in sessions if (name, size) not in rows]
        seconds: dict[str, list[float]] = {name: [] for name in todo}
        peaks = dict.fromkeys(todo, 0)
        errors: dict[str, str] = {}
        for turn in range(-1, rounds):
            for name in todo if turn % 2 else reversed(todo):
                if name in errors:
                    continue
                before = [row for (variant, _), row in rows.items() if variant == name]
                reason = _hopeless(before, size, sessions[name].device)
                if reason is not None:
                    errors[name] = reason
                    continue
                tell(f"{name}, {size} at once")
                try:
                    record = sessions[name].run(prompt, seed, batch=size).record
                except HastenError as error:
                    ended = isinstance(error.__cause__, torch.OutOfMemoryError)
                    errors[name] = "out of memory" if ended else str(error)
                    clean_up(sessions[name].device)
                    continue
                if turn >= 0:
                    seconds[name].append(record.timings.total)
                peaks[name] = max(peaks[name], record.memory.peak_bytes)
        for name in todo:
            batch = Batch(
                variant=name,
                size=size,
                seconds=() if name in errors else tuple(seconds[name]),
                peak_bytes=peaks[name] or None,
                error=errors.get(name),
            )
            rows[name, size] = batch
            yield batch


def more_bytes(measured: Sequence[tuple[int, int]], size: int) -> int:
    """What a larger batch will take beyond the largest measured one, by the line through the last two.

    Args:
        measured: (size, peak bytes), at least one.
    """
    ordered = sorted(measured)
    if len(ordered) < 2:
        return 0
    (small, low), (large, high) = ordered[-2:]
    return max(0, round((high - low) / (large - small) * (size - large)))


def _hopeless(before: Sequence[Batch], size: int, device: torch.device) -> str | None:
    """Why this size is not tried: a smaller one failed, or the CPU's memory would end, and with it the process."""
    if any(row.error for row in before):
        return "a smaller batch failed already"
    measured = [(row.size, row.peak_bytes) for row in before if row.peak_bytes is not None]
    if device.type != "cpu" or not measured:
        return None
    more, free = more_bytes(measured, size), int(psutil.virtual_memory().available)
    if more < 0.9 * free:
        return None
    return f"it would need {more >> 20} MiB more, and {free >> 20} MiB are free"
