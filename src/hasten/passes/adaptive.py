"""The pass `adaptive`: runs that choose their own number of steps."""

from __future__ import annotations

from collections.abc import Iterator

from hasten.errors import PassError
from hasten.passes.change import Change, Done
from hasten.passes.target import Target
from hasten.plan import Plan
from hasten.sampling.adaptive import Respacer, Rule, suits
from hasten.sampling.samplers import make_sampler

NAME = "adaptive"


def adaptive(target: Target, plan: Plan) -> Iterator[Change]:
    """Have the scheduler choose the number of steps after a warm-up.

    Raises:
        PassError: there is no scheduler, or one that cannot change its steps in a run.
    """
    if not plan.adaptive.on:
        return
    old = getattr(target.pipe, "scheduler", None)
    if old is None:
        raise PassError(f"{target.title} has no scheduler: leave the section adaptive out")
    kind, prediction = suits(make_sampler(old, plan.sampler))
    rule = Rule.of(plan.adaptive)
    fewest = f"{rule.fewest}" if rule.fewest else "half"
    most = f"{rule.most}" if rule.most else "all"
    what = (
        f"{fewest} to {most} of the steps, by {rule.score} from {rule.low:g} to {rule.high:g} after {rule.warmup} steps"
    )

    def make() -> Done:
        # The one that the pass `sampler` has put there by now.
        respacer = Respacer(target.pipe.scheduler, kind, prediction, rule.warmup, rule.choose)
        return Done(respacer.remove, live=respacer.figures)

    yield Change(NAME, "scheduler", what, make)
