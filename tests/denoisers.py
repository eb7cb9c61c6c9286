"""Every transformer and UNet class of diffusers, built small: a config and the arguments of a call for each.

All parameters are random, so that every path through a model counts; sizes are the least that keep a model's parts
apart. `CASES` has what a pipeline calls at every step, `NO_DENOISERS` the others with the reason.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers.models import transformers, unets
from diffusers.models.modeling_utils import ModelMixin
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

import tiny


def noise(*shape: int, seed: int = 0) -> Tensor:
    return tiny.noise(*shape, seed=seed)


def ids(*shape: int, high: int = 8, seed: int = 0) -> Tensor:
    return torch.randint(0, high, shape, generator=torch.Generator().manual_seed(seed))


def ones(*shape: int) -> Tensor:
    return torch.ones(shape, dtype=torch.long)


@dataclass(frozen=True)
class Case:
    """A denoiser and how to call it.

    Attributes:
        config: the constructor's arguments.
        latent: the name and the shape of the argument that is denoised.
        fixed: the other arguments, made anew for each call.
        time: the name of the noise level's argument.
        clock: (t from 1 down to 0) → that argument.
        scale: by how much the parameters are drawn larger or smaller.
    """

    config: dict[str, Any]
    latent: tuple[str, tuple[int, ...]]
    fixed: Callable[[], dict[str, Any]] = dict
    time: str = "timestep"
    clock: Callable[[float], Any] = field(default=lambda t: torch.tensor([1000 * t]))
    scale: float = 1.0
    wrap: Callable[[Tensor], Any] = field(default=lambda x: x)

    def build(self, name: str) -> Any:
        return tiny.random_(classes()[name](**self.config), seed=1, scale=self.scale)

    def arguments(self, k: int, steps: int) -> dict[str, Any]:
        """Those of step k: the same noise, less of it, and a little of something else."""
        name, shape = self.latent
        t = 1 - k / steps
        x = noise(*shape, seed=1) * t + noise(*shape, seed=2) * (1 - t)
        time = {self.time: self.clock(t)} if self.time else {}
        return {**self.fixed(), name: self.wrap(x), **time}


def classes() -> dict[str, type[ModelMixin]]:
    """The model classes in diffusers' rooms for transformers and UNets."""
    found = {}
    for package in (transformers, unets):
        for module in pkgutil.iter_modules(package.__path__):
            room = importlib.import_module(f"{package.__name__}.{module.name}")
            for name, value in vars(room).items():
                if inspect.isclass(value) and issubclass(value, ModelMixin) and value.__module__ == room.__name__:
                    found[name] = value
    return found


def text(dim: int, tokens: int = 5, batch: int = 1) -> Tensor:
    return noise(batch, tokens, dim, seed=3)


HEADS = {"num_attention_heads": 2, "attention_head_dim": 16}
UNET = {"block_out_channels": (8, 16, 24), "layers_per_block": 1, "norm_num_groups": 4, "cross_attention_dim": 16}


def unit(t: float) -> Tensor:
    return torch.tensor([t])


FLUX = {
    **HEADS,
    "in_channels": 16,
    "num_layers": 2,
    "num_single_layers": 3,
    "joint_attention_dim": 12,
    "axes_dims_rope": (4, 6, 6),
}


def flux(**more: Any) -> Callable[[], dict[str, Any]]:
    return lambda: {
        "encoder_hidden_states": text(12),
        "img_ids": ids(4, 3).float(),
        "txt_ids": ids(5, 3).float(),
        **more,
    }


WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 12,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 3,
    "cross_attn_norm": True,
    "rope_max_seq_len": 32,
}
VIDEO = (1, 4, 2, 4, 4)

