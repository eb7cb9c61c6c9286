"""Passes: what a plan changes of a pipeline besides its cache, each applied once, recorded, and undone exactly.

A pass is a function that is given the target and the plan, and yields the changes that they need; nothing is touched
until all passes have said what they want and what cannot be. Files: `planner` (order, conflicts, undoing), `journal`
(what an operation changed), `target` (a pipeline's parts by name), and one file per pass.
"""

from hasten.passes.change import Change, Done
from hasten.passes.planner import Keeper, Passes, apply_passes, wants_passes, without_passes
from hasten.passes.target import Target

__all__ = ["Change", "Done", "Keeper", "Passes", "Target", "apply_passes", "wants_passes", "without_passes"]
