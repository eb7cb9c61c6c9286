"""One reversible change of a pipeline, described before it is made."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

Figure = str | int | float


@dataclass(frozen=True)
class Done:
    """A change that was made.

    Attributes:
        undo: puts back what was there.
        figures: what was measured on the way, such as bytes before and after.
        live: what is only known later; asked for whenever a report is made.
    """

    undo: Callable[[], None]
    figures: Mapping[str, Figure] = field(default_factory=dict)
    live: Callable[[], Mapping[str, Figure]] = dict


def nothing() -> Done:
    """Of a change that turned out to need none."""
    return Done(lambda: None)


@dataclass(frozen=True)
class Change:
    """A change to be made.

    Attributes:
        name: the pass: "precision", "compile", …
        component: the part of the pipeline, such as "vae"; "pipeline" for the whole.
        what: what it does, in words: "bf16 (was fp32)".
        make: makes it.
    """

    name: str
    component: str
    what: str
    make: Callable[[], Done] = nothing
