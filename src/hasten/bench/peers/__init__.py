"""Peers: other implementations as variants of the same benchmark, each in a process of its own.

No torch in here: the command line lists and checks peers with it. What a peer needs is imported in its own process.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Literal

import yaml

from hasten.bench.peers import hooks, packages
from hasten.bench.schema import PeerChoice, PeerFacts, Value
from hasten.errors import HastenError
from hasten.plan.messages import nearest

Adapter = Callable[[Any, dict[str, Any], int, dict[str, Any]], AbstractContextManager[None]]
"""adapter(pipe, settings, steps, kept): the peer is on the pipeline while the block runs; `kept` outlives the run."""


@dataclass(frozen=True)
class Peer:
    """Another implementation, with the settings that its authors publish as defaults.

    Attributes:
        package: what pip installs. `module` is what Python then imports.
        part: the part of a pipeline that it works on.
        source: its paper or its home.
        settings: every key that `--peer NAME:KEY=VALUE` may change, with its default.
        calibrates: it needs one run of its own before it can skip anything.
        install: what to type where it is missing.
    """

    name: str
    package: str
    module: str
    part: Literal["transformer", "unet"]
    summary: str
    source: str
    adapter: Adapter
    settings: Mapping[str, Value] = field(default_factory=dict)
    calibrates: bool = False
    install: str = "pip install 'hasten[peers]'"

    def version(self) -> str | None:
        """The installed version; None where there is none."""
        try:
            return importlib.metadata.version(self.package)
        except importlib.metadata.PackageNotFoundError:
            return None

    def refuses(self, pipe: Any) -> str | None:
        """Why it cannot run on this pipeline, as far as that is seen without trying."""
        if importlib.util.find_spec(self.module) is None:
            return f"not installed: {self.install}"
        if getattr(pipe, self.part, None) is None:
            return f"works on a pipeline's {self.part}, which {type(pipe).__name__} has not"
        return None


_CACHE_DIT = {
    # The package's own 8 compute blocks are meant for models of 50 and more; F1 is the form of its published tables.
    "Fn_compute_blocks": 1,
    "Bn_compute_blocks": 0,
    "residual_diff_threshold": 0.08,
    "max_warmup_steps": 8,
    "max_cached_steps": -1,
    "max_continuous_cached_steps": -1,
}

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(
            "cache-dit",
            "cache-dit",
            "cache_dit",
            "transformer",
            "DBCache: the first blocks decide, the residual of the others is reused",
            "github.com/vipshop/cache-dit",
            packages.cache_dit,
            _CACHE_DIT,
        ),
        Peer(
            "cache-dit-taylorseer",
            "cache-dit",
            "cache_dit",
            "transformer",
            "DBCache with its TaylorSeer calibrator",
            "github.com/vipshop/cache-dit",
            packages.cache_dit,
            _CACHE_DIT | {"taylorseer_order": 1},
        ),
        Peer(
            "diffusers-taylorseer",
            "diffusers",
            "diffusers.hooks.taylorseer_cache",
            "transformer",
            "TaylorSeer on every attention module",
            "arXiv 2503.06923",
            hooks.taylorseer,
            {"cache_interval": 5, "disable_cache_before_step": 3, "max_order": 1, "taylor_factors_dtype": "bf16"},
        ),
        Peer(
            "diffusers-taylorseer-lite",
            "diffusers",
            "diffusers.hooks.taylorseer_cache",
            "transformer",
            "TaylorSeer on the denoiser's last projection alone",
            "arXiv 2503.06923",
            hooks.taylorseer_lite,
            {"cache_interval": 5, "disable_cache_before_step": 3, "max_order": 1, "taylor_factors_dtype": "bf16"},
        ),
        Peer(
            "diffusers-firstblock",
            "diffusers",
            "diffusers.hooks.first_block_cache",
            "transformer",
            "the first block's residual decides",
            "github.com/chengzeyi/ParaAttention",
            hooks.first_block,
            {"threshold": 0.05},
        ),
        Peer(
            "diffusers-magcache",
            "diffusers",
            "diffusers.hooks.mag_cache",
            "transformer",
            "ratios of residual norms, measured in one run, decide",
            "arXiv 2506.09045",
            hooks.mag_cache,
            {"threshold": 0.06, "max_skip_steps": 3, "retention_ratio": 0.2},
            calibrates=True,
        ),
        Peer(
            "diffusers-seacache",
            "diffusers",
            "diffusers.hooks.sea_cache",
            "transformer",
            "the filtered input's change decides, the residual is extrapolated",
            "arXiv 2602.18993",
            hooks.sea_cache,
            {"threshold": 0.25, "residual_order": 1, "retention_steps": 1, "max_consecutive_cached": 2},
        ),
        Peer(
            "diffusers-pab",
            "diffusers",
            "diffusers.hooks.pyramid_attention_broadcast",
            "transformer",
            "attention is computed every second step within a range of timesteps",
            "arXiv 2408.12588",
            hooks.pyramid_attention,
            {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [100, 800]},
        ),
        Peer(
            "diffusers-fastercache",
            "diffusers",
            "diffusers.hooks.faster_cache",
            "transformer",
            "attention is extrapolated, the unconditional branch is made from the conditional one",
            "arXiv 2410.19355",
            hooks.faster_cache,
            {"spatial_attention_block_skip_range": 2, "spatial_attention_timestep_skip_range": [-1, 681]},
        ),
        Peer(
            "para-attn",
            "para-attn",
            "para_attn",
            "transformer",
            "First Block Cache",
            "github.com/chengzeyi/ParaAttention",
            packages.para_attn,
            {"residual_diff_threshold": 0.08},
            # No extra can name it: its newest releases ask for diffusers by URL, which pip refuses.
            install="pip install --no-deps para-attn==0.3.20",
        ),
        Peer(
            "deepcache",
            "DeepCache",
            "DeepCache",
            "unet",
            "the deep part of the UNet is computed every third step",
            "arXiv 2312.00858",
            packages.deepcache,
            {"cache_interval": 3, "cache_branch_id": 0},
        ),
        Peer(
            "t-gate",
            "tgate",
            "tgate",
            "unet",
            "cross-attention and guidance end at the gate step",
            "arXiv 2404.02747",
            packages.tgate,
            {"gate_step": 10, "sp_interval": 5, "fi_interval": 1, "warm_up": 2},
        ),
        Peer(
            "tomesd",
            "tomesd",
            "tomesd",
            "unet",
            "similar tokens are merged before attention",
            "arXiv 2303.17604",
            packages.tomesd,
            {"ratio": 0.5, "max_downsample": 1, "sx": 2, "sy": 2},
        ),
    )
}


def facts(choice: PeerChoice) -> PeerFacts:
    """What a report says of a peer: what is installed, and all settings that it gets."""
    peer = PEERS[choice.name]
    return PeerFacts(
        package=peer.package,
        version=peer.version(),
        settings={**peer.settings, **choice.settings},
        summary=peer.summary,
        source=peer.source,
    )


def parse_peer(text: str) -> PeerChoice:
    """ "cache-dit:residual_diff_threshold=0.12,Fn_compute_blocks=2" as a choice.

    Raises:
        HastenError: a peer or a setting that there is not, or a value that cannot be read.
    """
    name, colon, rest = text.partition(":")
    peer = PEERS.get(name.strip().lower())
    if peer is None:
        raise HastenError(
            f"--peer {text}: there is no peer {name.strip()!r}{_meant(name.strip(), list(PEERS))} "
            f"(there are: {', '.join(PEERS)})"
        )
    settings = _settings(text, rest) if colon else {}
    for key in settings:
        if key not in peer.settings:
            raise HastenError(
                f"--peer {text}: {peer.name} has no setting {key!r}{_meant(key, list(peer.settings))} "
                f"(allowed: {', '.join(peer.settings)})"
            )
    return PeerChoice(name=peer.name, settings=settings)


def every_peer(chosen: Sequence[PeerChoice]) -> tuple[PeerChoice, ...]:
    """All peers with their published settings, those that were chosen by name with what was asked for."""
    named = {choice.name for choice in chosen}
    order = list(PEERS)
    return tuple(
        sorted(
            [*chosen, *(PeerChoice(name=name) for name in PEERS if name not in named)],
            key=lambda choice: order.index(choice.name),
        )
    )


def _settings(text: str, rest: str) -> dict[str, Value]:
    try:
        found = yaml.safe_load("{" + rest.replace("=", ": ") + "}")
    except yaml.YAMLError:
        found = None
    if not isinstance(found, dict) or not found or None in found.values():
        raise HastenError(
            f"--peer {text}: write NAME:KEY=VALUE,KEY=VALUE, such as cache-dit:residual_diff_threshold=0.12"
        )
    return {str(key): value for key, value in found.items()}


def _meant(name: str, choices: Sequence[str]) -> str:
    near = nearest(name, choices)
    return f"; did you mean {near!r}?" if near is not None else ""
