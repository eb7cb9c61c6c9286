"""Samplers by name: a plan's `sampler` section put on a pipeline, or refused with what would fit."""

from __future__ import annotations

import contextlib
import inspect
import logging
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from diffusers import FlowMatchEulerDiscreteScheduler

from hasten.errors import PassError
from hasten.plan.sampling import Sampler
from hasten.sampling.catalogue import CATALOGUE, config_of, kind_of, takes
from hasten.sampling.flow import FlowHeunScheduler, OnFlowSchedule

__all__ = ["FlowHeunScheduler", "apply_sampler", "compatible", "is_flow", "make_sampler"]


def is_flow(scheduler: Any) -> bool:
    """Whether a scheduler belongs to a flow-matching model: a structural test, not a list of classes.

    `scale_noise` is the flow's straight-line forward process (others have `add_noise`); solvers that serve both
    families say in their config which one they serve.
    """
    config = scheduler.config
    return (
        hasattr(scheduler, "scale_noise")
        or config.get("prediction_type") == "flow_prediction"
        or bool(config.get("use_flow_sigmas"))
    )


def compatible(scheduler: Any) -> list[str]:
    """Names of the samplers that fit a model, told by the scheduler it came with: each is tried on three steps."""
    return ["default", *(name for name in CATALOGUE if _obstacle(scheduler, Sampler(name=name)) is None)]  # type: ignore[arg-type]


def make_sampler(old: Any, sampler: Sampler) -> Any:
    """The scheduler that a plan asks for, with the noise schedule of the model's own; that one if nothing changes.

    Args:
        old: the scheduler that the model came with.

    Raises:
        PassError: the sampler or a setting does not fit; with those that do.
    """
    if sampler == Sampler():
        return old
    flow = is_flow(old)
    family = f"the model came with {type(old).__name__}, which is {'' if flow else 'not '}of the flow-matching family"
    if sampler.shift is not None and not flow:
        raise PassError(f"sampler.shift does not fit: {family}. Leave it out")
    kind = type(old) if sampler.name == "default" else kind_of(sampler.name, is_flow=flow)
    if kind is not None:
        for key, settings in config_of(sampler).items():
            if not takes(kind, settings):
                raise PassError(
                    f"sampler.{key}: {kind.__name__} has no such setting{_who_has(key, sampler, flow=flow)}"
                )
    obstacle = _obstacle(old, sampler)
    if obstacle is not None:
        reason = f"{family}. Compatible here: {', '.join(compatible(old))}"
        why = f" ({obstacle})" if obstacle else ""
        raise PassError(f"sampler {sampler.name!r} does not fit{why}: {reason}")
    made = _build(old, sampler)
    return old if type(made) is type(old) and dict(made.config) == dict(old.config) else made


def apply_sampler(pipe: Any, sampler: Sampler) -> None:
    """Put the plan's sampler on a pipeline, in place.

    Raises:
        PassError: the sampler or a setting does not fit the model's family; with the names that do.
    """
    if sampler == Sampler():
        return
    old = getattr(pipe, "scheduler", None)
    if old is None:
        raise PassError(f"{type(pipe).__name__} has no scheduler: leave the section sampler out")
    made = make_sampler(old, sampler)
    if made is not old:
        pipe.scheduler = made


def _who_has(key: str, sampler: Sampler, *, flow: bool) -> str:
    settings = config_of(sampler)[key]
    kinds = {name: kind_of(name, is_flow=flow) for name in CATALOGUE}
    names = [name for name, kind in kinds.items() if kind is not None and takes(kind, settings)]
    return f"; samplers with it: {', '.join(names)}" if names else "; no sampler for this model has"


def _obstacle(old: Any, sampler: Sampler) -> str | None:
    """Why a sampler cannot solve for this model, "" where there is nothing to say, None if it can."""
    kind = type(old) if sampler.name == "default" else kind_of(sampler.name, is_flow=is_flow(old))
    if kind is None:
        return ""
    if not is_flow(old) and kind is not type(old):
        listed = [*getattr(type(old), "_compatibles", ()), type(old).__name__]
        own = getattr(kind, "_compatibles", ())  # empty where nothing is said: for distilled models, by their LoRA
        if own and kind.__name__ not in listed and type(old).__name__ not in own:
            return "diffusers does not list the two as compatible"
    try:
        with _silence():
            _try(_build(old, sampler))
    except ImportError as error:
        return " ".join(str(error).split())
    except (ValueError, NotImplementedError, TypeError, RuntimeError, AssertionError, IndexError) as error:
        return next(iter(str(error).strip().splitlines()), type(error).__name__)
    return None


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """What a scheduler that is only tried says is of no interest."""
    handlers = logging.getLogger("diffusers").handlers
    for handler in handlers:
        handler.addFilter(_nothing)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for handler in handlers:
            handler.removeFilter(_nothing)


def _nothing(record: logging.LogRecord) -> bool:
    return False


def _try(scheduler: Any) -> None:
    """Three steps on four numbers."""
    dynamic = bool({**scheduler.config, **(scheduler.config.get("flow_schedule") or {})}.get("use_dynamic_shifting"))
    scheduler.set_timesteps(3, **({"mu": 0.5} if dynamic else {}))
    sample = torch.zeros(1, 1, 2, 2)
    for timestep in scheduler.timesteps:
        if hasattr(scheduler, "scale_model_input"):  # some count their steps there
            scheduler.scale_model_input(sample, timestep)
        sample = scheduler.step(torch.zeros_like(sample), timestep, sample, return_dict=False)[0]
    if not bool(torch.isfinite(sample).all()):
        raise ValueError("it ends in NaN on this schedule")


def _build(old: Any, sampler: Sampler) -> Any:
    flow = is_flow(old)
    kind = type(old) if sampler.name == "default" else kind_of(sampler.name, is_flow=flow)
    assert kind is not None
    changes: dict[str, Any] = dict(CATALOGUE[sampler.name].settings) if sampler.name != "default" else {}
    for settings in config_of(sampler).values():
        changes |= settings
    if not flow:
        return kind.from_config(old.config, **_known(kind, changes))
    schedule = {**old.config, **(old.config.get("flow_schedule") or {})}
    shift = sampler.shift if sampler.shift is not None else schedule.get("flow_shift")
    if shift is not None:
        changes |= {"shift": shift, "flow_shift": shift}
    if sampler.shift is not None:
        # A dynamic shift is made from the image's size and would win over the one asked for.
        changes["use_dynamic_shifting"] = False
    if not issubclass(kind, OnFlowSchedule):
        return _from(kind, old.config, _known(kind, changes))
    plain = {f"use_{spacing}_sigmas": False for spacing in ("karras", "exponential", "beta")}
    fixed = {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "use_dynamic_shifting": False}
    made = _from(kind, old.config, _known(kind, {**changes, **plain, **fixed}))
    made.register_to_config(flow_schedule=_known(FlowMatchEulerDiscreteScheduler, {**schedule, **changes}))
    return made


def _from(kind: type[Any], config: Mapping[str, Any], changes: dict[str, Any]) -> Any:
    """As `kind.from_config`, which complains of what one family's config says and the other's classes do not know."""
    made = kind(**_known(kind, {**config, **changes}))
    # Pipelines read the size of the images that a dynamic shift is made for from the config.
    made.register_to_config(**{key: value for key, value in config.items() if key not in made.config})
    return made


def _known(kind: type[Any], settings: dict[str, Any]) -> dict[str, Any]:
    """Without the switches that a scheduler does not have; those that are on have been refused."""
    known = inspect.signature(kind.__init__).parameters
    return {name: value for name, value in settings.items() if name in known}
