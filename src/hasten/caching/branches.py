"""The site of DeepCache: the deep part of a UNet, below one of its skip connections."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hasten.caching.joins import JoinTracer
from hasten.caching.sites import Blanks, Call, MisfitError, Values
from hasten.caching.spans import SpanSite
from hasten.caching.tracing import UntraceableError, follow
from hasten.caching.trees import fresh


class BranchSite(SpanSite):
    """All that lies below one skip connection: what comes up from there is predicted, and the shallower part runs.

    Ma et al. 2023, arXiv 2312.00858. The branches are counted from the shallowest, 0, which leaves the most out. In a
    UNet of diffusers with n layers to a level, branch b leaves from level b // (n + 1) at its layer b % (n + 1): the
    numbers are those of the published code.

    Args:
        model: the denoiser.
        branch: the skip connection that the deep part is cut off at.
        least: the share of the model's parameters that has to be in the deep part.
    """

    def __init__(self, model: nn.Module, branch: int = 0, least: float = 0.0) -> None:
        super().__init__(model)
        self.name = f"unet_branch {branch}"
        self._branch = branch
        self._least = least

    def _watch(
        self,
        sort: object,
        inner: Call,
        args: Any,
        kwargs: Any,
        spare: tuple[Any, Any],
        blanks: Blanks,
        dtype: torch.dtype | None,
    ) -> tuple[Any, Values]:
        tracer = JoinTracer(self._model, self._branch)
        again = fresh(spare)
        try:
            result = follow(tracer, inner, args, kwargs)
        except UntraceableError as error:
            self._plans[sort] = str(error)
            raise MisfitError(str(error), inner(*again[0], **again[1])) from error
        wiring, seen, value = tracer.wiring(self._least)
        plan = self._adopt(sort, wiring, seen, blanks, result)
        if value is None:
            return result, self._values(plan, inner, spare, blanks, dtype)
        return result, (value.detach().to(dtype or value.dtype, copy=True),)