# fmt: off
CASES: dict[str, Case] = {
    "AceStepTransformer1DModel": Case(
        {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 4, "num_attention_heads": 2,
         "num_key_value_heads": 1, "head_dim": 16, "in_channels": 24, "audio_acoustic_hidden_dim": 8,
         "sliding_window": 2},
        ("hidden_states", (1, 8, 8)),
        lambda: {"timestep_r": torch.tensor([0.0]), "encoder_hidden_states": text(32),
                 "context_latents": noise(1, 8, 16)},
        clock=unit,
    ),
    "AuraFlowTransformer2DModel": Case(
        {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_mmdit_layers": 2,
         "num_single_dit_layers": 3, "joint_attention_dim": 12, "caption_projection_dim": 32,
         "pos_embed_max_size": 64},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12)},
        clock=unit,
    ),
    "CogVideoXTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 3,
         "sample_width": 4, "sample_height": 4, "sample_frames": 5, "max_text_seq_length": 5},
        ("hidden_states", (1, 2, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "ConsisIDTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "time_embed_dim": 8, "text_embed_dim": 12, "num_layers": 10,
         "sample_width": 4, "sample_height": 4, "sample_frames": 5, "max_text_seq_length": 5,
         "cross_attn_interval": 2, "is_train_face": True, "cross_attn_dim_head": 8, "cross_attn_num_heads": 2,
         "LFE_id_dim": 8, "LFE_vit_dim": 8, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2,
         "LFE_num_id_token": 2, "LFE_num_querie": 4, "LFE_output_dim": 21, "LFE_ff_mult": 1},
        ("hidden_states", (1, 2, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "id_cond": noise(1, 8), "id_vit_hidden": [noise(1, 3, 8)] * 5},
    ),
    "DiTTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 3, "norm_num_groups": 4, "sample_size": 8},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"class_labels": ids(1)},
    ),
    "HunyuanDiT2DModel": Case(
        {**HEADS, "in_channels": 4, "patch_size": 2, "sample_size": 8, "hidden_size": 32, "num_layers": 4,
         "cross_attention_dim": 12, "cross_attention_dim_t5": 16, "pooled_projection_dim": 8, "text_len": 3,
         "text_len_t5": 4},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12, 3), "text_embedding_mask": ones(1, 3),
                 "encoder_hidden_states_t5": text(16, 4), "text_embedding_mask_t5": ones(1, 4),
                 "image_meta_size": noise(1, 6), "style": ids(1, high=1),
                 "image_rotary_emb": (noise(16, 16), noise(16, 16))},
    ),
    "LatteTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 4, "cross_attention_dim": 32,
         "attention_bias": True, "sample_size": 8, "patch_size": 2, "activation_fn": "gelu-approximate",
         "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single", "norm_elementwise_affine": False,
         "caption_channels": 12, "video_length": 2},
        ("hidden_states", (1, 4, 2, 8, 8)),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "LuminaNextDiT2DModel": Case(
        {"sample_size": 8, "hidden_size": 32, "num_layers": 3, "num_attention_heads": 2, "num_kv_heads": 2,
         "multiple_of": 16, "cross_attention_dim": 12},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_mask": ones(1, 5),
                 "image_rotary_emb": torch.polar(torch.ones(4, 4, 8), noise(4, 4, 8)), "cross_attention_kwargs": {}},
        clock=unit,
    ),
    "PixArtTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 8, "num_layers": 3, "norm_num_groups": 4,
         "cross_attention_dim": 32, "sample_size": 8, "caption_channels": 12, "use_additional_conditions": False},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}},
    ),
    "PriorTransformer": Case(
        {**HEADS, "num_layers": 3, "embedding_dim": 12, "num_embeddings": 5},
        ("hidden_states", (1, 12)),
        lambda: {"proj_embedding": noise(1, 12), "encoder_hidden_states": text(12)},
    ),
    "SanaTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 12, "sample_size": 8},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "StableAudioDiTModel": Case(
        {"sample_size": 8, "in_channels": 8, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
         "num_key_value_attention_heads": 2, "out_channels": 8, "cross_attention_dim": 32, "time_proj_dim": 16,
         "global_states_input_dim": 12, "cross_attention_input_dim": 12},
        ("hidden_states", (1, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "global_hidden_states": noise(1, 1, 12),
                 "rotary_embedding": (noise(9, 8), noise(9, 8))},
        clock=unit,
    ),
    "T5FilmDecoder": Case(
        {"input_dims": 8, "targets_length": 6, "d_model": 32, "num_layers": 3, "num_heads": 2, "d_kv": 16, "d_ff": 48},
        ("decoder_input_tokens", (1, 6, 8)),
        lambda: {"encodings_and_masks": [(text(32), ones(1, 5))]},
        time="decoder_noise_time",
        clock=unit,
    ),
    "Transformer2DModel": Case(
        {**HEADS, "sample_size": 4, "num_layers": 3, "cross_attention_dim": 12, "num_vector_embeds": 9,
         "num_embeds_ada_norm": 100, "norm_type": "ada_norm", "attention_bias": True,
         "activation_fn": "geglu-approximate"},
        ("hidden_states", (1, 16)),
        lambda: {"encoder_hidden_states": text(12)},
        clock=lambda t: torch.tensor(int(99 * t)),
        wrap=lambda x: (4 * x).long().clamp(-4, 4) + 4,
    ),
    "AllegroTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "cross_attention_dim": 48,
         "sample_height": 4, "sample_width": 4, "sample_frames": 2, "caption_channels": 12, "attention_head_dim": 24},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "attention_mask": ones(1, 2, 4, 4),
                 "encoder_attention_mask": ones(1, 5)},
    ),
    "AnyFlowTransformer3DModel": Case(
        WAN,
        ("hidden_states", (1, 2, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "r_timestep": torch.tensor([[0.0, 0.0]])},
        clock=lambda t: torch.tensor([[1000 * t, 1000 * t]]),
    ),
    "AnyFlowFARTransformer3DModel": Case(
        {**WAN, "chunk_partition": (1, 1), "full_chunk_limit": 3},
        ("hidden_states", (1, 2, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "r_timestep": torch.tensor([[0.0, 0.0]]),
                 "chunk_partition": [1, 1]},
        clock=lambda t: torch.tensor([[1000 * t, 1000 * t]]),
    ),
    "BriaTransformer2DModel": Case(FLUX, ("hidden_states", (1, 4, 16)), flux(), clock=unit),
    "BriaFiboTransformer2DModel": Case(
        {**FLUX, "text_encoder_dim": 12, "num_single_layers": 6},
        ("hidden_states", (1, 4, 16)),
        flux(text_encoder_layers=[text(12, 5)] * 8),
        clock=unit,
    ),
    "BriaFibo2Transformer2DModel": Case(
        {"in_channels": 4, "dim": 32, "n_layers": 9, "n_refiner_layers": 1, "n_heads": 2, "cap_feat_dim": 12,
         "injection_layer_ids": (1, 2), "perceiver_num_layers": 1, "min_num_gist_tokens": 4,
         "max_num_gist_tokens": 8, "gist_step": 4, "gist_min_text_len": 4, "gist_max_text_len": 8,
         "axes_dims": (4, 6, 6), "axes_lens": (64, 32, 32)},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": noise(1, 3, 5, 12), "encoder_attention_mask": ones(1, 5) > 0},
        clock=unit,
    ),
    "ChromaTransformer2DModel": Case(
        {**FLUX, "approximator_num_channels": 16, "approximator_hidden_dim": 32, "approximator_layers": 2},
        ("hidden_states", (1, 4, 16)),
        flux(),
        clock=unit,
    ),
    "ChronoEditTransformer3DModel": Case(
        {**WAN, "rope_temporal_skip_len": 2}, ("hidden_states", VIDEO), lambda: {"encoder_hidden_states": text(12)}
    ),
    "CogView3PlusTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "num_layers": 3, "out_channels": 4, "text_embed_dim": 12, "time_embed_dim": 8,
         "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "original_size": noise(1, 2), "target_size": noise(1, 2),
                 "crop_coords": noise(1, 2)},
    ),
    "CogView4Transformer2DModel": Case(
        {**HEADS, "in_channels": 4, "num_layers": 3, "out_channels": 4, "text_embed_dim": 12, "time_embed_dim": 8,
         "condition_dim": 4, "pos_embed_max_size": 8, "sample_size": 8, "rope_axes_dim": (8, 8)},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "original_size": noise(1, 2), "target_size": noise(1, 2),
                 "crop_coords": noise(1, 2)},
    ),
    "Cosmos3OmniTransformer": Case(
        {"head_dim": 16, "hidden_size": 32, "intermediate_size": 48, "latent_channel": 4, "num_attention_heads": 2,
         "num_hidden_layers": 3, "num_key_value_heads": 1, "patch_latent_dim": 16, "vocab_size": 9,
         "rope_axes_dim": (4, 2, 2)},
        ("vision_tokens", (1, 4, 1, 4, 4)),
        lambda: {"input_ids": ids(5), "text_indexes": torch.arange(5), "position_ids": ids(3, 9), "und_len": 5,
                 "sequence_length": 9, "vision_token_shapes": [(1, 2, 2)],
                 "vision_sequence_indexes": torch.arange(5, 9), "vision_mse_loss_indexes": torch.arange(5, 9),
                 "vision_noisy_frame_indexes": [torch.arange(1)]},
        time="vision_timesteps",
        clock=lambda t: torch.full((4,), 1000 * t),
        wrap=lambda x: [x],
    ),
    "CosmosTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "mlp_ratio": 2.0, "text_embed_dim": 12,
         "adaln_lora_dim": 4, "max_size": (4, 8, 8), "concat_padding_mask": False},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "fps": 8},
        clock=unit,
    ),
    "EasyAnimateTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "patch_size": 2, "sample_width": 4, "sample_height": 4,
         "num_layers": 3, "mmdit_layers": 3, "time_embed_dim": 8, "text_embed_dim": 12},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "ErnieImageTransformer2DModel": Case(
        {"hidden_size": 32, "num_attention_heads": 2, "num_layers": 3, "ffn_hidden_size": 48, "in_channels": 8,
         "out_channels": 8, "text_in_dim": 12, "rope_axes_dim": (4, 6, 6)},
        ("hidden_states", (1, 8, 4, 4)),
        lambda: {"text_bth": text(12), "text_lens": torch.tensor([5])},
    ),
    "FluxTransformer2DModel": Case(
        {**FLUX, "pooled_projection_dim": 8, "guidance_embeds": True},
        ("hidden_states", (1, 4, 16)),
        flux(pooled_projections=noise(1, 8), guidance=torch.tensor([3.0])),
        clock=unit,
    ),
    "Flux2Transformer2DModel": Case(
        {**FLUX, "timestep_guidance_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        ("hidden_states", (1, 4, 16)),
        lambda: {"encoder_hidden_states": text(12), "img_ids": ids(1, 4, 4), "txt_ids": ids(1, 5, 4),
                 "guidance": torch.tensor([3.0])},
        clock=unit,
    ),
    "Flux3Transformer2DModel": Case(
        {**FLUX, "cond_in_channels": 16, "timestep_channels": 16, "axes_dims_rope": (4, 4, 4, 4)},
        ("hidden_states", (1, 4, 16)),
        lambda: {"encoder_hidden_states": text(12), "img_ids": ids(4, 4), "txt_ids": ids(5, 4)},
        clock=unit,
    ),
    "GlmImageTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "text_embed_dim": 12, "time_embed_dim": 8,
         "condition_dim": 4, "prior_vq_quantizer_codebook_size": 9},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "prior_token_id": ids(1, 16),
                 "prior_token_drop": ids(1, 16, high=2) > 0, "target_size": noise(1, 2), "crop_coords": noise(1, 2)},
    ),
    "HeliosTransformer3DModel": Case(
        {**{key: value for key, value in WAN.items() if key != "rope_max_seq_len"}, "rope_dim": (4, 4, 4),
         "has_multi_term_memory_patch": False, "zero_history_timestep": False, "guidance_cross_attn": False},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "indices_hidden_states": torch.arange(2)[None]},
    ),
    "HiDreamImageTransformer2DModel": Case(
        {**HEADS, "patch_size": 2, "in_channels": 4, "num_layers": 2, "num_single_layers": 3,
         "caption_channels": [12, 12], "text_emb_dim": 8, "num_routed_experts": 2, "num_activated_experts": 1,
         "axes_dims_rope": (4, 6, 6), "max_resolution": (8, 8), "llama_layers": [0, 1, 2, 3, 4],
         "force_inference_output": True},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states_t5": text(12), "encoder_hidden_states_llama3": noise(5, 1, 5, 12),
                 "pooled_embeds": noise(1, 8)},
        time="timesteps",
    ),
    "HunyuanVideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 3,
         "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6)},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5),
                 "pooled_projections": noise(1, 8), "guidance": torch.tensor([3.0])},
    ),
    "HunyuanVideo15Transformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_refiner_layers": 1,
         "text_embed_dim": 12, "text_embed_2_dim": 12, "image_embed_dim": 8, "rope_axes_dim": (4, 6, 6),
         "target_size": 8, "task_type": "t2v"},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5),
                 "encoder_hidden_states_2": text(12, 3), "encoder_attention_mask_2": ones(1, 3),
                 "image_embeds": torch.zeros(1, 2, 8)},
    ),
    "HunyuanVideoFramepackTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 3,
         "num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 8, "rope_axes_dim": (4, 6, 6),
         "has_image_proj": True, "image_proj_dim": 8, "has_clean_x_embedder": True},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5),
                 "pooled_projections": noise(1, 8), "guidance": torch.tensor([3.0]), "image_embeds": noise(1, 3, 8),
                 "indices_latents": torch.arange(2), "latents_clean": noise(1, 4, 1, 4, 4),
                 "indices_latents_clean": torch.arange(1), "latents_history_2x": noise(1, 4, 2, 4, 4),
                 "indices_latents_history_2x": torch.arange(2), "latents_history_4x": noise(1, 4, 4, 4, 4),
                 "indices_latents_history_4x": torch.arange(4)},
    ),
    "HunyuanImageTransformer2DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 3,
         "num_refiner_layers": 1, "text_embed_dim": 12, "rope_axes_dim": (8, 8)},
        ("hidden_states", (1, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5)},
    ),
    "Ideogram4Transformer2DModel": Case(
        {"in_channels": 8, "num_layers": 3, "attention_head_dim": 16, "num_attention_heads": 2,
         "intermediate_size": 48, "adaln_dim": 8, "llm_features_dim": 12, "mrope_section": (4, 2, 2)},
        ("hidden_states", (1, 9, 8)),
        lambda: {"encoder_hidden_states": noise(1, 9, 12), "position_ids": ids(1, 9, 3), "segment_ids": ones(1, 9),
                 "indicator": torch.tensor([[0] * 5 + [2] * 4])},
        clock=unit,
    ),
    "JoyImageEditTransformer3DModel": Case(
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 12, "num_layers": 3,
         "rope_dim_list": [4, 6, 6]},
        ("hidden_states", (1, 2, 4, 1, 4, 4)),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "JoyImageEditPlusTransformer3DModel": Case(
        {"in_channels": 4, "hidden_size": 32, "num_attention_heads": 2, "text_dim": 12, "num_layers": 3,
         "rope_dim_list": [4, 6, 6]},
        ("hidden_states", (1, 8, 4, 1, 2, 2)),
        lambda: {"encoder_hidden_states": text(12), "encoder_hidden_states_mask": ones(1, 5),
                 "shape_list": [[(1, 2, 2), (1, 2, 2)]]},
    ),
    "Kandinsky5Transformer3DModel": Case(
        {"in_text_dim": 12, "in_text_dim2": 8, "time_dim": 8, "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1,
         "num_visual_blocks": 3, "axes_dims": (4, 6, 6)},
        ("hidden_states", (1, 2, 4, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "pooled_projections": noise(1, 8),
                 "visual_rope_pos": [torch.arange(2), torch.arange(2), torch.arange(2)],
                 "text_rope_pos": torch.arange(5)},
    ),
    "Kandinsky6Transformer3DModel": Case(
        {"in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 8, "time_dim": 8,
         "model_dim": 32, "ff_dim": 48, "num_text_blocks": 1, "num_visual_blocks": 3, "axes_dims": (4, 6, 6),
         "in_audio_dim": 8, "out_audio_dim": 8},
        ("hidden_states", (1, 2, 4, 4, 9)),
        lambda: {"encoder_hidden_states": text(12), "pooled_projections": noise(1, 8),
                 "audio_hidden_states": noise(1, 3, 8)},
    ),
    "Kandinsky6SRTransformer3DModel": Case(
        {"in_visual_dim": 4, "out_visual_dim": 4, "time_dim": 8, "model_dim": 32, "ff_dim": 48,
         "num_visual_blocks": 3, "axes_dims": (4, 6, 6), "nabla_window": (3, 3, 3)},
        ("hidden_states", (1, 2, 8, 8, 9)),
    ),
    "Krea2Transformer2DModel": Case(
        {**HEADS, "in_channels": 8, "num_layers": 9, "num_key_value_heads": 1, "intermediate_size": 48,
         "timestep_embed_dim": 16, "text_hidden_dim": 32, "num_text_layers": 3, "text_num_attention_heads": 2,
         "text_num_key_value_heads": 2, "text_intermediate_size": 48, "num_layerwise_text_blocks": 1,
         "num_refiner_text_blocks": 1, "axes_dims_rope": (4, 6, 6)},
        ("hidden_states", (1, 4, 8)),
        lambda: {"encoder_hidden_states": noise(1, 5, 3, 32), "position_ids": ids(9, 3),
                 "encoder_attention_mask": None},
        clock=unit,
    ),
    "LongCatAudioDiTTransformer": Case(
        {"dit_dim": 32, "dit_depth": 3, "dit_heads": 2, "dit_text_dim": 12, "latent_dim": 8},
        ("hidden_states", (1, 6, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5) > 0,
                 "attention_mask": ones(1, 6) > 0, "latent_cond": noise(1, 6, 8)},
        clock=unit,
    ),
    "LongCatImageTransformer2DModel": Case(
        {**FLUX, "pooled_projection_dim": 8}, ("hidden_states", (1, 4, 16)), flux(), clock=unit
    ),
    "LTXVideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "num_layers": 3,
         "caption_channels": 12},
        ("hidden_states", (1, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5), "num_frames": 2,
                 "height": 2, "width": 2},
    ),
    "LTX2VideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "audio_in_channels": 8,
         "audio_out_channels": 8, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
         "audio_cross_attention_dim": 16, "num_layers": 3, "caption_channels": 12},
        ("hidden_states", (1, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "audio_encoder_hidden_states": text(12),
                 "audio_hidden_states": noise(1, 3, 8), "encoder_attention_mask": ones(1, 5),
                 "audio_encoder_attention_mask": ones(1, 5), "num_frames": 2, "height": 2, "width": 2,
                 "audio_num_frames": 3, "fps": 8.0},
    ),
    "Lumina2Transformer2DModel": Case(
        {"sample_size": 8, "in_channels": 4, "hidden_size": 32, "num_layers": 8, "num_refiner_layers": 1,
         "num_attention_heads": 2, "num_kv_heads": 1, "multiple_of": 16, "axes_dim_rope": (4, 6, 6),
         "axes_lens": (32, 16, 16), "cap_feat_dim": 12},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5) > 0},
        clock=unit,
    ),
    "MiniMaxH3Transformer3DModel": Case(
        {**HEADS, "hidden_size": 32, "num_layers": 3, "num_refiner_layers": 1, "ffn_dim": 48, "in_channels": 4,
         "audio_in_channels": 8, "text_dim": 12, "freq_dim": 16, "time_embed_hidden_dim": 16, "time_embed_dim": 8,
         "rope_freq_dim": 2},
        ("hidden_states", (1, 4, 16)),
        lambda: {"audio_hidden_states": noise(1, 3, 8), "encoder_hidden_states": text(12),
                 "timestep_indices": torch.zeros(12, dtype=torch.long),
                 "token_tags": torch.tensor([1] * 5 + [0] * 4 + [2] * 3), "position_ids": ids(12, 3),
                 "video_indices": torch.arange(5, 9), "audio_indices": torch.arange(9, 12),
                 "text_indices": torch.arange(5)},
        clock=unit,
    ),
    "MiniMaxMusic3Transformer1DModel": Case(
        {**HEADS, "in_channels": 8, "condition_dim": 12, "num_layers": 3, "ff_inner_dim": 48, "rotary_dim": 8,
         "fourier_embedding_dim": 16},
        ("hidden_states", (1, 8, 6)),
        lambda: {"encoder_hidden_states": text(12, 6)},
        clock=unit,
    ),
    "MochiTransformer3DModel": Case(
        {**HEADS, "num_layers": 3, "pooled_projection_dim": 16, "in_channels": 4, "text_embed_dim": 16,
         "time_embed_dim": 4, "max_sequence_length": 5},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(16), "encoder_attention_mask": ones(1, 5) > 0},
    ),
    "MotifVideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 3, "text_embed_dim": 12,
         "rope_axes_dim": (4, 6, 6)},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5)},
    ),
    "NucleusMoEImageTransformer2DModel": Case(
        {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 5, "num_key_value_heads": 1,
         "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6), "num_experts": 2, "moe_intermediate_dim": 16,
         "capacity_factors": 2.0},
        ("hidden_states", (1, 4, 16)),
        lambda: {"encoder_hidden_states": text(12), "encoder_hidden_states_mask": ones(1, 5) > 0,
                 "img_shapes": [(1, 2, 2)]},
        clock=unit,
    ),
    "OmniGenTransformer2DModel": Case(
        {"hidden_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1, "intermediate_size": 48,
         "num_layers": 3, "pad_token_id": 0, "vocab_size": 9, "pos_embed_max_size": 8, "time_step_dim": 16,
         "rope_scaling": {"long_factor": [1.0] * 8, "short_factor": [1.0] * 8}},
        ("hidden_states", (1, 4, 4, 4)),
        lambda: {"input_ids": ids(1, 5), "input_img_latents": [], "input_image_sizes": {},
                 "attention_mask": ones(1, 10, 10), "position_ids": torch.arange(10)[None]},
        clock=unit,
    ),
    "OvisImageTransformer2DModel": Case(
        {**FLUX, "out_channels": 16}, ("hidden_states", (1, 4, 16)), flux(), clock=unit
    ),
    "PRXTransformer2DModel": Case(
        {"in_channels": 4, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2, "depth": 3, "axes_dim": [8, 8]},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "attention_mask": ones(1, 5) > 0},
        clock=unit,
    ),
    "QwenImageTransformer2DModel": Case(
        {**HEADS, "in_channels": 16, "out_channels": 4, "num_layers": 3, "joint_attention_dim": 12,
         "axes_dims_rope": (4, 6, 6)},
        ("hidden_states", (1, 4, 16)),
        lambda: {"encoder_hidden_states": text(12), "encoder_hidden_states_mask": ones(1, 5),
                 "img_shapes": [[(1, 2, 2)]]},
        clock=unit,
    ),
    "QwenImage21Transformer2DModel": Case(
        {**HEADS, "in_channels": 8, "out_channels": 8, "num_layers": 3, "context_in_dim": 12,
         "axes_dims_rope": (4, 6, 6)},
        ("hidden_states", (1, 4, 8)),
        lambda: {"encoder_hidden_states": text(12), "img_shapes": [[(1, 2, 2)]],
                 "img_mask": torch.tensor([[False] * 5 + [True]])},
        clock=unit,
    ),
    "RFD4ProteinaTransformer": Case(
        {"nlayers": 4, "token_dim": 32, "nheads": 2, "dim_cond": 16, "pair_repr_dim": 8, "latent_dim": 4,
         "token_type_emb_dim": 4, "cath_emb_dim": 4, "t_emb_dim": 8, "seq_sep_dim": 8, "xt_pair_dist_dim": 6,
         "feats_seq": ("xt_bb_ca", "xt_local_latents", "token_type"),
         "feats_cond_seq": ("time_emb_bb_ca", "time_emb_local_latents"), "feats_pair_repr": ("xt_bb_ca_pair_dists",),
         "feats_pair_cond": ("time_emb_bb_ca",), "tri_mult_c": 8, "num_sequence_classes": 5},
        ("bb_ca", (1, 6, 3)),
        lambda: {"local_latents": noise(1, 6, 4), "local_latents_time": torch.tensor([0.5]),
                 "padding_mask": ones(1, 6) > 0, "token_type": ids(1, 6, high=7),
                 "conditioning": {"is_in_context_conditioning": ones(1, 6) < 0,
                                  "supports_local_latent": ones(1, 6) > 0}},
        time="bb_ca_time",
        clock=lambda t: torch.tensor([1 - t]),
    ),
    "SanaVideoTransformer3DModel": Case(
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "num_cross_attention_heads": 2,
         "cross_attention_head_dim": 16, "cross_attention_dim": 32, "caption_channels": 12, "sample_size": 4},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12)},
    ),
    "SanaWMTransformer3DModel": Case(
        {"in_channels": 8, "num_layers": 4, "hidden_size": 32, "num_attention_heads": 2, "softmax_every_n": 2,
         "linear_head_dim": 16, "chunk_plucker_channels": 4, "chunk_plucker_post_attn_blocks": 2, "image_size": 64,
         "caption_channels": 12, "mixed_precision": "fp32"},
        ("hidden_states", (1, 8, 3, 4, 4)),
        lambda: {"encoder_hidden_states": noise(1, 1, 5, 12), "encoder_attention_mask": ones(1, 5)},
        clock=lambda t: torch.full((1, 1, 3), 1000 * t),
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Case(
        {**HEADS, "in_channels": 8, "out_channels": 8, "cross_attention_dim": 32, "audio_in_channels": 8,
         "audio_out_channels": 8, "audio_num_attention_heads": 2, "audio_attention_head_dim": 8,
         "audio_cross_attention_dim": 16, "num_layers": 3, "caption_channels": 12},
        ("hidden_states", (1, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5),
                 "video_rotary_emb": (noise(1, 8, 32), noise(1, 8, 32, seed=1))},
        clock=lambda t: torch.full((1, 8), 1000 * t),
    ),
    "SD3Transformer2DModel": Case(
        {**HEADS, "sample_size": 8, "in_channels": 4, "num_layers": 3, "joint_attention_dim": 12,
         "caption_projection_dim": 32, "pooled_projection_dim": 8, "out_channels": 4, "pos_embed_max_size": 8,
         "dual_attention_layers": (0,)},
        ("hidden_states", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "pooled_projections": noise(1, 8)},
    ),
    "SkyReelsV2Transformer3DModel": Case(WAN, ("hidden_states", VIDEO), lambda: {"encoder_hidden_states": text(12)}),
    "StableAudio3DiTModel": Case(
        {"io_channels": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "cond_token_dim": 12, "global_cond_dim": 8,
         "local_add_cond_dim": 9, "timestep_features_dim": 16, "num_memory_tokens": 2},
        ("hidden_states", (1, 8, 6)),
        lambda: {"encoder_hidden_states": text(12), "global_hidden_states": noise(1, 8),
                 "local_add_cond": noise(1, 9, 6)},
        clock=unit,
    ),
    "WanTransformer3DModel": Case(WAN, ("hidden_states", VIDEO), lambda: {"encoder_hidden_states": text(12)}),
    "WanAnimateTransformer3DModel": Case(
        {**WAN, "in_channels": 12, "latent_channels": 4, "num_layers": 9, "image_dim": 8, "motion_encoder_size": 16,
         "motion_style_dim": 8, "motion_dim": 4, "motion_encoder_dim": 8, "face_encoder_hidden_dim": 8,
         "face_encoder_num_heads": 2, "inject_face_latents_blocks": 3,
         "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8}},
        ("hidden_states", (1, 12, 3, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "encoder_hidden_states_image": noise(1, 3, 8),
                 "pose_hidden_states": noise(1, 4, 2, 4, 4), "face_pixel_values": noise(1, 3, 5, 16, 16)},
    ),
    "WanAnimate2Transformer3DModel": Case(
        {"text_len": 5, "in_dim": 8, "dim": 24, "ffn_dim": 32, "freq_dim": 16, "text_dim": 12, "out_dim": 4,
         "num_heads": 2, "num_layers": 3, "use_img_emb": False},
        ("hidden_states", (4, 2, 4, 4)),
        lambda: {"encoder_hidden_states": [noise(5, 12)], "condition_latents": [noise(4, 2, 4, 4)],
                 "kv_cache": WanAnimate2KVCache(3), "kv_cache_mode": "extract", "seq_len": 8,
                 "offset_grid_sizes": torch.tensor([[2, 2, 2]])},
        wrap=lambda x: [x],
    ),
    "WanVACETransformer3DModel": Case(
        {**WAN, "num_layers": 4, "vace_layers": [0, 2], "vace_in_channels": 6},
        ("hidden_states", VIDEO),
        lambda: {"encoder_hidden_states": text(12), "control_hidden_states": noise(1, 6, 2, 4, 4),
                 "control_hidden_states_scale": torch.ones(2)},
    ),
    "ZImageTransformer2DModel": Case(
        {"in_channels": 4, "dim": 32, "n_layers": 8, "n_refiner_layers": 1, "n_heads": 2, "n_kv_heads": 2,
         "cap_feat_dim": 12, "axes_dims": [4, 6, 6], "axes_lens": [64, 32, 32]},
        ("x", (4, 1, 8, 8)),
        lambda: {"cap_feats": [noise(5, 12)]},
        time="t",
        clock=unit,
        wrap=lambda x: [x],
    ),
    "UNet1DModel": Case(
        {"sample_size": 64, "in_channels": 2, "out_channels": 2, "block_out_channels": (32, 32, 64),
         "layers_per_block": 1, "extra_in_channels": 64, "norm_num_groups": 4},
        ("sample", (1, 2, 64)),
        clock=unit,
    ),
    "UNet2DModel": Case(
        {"sample_size": 8, "block_out_channels": (8, 16, 24), "layers_per_block": 1, "norm_num_groups": 4,
         "attention_head_dim": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")},
        ("sample", (1, 3, 8, 8)),
    ),
    "UNet2DConditionModel": Case(
        {**UNET, "sample_size": 8, "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
         "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")},
        ("sample", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(16)},
    ),
    "UNet3DConditionModel": Case(
        {**UNET, "block_out_channels": (8, 32), "sample_size": 8, "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        ("sample", (1, 4, 2, 8, 8)),
        lambda: {"encoder_hidden_states": text(16)},
    ),
    "DreamLiteUNetModel": Case(
        {**UNET, "sample_size": 8, "attention_head_dim": 4, "ff_mult": 2},
        ("sample", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(16)},
    ),
    "I2VGenXLUNet": Case(
        {**UNET, "block_out_channels": (8, 32), "sample_size": 8, "attention_head_dim": 4,
         "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
         "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D")},
        ("sample", (1, 4, 2, 8, 8)),
        lambda: {"encoder_hidden_states": text(16), "fps": torch.tensor([8]), "image_latents": noise(1, 4, 2, 8, 8),
                 "image_embeddings": noise(1, 16)},
    ),
    "Kandinsky3UNet": Case(
        {"time_embedding_dim": 8, "groups": 2, "attention_head_dim": 4, "layers_per_block": 2,
         "block_out_channels": (8, 16, 16), "cross_attention_dim": 12, "encoder_hid_dim": 12},
        ("sample", (1, 4, 8, 8)),
        lambda: {"encoder_hidden_states": text(12), "encoder_attention_mask": ones(1, 5)},
    ),
    "UNetMotionModel": Case(
        {**UNET, "block_out_channels": (8, 16), "sample_size": 8, "num_attention_heads": 2,
         "motion_num_attention_heads": 2, "motion_max_seq_length": 4,
         "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
         "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion")},
        ("sample", (1, 4, 2, 8, 8)),
        lambda: {"encoder_hidden_states": text(16, batch=2)},
    ),
    "UNetSpatioTemporalConditionModel": Case(
        {"block_out_channels": (32, 64), "layers_per_block": 1, "cross_attention_dim": 16, "sample_size": 8,
         "num_attention_heads": (2, 2), "num_frames": 2, "addition_time_embed_dim": 8,
         "projection_class_embeddings_input_dim": 24, "in_channels": 8,
         "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
         "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal")},
        ("sample", (1, 2, 8, 8, 8)),
        lambda: {"encoder_hidden_states": text(16, 1), "added_time_ids": noise(1, 3)},
    ),
    "StableCascadeUNet": Case(
        {"in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 12,
         "block_out_channels": (8, 16), "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 4),
         "up_num_layers_per_block": (4, 1), "clip_text_pooled_in_channels": 8, "clip_seq": 2},
        ("sample", (1, 4, 8, 8)),
        lambda: {"clip_text_pooled": noise(1, 1, 8)},
        time="timestep_ratio",
        clock=unit,
    ),
    "UVit2DModel": Case(
        {"hidden_size": 32, "cond_embed_dim": 8, "micro_cond_encode_dim": 4, "micro_cond_embed_dim": 20,
         "encoder_hidden_size": 12, "vocab_size": 12, "codebook_size": 9, "in_channels": 16,
         "block_out_channels": 16, "num_res_blocks": 1, "block_num_heads": 2, "num_hidden_layers": 3,
         "num_attention_heads": 2, "intermediate_size": 48, "sample_size": 4},
        ("input_ids", (1, 4, 4)),
        lambda: {"encoder_hidden_states": text(12), "pooled_text_emb": noise(1, 8), "micro_conds": noise(1, 5)},
        time="",
        wrap=lambda x: (3 * x).long().clamp(-4, 4) + 4,
    ),
}
# fmt: on

NO_DENOISERS = {
    "DreamLiteTransformer2DModel": "a part of DreamLiteUNetModel: the attention within its blocks",
    "MiniMaxMusic3RVQDepthDecoder": "a language model over audio codes, called for each code and not for each step",
    "MotionAdapter": "weights that UNetMotionModel loads; it cannot be called",
    "TransformerTemporalModel": "a part of UNet3DConditionModel and its relatives: attention over time in their blocks",
}
