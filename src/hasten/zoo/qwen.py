"""What is particular to `scenes-qwen`: the classes of Qwen-Image, much smaller, and how they are trained."""

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import nn

from hasten.zoo.family import NATIVE_SIZE, TEXT_WIDTH, Denoise, Family, Noised, TrainingVAE
from hasten.zoo.scenes import VOCABULARIES, caption, sample_scene

if TYPE_CHECKING:
    from diffusers import (
        AutoencoderKLQwenImage,
        FlowMatchEulerDiscreteScheduler,
        QwenImagePipeline,
        QwenImageTransformer2DModel,
    )
    from transformers import Qwen2_5_VLForConditionalGeneration, Qwen2Tokenizer

    from hasten.zoo.qwen_denoiser import TrainingQwen

# QwenImagePipeline wraps every prompt so and drops the first 34 tokens of the result.
TEMPLATE = (
    "<|im_start|>system\nDescribe the image by detailing the color, shape, size, texture, quantity, text, spatial "
    "relationships of the objects and background:<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
)
PREFIX_TOKENS, SUFFIX_TOKENS = 34, 5
SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>")
LATENT_CHANNELS = 4
MAX_TEXT_TOKENS = 32  # of a caption with the template's suffix


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


def tokenize(
    tokenizer: Qwen2Tokenizer, prompts: list[str], length: int = MAX_TEXT_TOKENS
) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, int64 [batch, 34 + length], and the mask of valid text tokens, bool [batch, length]; padded right."""
    pad = tokenizer.pad_token_id
    rows = [tokenizer(TEMPLATE.format(prompt)).input_ids for prompt in prompts]
    too_long = max(len(row) for row in rows) - PREFIX_TOKENS
    if too_long > length:
        raise ValueError(f"a caption takes {too_long} tokens, at most {length} fit")
    ids = torch.tensor([row + [pad] * (PREFIX_TOKENS + length - len(row)) for row in rows])
    lengths = torch.tensor([len(row) - PREFIX_TOKENS for row in rows])
    return ids, torch.arange(length) < lengths[:, None]


def encode(encoder: Qwen2_5_VLForConditionalGeneration, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states that QwenImagePipeline hands to its denoiser: [batch, length, TEXT_WIDTH].

    The encoder is causal, so padding on the right needs no mask.
    """
    return encoder.model.language_model(input_ids=ids, use_cache=False).last_hidden_state[:, PREFIX_TOKENS:]


class FlatVAE(TrainingVAE):
    """An AutoencoderKLQwenImage for single frames, its convolutions as matrices of 2-D kernels."""

    vae: AutoencoderKLQwenImage

    def __init__(self, vae: AutoencoderKLQwenImage):
        super().__init__()
        object.__setattr__(self, "vae", vae)  # not registered: its 3-D kernels are not trained
        self.kernels = nn.ParameterList()
        self.others = nn.ParameterList()
        for module in vae.modules():
            if isinstance(module, nn.Conv3d):
                kernel = nn.Parameter(module.weight.detach()[:, :, -1].flatten(1).clone())
                self.kernels.append(kernel)
                setattr(module, "forward", _flat_forward(module, kernel))  # noqa: B010 (on the instance, taken back below)
                self.others.append(module.bias)
            else:
                self.others.extend(module.parameters(recurse=False))

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, H, W] in −1…1 → mean and log-variance of the latents, each [B, z, H/4, W/4]."""
        vae = self.vae
        moments = vae.quant_conv(vae.encoder(pixels[:, :, None]))[:, :, 0]
        mean, log_variance = moments.chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents [B, z, h, w] → pixels [B, 3, 4h, 4w], not clamped."""
        vae = self.vae
        return vae.decoder(vae.post_quant_conv(latents[:, :, None]))[:, :, 0]

    @torch.no_grad()
    def write_back(self) -> AutoencoderKLQwenImage:
        """Put the trained slices into the 3-D kernels, zero the rest, and give the ordinary module back."""
        vae = self.vae
        convolutions = [module for module in vae.modules() if isinstance(module, nn.Conv3d)]
        for module, kernel in zip(convolutions, self.kernels, strict=True):
            module.weight.zero_()
            module.weight[:, :, -1] = kernel.view_as(module.weight[:, :, -1])
            del module.forward
        return vae


