"""A pipeline's weights under the names that single files have.

Pipelines with a UNet2DConditionModel have the names of the latent-diffusion code base that Stable Diffusion was
published in: `model.diffusion_model.input_blocks…`, `first_stage_model…`, `cond_stage_model…`. Of others the denoiser
is written under diffusers' own names, which its reader takes as they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hasten.errors import HastenError

_UNET = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "mid_block.resnets.0": "middle_block.0",
    "mid_block.attentions.0": "middle_block.1",
    "mid_block.resnets.1": "middle_block.2",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def original_weights(pipe: Any) -> dict[str, Tensor]:
    """All weights that a single file of this pipeline holds.

    Raises:
        HastenError: there is no such form of this pipeline.
    """
    parts = {name: part for name, part in pipe.components.items() if isinstance(part, torch.nn.Module)}
    kinds = {name: type(part).__name__ for name, part in parts.items()}
    if kinds.get("unet") == "UNet2DConditionModel":
        return dict(_stable_diffusion(parts, kinds))
    denoisers = [name for name in parts if name.startswith(("transformer", "unet"))]
    if len(denoisers) != 1 or not hasattr(parts[denoisers[0]], "from_single_file"):
        raise HastenError(
            f"{type(pipe).__name__} has no form as a single file that diffusers reads: name a folder to write"
        )
    return dict(parts[denoisers[0]].state_dict())


def _stable_diffusion(parts: Mapping[str, Any], kinds: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    unknown = [name for name in kinds if name not in ("unet", "vae", "text_encoder", "text_encoder_2", *_LEFT_OUT)]
    if unknown or kinds.get("vae") != "AutoencoderKL":
        raise HastenError(f"a single file has no place for {', '.join(unknown) or kinds.get('vae') or 'no vae'}")
    layers = parts["unet"].config.layers_per_block
    if not isinstance(layers, int):
        raise HastenError(
            "diffusers reads single files only of UNets with as many layers in each block: write a folder"
        )
    for name, tensor in parts["unet"].state_dict().items():
        yield f"model.diffusion_model.{unet_name(name, layers, parts['unet'])}", tensor
    levels = len(parts["vae"].config.block_out_channels)
    for name, tensor in parts["vae"].state_dict().items():
        new = vae_name(name, levels)
        is_kernel = ".attn_1." in new and new.endswith(".weight") and tensor.ndim == 2
        yield f"first_stage_model.{new}", tensor[:, :, None, None] if is_kernel else tensor
    two = "text_encoder_2" in parts
    first = "conditioner.embedders.0.transformer." if two else "cond_stage_model.transformer."
    if "text_encoder" in parts:
        for name, tensor in parts["text_encoder"].state_dict().items():
            yield f"{first}{name if name.startswith('text_model.') else f'text_model.{name}'}", tensor
    if two:
        prefix = "conditioner.embedders.1.model."
        yield from ((f"{prefix}{name}", tensor) for name, tensor in open_clip(parts["text_encoder_2"].state_dict()))


_LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")


def unet_name(name: str, layers: int, unet: Any) -> str:
    """diffusers' name of a UNet's weight → the original one."""
    stem, _, leaf = name.rpartition(".")
    if stem in _UNET:
        return f"{_UNET[stem]}.{leaf}"
    found = re.match(r"(mid_block\.\w+\.\d+)\.(.*)", name)
    if found:
        return f"{_UNET[found[1]]}.{_inside(found[1], found[2])}"
    found = re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.*)", name)
    if found is None:
        raise HastenError(f"the UNet's {name} has no name in a single file")
    way, block, kind, number, rest = found[1], int(found[2]), found[3], int(found[4]), found[5]
    here = block * (layers + 1)
    if way == "down":
        if kind == "downsamplers":
            return f"input_blocks.{here + layers + 1}.0.op.{rest.removeprefix('conv.')}"
        return f"input_blocks.{here + number + 1}.{int(kind == 'attentions')}.{_inside(kind, rest)}"
    if kind == "upsamplers":
        after = 2 if getattr(unet.up_blocks[block], "attentions", None) else 1
        return f"output_blocks.{here + layers}.{after}.{rest}"
    return f"output_blocks.{here + number}.{int(kind == 'attentions')}.{_inside(kind, rest)}"


def _inside(kind: str, rest: str) -> str:
    if "resnets" not in kind:
        return rest
    stem, _, leaf = rest.rpartition(".")
    return f"{_RESNET[stem]}.{leaf}"


def vae_name(name: str, levels: int) -> str:
    """diffusers' name of an autoencoder's weight → the original one.

    >>> vae_name("decoder.up_blocks.0.resnets.1.conv_shortcut.weight", 4)
    'decoder.up.3.block.1.nin_shortcut.weight'
    """
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.resnets\.", r"encoder.down.\1.block.", name)
    name = re.sub(r"encoder\.down_blocks\.(\d+)\.downsamplers\.0\.", r"encoder.down.\1.downsample.", name)
    name = re.sub(
        r"decoder\.up_blocks\.(\d+)\.resnets\.", lambda found: f"decoder.up.{levels - 1 - int(found[1])}.block.", name
    )
    name = re.sub(
        r"decoder\.up_blocks\.(\d+)\.upsamplers\.0\.",
        lambda found: f"decoder.up.{levels - 1 - int(found[1])}.upsample.",
        name,
    )
    name = re.sub(r"mid_block\.resnets\.(\d)\.", lambda found: f"mid.block_{int(found[1]) + 1}.", name)
    found = re.match(r"(.*)mid_block\.attentions\.0\.(.*)\.(\w+)$", name)
    return f"{found[1]}mid.attn_1.{_VAE_ATTENTION[found[2]]}.{found[3]}" if found else name


def open_clip(state: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """The weights of a CLIPTextModelWithProjection under OpenCLIP's names: queries, keys and values in one matrix."""
    fused: dict[str, dict[str, Tensor]] = {}
    for name, tensor in state.items():
        short = name.removeprefix("text_model.")
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", short)
        if layer is None:
            if short == "text_projection.weight":
                yield "text_projection", tensor.T.contiguous()
            elif short == "embeddings.position_embedding.weight":
                yield "positional_embedding", tensor
            elif short != "embeddings.position_ids":
                yield (
                    short.replace("embeddings.token_embedding", "token_embedding").replace(
                        "final_layer_norm", "ln_final"
                    ),
                    tensor,
                )
            continue
        home = f"transformer.resblocks.{layer[1]}"
        if layer[2] in _OPEN_CLIP:
            yield f"{home}.{_OPEN_CLIP[layer[2]]}.{layer[3]}", tensor
        else:
            fused.setdefault(f"{home}.attn.in_proj_{layer[3]}", {})[layer[2]] = tensor
    for name, three in fused.items():
        yield name, torch.cat([three[f"self_attn.{letter}_proj"] for letter in "qkv"])
