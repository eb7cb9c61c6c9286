"""Errors whose message is complete: the command line prints it as it is, without a traceback, and exits with 2."""

from __future__ import annotations


class HastenError(Exception):
    """Something the user can mend; the message says what is wrong and what to do."""


class PlanError(HastenError, ValueError):
    """A plan that cannot be used; one line per problem.

    Args:
        problems: complete lines, such as ``plan.yaml:7: cache.intervall: unknown key; …``; at least one.
    """

    def __init__(self, *problems: str) -> None:
        super().__init__("\n".join(problems))
        self.problems: tuple[str, ...] = problems


class LoadError(HastenError):
    """A model that cannot be found or read."""


class DeviceError(HastenError):
    """A device that is absent, or cannot do what the plan asks of it."""


class CacheError(HastenError):
    """A cache setting that this pipeline cannot take."""


class PassError(HastenError):
    """Something in a plan besides its cache that this pipeline, or this machine, cannot take."""
