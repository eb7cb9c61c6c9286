"""The pass `sampler`: another solver on the pipeline, with the noise schedule of the model's own."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from hasten.errors import PassError
from hasten.passes.change import Change, Done
from hasten.passes.journal import reversible
from hasten.passes.target import Target
from hasten.plan import Plan, Sampler
from hasten.sampling.samplers import make_sampler

NAME = "sampler"


def sampler(target: Target, plan: Plan) -> Iterator[Change]:
    """Exchange the scheduler.

    Raises:
        PassError: it does not fit the model; with those that do.
    """
    if plan.sampler == Sampler():
        return
    old = getattr(target.pipe, "scheduler", None)
    if old is None:
        raise PassError(f"{target.title} has no scheduler: leave the section sampler out")
    made = make_sampler(old, plan.sampler)
    if made is old:
        return
    set_values = plan.sampler.model_dump(exclude_defaults=True, exclude={"name"})
    settings = "".join(f", {key} {value}" for key, value in set_values.items())
    what = f"{plan.sampler.name}: {type(made).__name__}{settings} (was {type(old).__name__})"

    def exchange() -> Done:
        return Done(reversible(target.pipe, partial(setattr, target.pipe, "scheduler", made)))

    yield Change(NAME, "scheduler", what, exchange)
