"""A site that a denoiser does not have: what stands in for it, and what is said of that."""

from __future__ import annotations

from typing import Any

from hasten.caching.budget import Budget
from hasten.caching.denoiser import Branch, Denoiser
from hasten.caching.settings import Settings
from hasten.caching.sites import Call, MisfitError, OutputSite, Site, UnfitError, Values
from hasten.caching.vocabulary import WITHIN
from hasten.errors import CacheError


def another_site(
    settings: Settings,
    budget: Budget,
    denoiser: Denoiser,
    branch: Branch,
    unfit: UnfitError,
    inner: Call,
    args: Any,
    kwargs: Any,
    *,
    keep: bool,
) -> tuple[Site, Any, Values]:
    """Compute the call at a site that the denoiser has.

    Args:
        unfit: why it is not the one that was tried; it may hold the result.
        keep: whether a later step may look at the values.

    Returns:
        the site, the result and its values there.

    Raises:
        CacheError: the site was asked for by name.
    """
    wanted, dtype = budget.site, budget.dtype
    if wanted in WITHIN and not settings.site_given:
        # Of a method of several layers this one finds nothing to leave out.
        branch.lost = str(unfit)
        denoiser.notes["site"] = f"{denoiser.name}: site {wanted}: every step is computed: {unfit}"
        result = unfit.result if isinstance(unfit, MisfitError) else inner(*args, **kwargs)
        return denoiser.site(wanted, settings), result, ()
    if wanted != "output" and settings.site_given:
        raise CacheError(
            f"cache.site: {denoiser.name} ({type(denoiser.module).__name__}) has no site "
            f"{denoiser.site(wanted, settings).name!r}: {unfit}; allowed here: output"
        ) from None
    because = f"in place of {wanted}: {unfit}"
    if wanted == "residual" and not isinstance(unfit, MisfitError):
        # While the residual is tried the step is computed; from the next one on the deep part of a UNet is tried.
        below = denoiser.site("unet_branch", settings)
        try:
            result, values = below.compute(inner, args, kwargs, branch.blanks, dtype, keep=keep)
            denoiser.notes["site"] = f"{denoiser.name}: site {below.name} {because}"
            return below, result, values
        except UnfitError as neither:
            unfit = neither
    if wanted != "output":
        denoiser.notes["site"] = f"{denoiser.name}: site output {because}"
    output = denoiser.site("output", settings)
    assert isinstance(output, OutputSite)
    if branch.site is not output:
        branch.blanks = {}
    try:
        if isinstance(unfit, MisfitError):
            values = output.values(unfit.result, branch.blanks, dtype) if keep and wanted != "output" else ()
            return output, unfit.result, values
        result, values = output.compute(inner, args, kwargs, branch.blanks, dtype, keep=keep)
    except MisfitError as misfit:
        denoiser.notes["output"] = f"{denoiser.name}: every step is computed: {misfit}"
        return output, misfit.result, ()
    return output, result, values
