"""Small pipelines that take prompts: `tiny` ones with tokenizers and text encoders built from configs."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from diffusers import QwenImagePipeline, StableDiffusionPipeline
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2Tokenizer,
)
from transformers.convert_slow_tokenizer import bytes_to_unicode

import tiny

NATIVE = {"width": 32, "height": 32, "true_cfg_scale": 3.0, "num_inference_steps": 10}
_QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]


def qwen(**more: Any) -> QwenImagePipeline:
    """A Qwen-Image pipeline of a few thousand parameters, one token per byte."""
    alphabet = list(bytes_to_unicode().values())
    tokenizer = Qwen2Tokenizer(vocab={text: i for i, text in enumerate([*alphabet, "<|endoftext|>"])}, merges=[])
    tokenizer.add_tokens(_QWEN_SPECIAL[1:], special_tokens=True)
    ids = {token: tokenizer.convert_tokens_to_ids(token) for token in _QWEN_SPECIAL}
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": 264,
            "hidden_size": 24,
            "intermediate_size": 24,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 2, 2]},
            "bos_token_id": ids["<|endoftext|>"],
            "eos_token_id": ids["<|im_end|>"],
            "pad_token_id": ids["<|endoftext|>"],
        },
        vision_config={"depth": 1, "hidden_size": 8, "intermediate_size": 8, "num_heads": 1, "out_hidden_size": 24},
        image_token_id=ids["<|image_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    pipe = tiny.qwen(**more)
    pipe = QwenImagePipeline(
        **pipe.components
        | {
            # A copy, since `tiny` shares its own; scaled so that pixels lie between 0 and 1.
            "vae": tiny.random_(copy.deepcopy(pipe.vae), 2, scale=0.7),
            "tokenizer": tokenizer,
            "text_encoder": tiny.random_(Qwen2_5_VLForConditionalGeneration(config), 5),
        }
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def stable_diffusion() -> StableDiffusionPipeline:
    """A Stable Diffusion pipeline of a few thousand parameters, one token per byte."""
    alphabet = list(bytes_to_unicode().values())
    letters = [*alphabet, *(f"{text}</w>" for text in alphabet), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={text: i for i, text in enumerate(letters)}, merges=[], model_max_length=77)
    config = CLIPTextConfig(
        vocab_size=len(letters),
        hidden_size=24,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=len(letters) - 2,
        eos_token_id=len(letters) - 1,
        pad_token_id=len(letters) - 1,
    )
    pipe = StableDiffusionPipeline(
        **tiny.stable_diffusion().components
        | {"tokenizer": tokenizer, "text_encoder": tiny.random_(CLIPTextModel(config), 6)},
        requires_safety_checker=False,
    )
    pipe.set_progress_bar_config(disable=True)
    return pipe


def embedded(pipe: Any, call: dict[str, Any]) -> Any:
    """Let a pipeline without text encoders take prompts: its `encode_prompt` answers with fixed embeddings.

    Args:
        call: `tiny`'s arguments for this pipeline.
    """
    embeddings = {name: value for name, value in call.items() if "embeds" in name}
    parts = ("prompt_embeds", "pooled_prompt_embeds", "negative_prompt_embeds")
    answer = [embeddings[name] for name in parts if name in embeddings]
    if "pooled_prompt_embeds" in embeddings:
        answer.append(torch.zeros(tiny.TEXT, 3))  # Flux: text ids
    pipe.encode_prompt = lambda *args, **kwargs: tuple(answer)
    return pipe


def save(pipe: Any, folder: Path, native: dict[str, Any] | None = None) -> Path:
    """Save as an ordinary diffusers folder, with native settings beside it."""
    pipe.save_pretrained(folder)
    if native is not None:
        (folder / "hasten.json").write_text(json.dumps(native))
    return folder