def _flat_forward(module: nn.Conv3d, kernel: nn.Parameter) -> Any:
    shape = module.weight.shape[:2] + module.weight.shape[3:]
    left, _, top, _, _, _ = module._padding  # type: ignore[misc]  # QwenImageCausalConv3d keeps its padding here
    padding, stride = (top, left), module.stride[1:]

    def forward(x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        return F.conv2d(x[:, :, 0], kernel.view(shape), module.bias, stride, padding)[:, :, None]

    return forward


class Qwen(Family):
    """`scenes-qwen`."""

    native: ClassVar[dict[str, Any]] = {
        "height": NATIVE_SIZE,
        "width": NATIVE_SIZE,
        "num_inference_steps": 50,
        "true_cfg_scale": 3.0,
        "negative_prompt": " ",
    }
    denoiser_folder = "transformer"
    patch = 2

    def build_tokenizer(self) -> Qwen2Tokenizer:
        return build_tokenizer()

    def build_text_encoder(self, tokenizer: Any) -> Qwen2_5_VLForConditionalGeneration:
        return build_text_encoder(tokenizer)

    def language(self, encoder: Any) -> nn.Module:
        language: nn.Module = encoder.model.language_model
        return language

    def tokenize(self, tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return tokenize(tokenizer, prompts)

    def encode(self, encoder: Any, ids: torch.Tensor) -> torch.Tensor:
        return encode(encoder, ids)

    def build_vae(self) -> AutoencoderKLQwenImage:
        return build_vae()

    def training_vae(self, vae: Any) -> FlatVAE:
        return FlatVAE(vae)

    def finish_vae(self, flat: TrainingVAE, mean: torch.Tensor, std: torch.Tensor) -> AutoencoderKLQwenImage:
        vae: AutoencoderKLQwenImage = flat.write_back()
        vae.register_to_config(latents_mean=mean.tolist(), latents_std=std.tolist())
        return vae

    def latent_scale(self, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
        mean, std = (
            torch.tensor(values)[:, None, None] for values in (vae.config.latents_mean, vae.config.latents_std)
        )
        return mean, std

    def build_denoiser(self, width: int | None = None, layers: int | None = None) -> QwenImageTransformer2DModel:
        return build_transformer(width or 192, layers or 8)

    def training_denoiser(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> TrainingQwen:
        from hasten.zoo.qwen_denoiser import TrainingQwen

        return TrainingQwen(model, dtype, compiled=False)

    def add_noise(self, x: torch.Tensor, faint: bool = False) -> Noised:
        """Flow matching: the target is noise − x. Halving the side halves the noise that hides the same thing."""
        mean = -0.5 if faint else 0.8
        if x.shape[1] < (NATIVE_SIZE // 8) ** 2:
            mean -= math.log(2)
        sigma = torch.sigmoid(mean + 1.1 * torch.randn(len(x), device=x.device))
        noise, share = torch.randn_like(x), sigma[:, None, None]
        return Noised(torch.lerp(x, noise, share), sigma, noise - x, sigma > 0.9, torch.ones_like(share), share)

    def sample(self, denoise: Denoise, noise: torch.Tensor, steps: int) -> torch.Tensor:
        from hasten.zoo.qwen_denoiser import sample_flow

        return sample_flow(denoise, noise, steps)

    def load_tokenizer(self, folder: Path) -> Qwen2Tokenizer:
        from transformers import Qwen2Tokenizer

        return Qwen2Tokenizer.from_pretrained(folder)

    def load_parts(self, folder: Path) -> tuple[Any, Any, Any]:
        from diffusers import AutoencoderKLQwenImage
        from transformers import Qwen2_5_VLForConditionalGeneration

        return (
            self.load_tokenizer(folder / "tokenizer"),
            Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "text_encoder"),
            AutoencoderKLQwenImage.from_pretrained(folder / "vae"),
        )

    def pipeline(self, tokenizer: Any, encoder: Any, vae: Any, denoiser: Any) -> QwenImagePipeline:
        from diffusers import QwenImagePipeline

        return QwenImagePipeline(
            scheduler=build_scheduler(), vae=vae, text_encoder=encoder, tokenizer=tokenizer, transformer=denoiser
        )
