"""Untrained parts of the bundled `scenes-qwen` pipeline: the classes of Qwen-Image, much smaller."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from hasten.zoo.scenes import VOCABULARIES, caption, sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKLQwenImage, FlowMatchEulerDiscreteScheduler, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

# QwenImagePipeline wraps every prompt so and drops the first 34 tokens of the result.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREFIX_TOKENS, SUFFIX_TOKENS = 34, 5
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
TEXT_WIDTH = 128
LATENT_CHANNELS = 4
NATIVE_SIZE = 128


def build_tokenizer(vocabulary_size: int = 640) -> Qwen2Tokenizer:
    """Train a byte-level BPE on captions and on the pipeline's template, so that its prefix takes exactly 34 tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, models, pre_tokenizers, trainers
    from transformers import Qwen2Tokenizer
    from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

    rng = random.Random(0)
    corpus = [caption(sample_scene(rng, VOCABULARIES["full"]), rng) for _ in range(4000)]
    plain = TEMPLATE
    for token in SPECIAL_TOKENS:
        plain = plain.replace(token, " ")
    corpus += [plain.replace("{}", "")] * 400 + ["system\n", "user\n", "assistant\n", "a picture of the image"] * 400
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.train_from_iterator(
        corpus,
        trainers.BpeTrainer(
            vocab_size=vocabulary_size,
            min_frequency=8,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            special_tokens=["<|endoftext|>"],
            show_progress=False,
        ),
    )
    import json

    trained = json.loads(tokenizer.to_str())["model"]
    qwen = Qwen2Tokenizer(vocab=trained["vocab"], merges=[tuple(pair) for pair in trained["merges"]])
    qwen.add_tokens(
        [AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS[1:]], special_tokens=True
    )
    prefix = qwen(TEMPLATE.split("{}")[0]).input_ids
    if len(prefix) != PREFIX_TOKENS:
        raise RuntimeError(
            f"the prompt template's prefix takes {len(prefix)} tokens, QwenImagePipeline drops {PREFIX_TOKENS}"
        )
    return qwen


def build_text_encoder(tokenizer: Qwen2Tokenizer, layers: int = 4) -> Qwen2_5_VLForConditionalGeneration:
    """A causal language model of Qwen2.5-VL's class, with a vision tower of one idle layer."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": (len(tokenizer) + 15) // 16 * 16,
            "hidden_size": TEXT_WIDTH,
            "intermediate_size": 3 * TEXT_WIDTH,
            "num_hidden_layers": layers,
            "num_attention_heads": TEXT_WIDTH // 32,
            "num_key_value_heads": TEXT_WIDTH // 32,
            "max_position_embeddings": 2048,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 6, 6]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_heads": 1,
            "out_hidden_size": TEXT_WIDTH,
            "fullatt_block_indexes": [0],
        },
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        tie_word_embeddings=True,
    )
    return Qwen2_5_VLForConditionalGeneration(config)


def build_vae() -> AutoencoderKLQwenImage:
    """A video autoencoder used for single frames: 4× smaller, 4 channels, so that 128 pixels make 256 image tokens."""
    from diffusers import AutoencoderKLQwenImage

    return AutoencoderKLQwenImage(
        base_dim=16,
        z_dim=LATENT_CHANNELS,
        dim_mult=[1, 2, 4],
        num_res_blocks=1,
        temperal_downsample=[False, False],
        latents_mean=[0.0] * LATENT_CHANNELS,
        latents_std=[1.0] * LATENT_CHANNELS,
    )


def build_transformer(width: int = 192, layers: int = 8) -> QwenImageTransformer2DModel:
    """The denoiser: double-stream blocks whose modulation and output start at zero (adaLN-zero)."""
    import torch
    from diffusers import QwenImageTransformer2DModel

    model = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        num_layers=layers,
        attention_head_dim=64,
        num_attention_heads=width // 64,
        joint_attention_dim=TEXT_WIDTH,
        axes_dims_rope=(16, 24, 24),
    )
    blocks = [linear for block in model.transformer_blocks for linear in (block.img_mod[1], block.txt_mod[1])]
    for linear in (*blocks, model.norm_out.linear, model.proj_out):
        torch.nn.init.zeros_(linear.weight)
        torch.nn.init.zeros_(linear.bias)
    return model


def build_scheduler() -> FlowMatchEulerDiscreteScheduler:
    """Flow matching with a fixed shift: in plain scenes the layout is decided at high noise."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)
