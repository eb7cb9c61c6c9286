"""Tiny vision networks with random weights, saved as folders and files are."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode


def save_clip(folder: Path, max_tokens: int = 16, size: int = 16) -> CLIPModel:
    """A CLIP of a few thousand parameters and one token per byte."""
    alphabet = list(bytes_to_unicode().values())
    letters = [*alphabet, *(f"{text}</w>" for text in alphabet), "<|startoftext|>", "<|endoftext|>"]
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = CLIPConfig(
        text_config=shape
        | {
            "vocab_size": len(letters),
            "max_position_embeddings": max_tokens,
            "bos_token_id": len(letters) - 2,
            "eos_token_id": len(letters) - 1,
            "pad_token_id": len(letters) - 1,
        },
        vision_config=shape | {"image_size": size, "patch_size": 8},
        projection_dim=8,
    )
    torch.manual_seed(0)
    model = CLIPModel(config).eval()
    with torch.no_grad():  # their initial weights are so small that every text looks alike
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    model.save_pretrained(folder)
    vocabulary = {text: i for i, text in enumerate(letters)}
    CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=max_tokens).save_pretrained(folder)
    return model


def save_alexnet(folder: Path) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Weights of AlexNet's shape and LPIPS' linear ones, narrow versions of both."""
    generator = torch.Generator().manual_seed(0)
    shapes = {0: (6, 3, 11), 3: (6, 6, 5), 6: (6, 6, 3), 8: (6, 6, 3), 10: (6, 6, 3)}
    backbone: dict[str, torch.Tensor] = {}
    for index, (out, into, side) in shapes.items():
        backbone[f"features.{index}.weight"] = torch.randn(out, into, side, side, generator=generator) / side
        backbone[f"features.{index}.bias"] = torch.rand(out, generator=generator)
    linear = {f"lin{i}.model.1.weight": torch.rand(1, 6, 1, 1, generator=generator) for i in range(5)}
    torch.save(backbone, folder / "alexnet-owt-tiny.pth")
    torch.save(linear, folder / "alex.pth")
    return backbone, linear
