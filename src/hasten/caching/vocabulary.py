"""The names that a plan takes for sites, policies and signals, and which of them go together. No torch in here."""

from __future__ import annotations

from typing import Literal, get_args

SiteName = Literal[
    "guidance",
    "output",
    "latent",
    "residual",
    "unet_branch",
    "span",
    "last_block",
    "block",
    "attention",
    "spatial_attention",
    "temporal_attention",
    "cross_attention",
    "feed_forward",
]
# Outermost first: what a site leaves out, those further down are not asked for.
FROM_OUTSIDE: tuple[SiteName, ...] = get_args(SiteName)
# Sites that would leave out the same modules, each in its own way.
RIVALS: tuple[frozenset[SiteName], ...] = (
    frozenset({"output", "latent"}),
    frozenset({"residual", "unet_branch", "span", "last_block", "block"}),
    frozenset({"attention", "spatial_attention"}),
    frozenset({"attention", "temporal_attention"}),
)
WITHIN = frozenset(FROM_OUTSIDE) - {"output", "latent", "residual", "unet_branch", "span", "last_block"}
"""Sites that some denoisers do not have, and that no other can stand in for."""
PolicyName = Literal[
    "interval",
    "mask",
    "geometric",
    "bins",
    "window",
    "gate",
    "accumulate",
    "compare",
    "table",
    "codebook",
    "verify",
    "tolerance",
]
SignalName = Literal["input", "filtered", "estimate", "modulated", "state", "probe"]
MIDWAY: tuple[SignalName, ...] = ("modulated", "state", "probe")
"""Signals that show themselves in the middle of a call: only a site that can begin undecided goes with them."""
UNDECIDED: tuple[SiteName, ...] = ("output", "latent", "residual", "span", "last_block", "unet_branch")
StoreDtype = Literal["model", "fp32", "bf16", "fp16"]

FIXED: tuple[PolicyName, ...] = ("interval", "mask", "geometric", "bins", "window", "gate")
"""Policies whose steps are known before the run."""
