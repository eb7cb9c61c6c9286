"""What is particular to `scenes-sd`: the classes of Stable Diffusion, much smaller, and how they are trained."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from hasten.zoo.family import NATIVE_SIZE, TEXT_WIDTH, Denoise, Family, Noised, TrainingVAE
from hasten.zoo.scenes import VOCABULARIES, caption, sample_scene

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTokenizer

    from hasten.zoo.sd_denoiser import TrainingUNet

TEXT_TOKENS = 32  # the longest caption takes 30
LATENT_CHANNELS = 8
START, END = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer(merges: int = 300) -> CLIPTokenizer:
    """Train CLIP's BPE, whose words end in `</w>`, on captions; every byte is a token with and without that end."""
    import json

    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    rng = random.Random(0)
    corpus = [caption(sample_scene(rng, VOCABULARIES["full"]), rng) for _ in range(4000)] + ["a picture of the image"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    like_clip = CLIPTokenizer(vocab={START: 0, END: 1}, merges=[]).backend_tokenizer
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    tokenizer.normalizer, tokenizer.pre_tokenizer = like_clip.normalizer, like_clip.pre_tokenizer
    trainer = trainers.BpeTrainer(
        vocab_size=2 * len(alphabet) + merges,
        min_frequency=8,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    learned = [tuple(pair) for pair in json.loads(tokenizer.to_str())["model"]["merges"]]
    tokens = [*alphabet, *(letter + "</w>" for letter in alphabet), *("".join(pair) for pair in learned), START, END]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    return CLIPTokenizer(vocab=vocabulary, merges=learned, model_max_length=TEXT_TOKENS)


def build_text_encoder(tokenizer: CLIPTokenizer, layers: int = 4) -> CLIPTextModel:
    """CLIP's text model; it is causal, and pads every caption to the same length, as the pipeline does."""
    from transformers import CLIPTextConfig, CLIPTextModel

    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        projection_dim=TEXT_WIDTH,
        num_hidden_layers=layers,
        num_attention_heads=TEXT_WIDTH // 32,
        max_position_embeddings=TEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return CLIPTextModel(config)


def build_vae() -> AutoencoderKL:
    """8× smaller, 8 channels: a picture of 128 pixels becomes 16 × 16 × 8."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(16, 32, 64, 128),
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=NATIVE_SIZE,
        scaling_factor=1.0,
        force_upcast=False,
    )


def build_unet(width: int = 96, layers: int = 1) -> UNet2DConditionModel:
    """Three levels, 16, 8 and 4 latents wide, with cross-attention at the lower two; outputs of blocks start at zero.

    width: channels of the first level; the others have 5/3 and 2 times as many, in heads of 32.
    """
    from diffusers import UNet2DConditionModel

    model = UNet2DConditionModel(
        sample_size=NATIVE_SIZE // 8,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        block_out_channels=(width, width * 5 // 96 * 32, 2 * width),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=layers,
        attention_head_dim=[width // 32, width * 5 // 96, width // 16],  # numbers of heads, in spite of the name
        cross_attention_dim=TEXT_WIDTH,
        norm_num_groups=16,
    )
    last = [module for name, module in model.named_modules() if name.split(".")[-1] in ("conv2", "proj_out")]
    for module in (*last, model.conv_out):
        torch.nn.init.zeros_(module.weight)
        torch.nn.init.zeros_(module.bias)
    return model


def build_scheduler() -> DDIMScheduler:
    """Stable Diffusion's noise, v-prediction, and down to nothing but noise (Lin et al. 2023, arXiv 2305.08891)."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def tokenize(tokenizer: CLIPTokenizer, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids, int64 [batch, 32], padded as the pipeline pads them, and the mask of what is attended to: all."""
    ids = tokenizer(prompts, padding="max_length", max_length=TEXT_TOKENS, truncation=True, return_tensors="pt")
    return ids.input_ids, torch.ones_like(ids.input_ids, dtype=torch.bool)


def encode(encoder: CLIPTextModel, ids: torch.Tensor) -> torch.Tensor:
    """The hidden states that StableDiffusionPipeline hands to its denoiser: [batch, 32, TEXT_WIDTH]."""
    states: torch.Tensor = encoder(ids).last_hidden_state
    return states


class PlainVAE(TrainingVAE):
    """An AutoencoderKL in training: the same interface as FlatVAE, nothing bent."""

    def __init__(self, vae: AutoencoderKL):
        super().__init__()
        self.vae = vae

    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, H, W] in −1…1 → mean and log-variance of the latents, each [B, z, H/8, W/8]."""
        mean, log_variance = self.vae.quant_conv(self.vae.encoder(pixels)).chunk(2, dim=1)
        return mean, log_variance.clamp(-20, 10)

    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents [B, z, h, w] → pixels [B, 3, 8h, 8w], not clamped."""
        pixels: torch.Tensor = self.vae.decoder(self.vae.post_quant_conv(latents))
        return pixels

    def write_back(self) -> AutoencoderKL:
        return self.vae

    @torch.no_grad()
    def normalise(self, mean: torch.Tensor, std: torch.Tensor) -> None:
        """Fold the latents' measured mean and deviation [z] into the 1×1 convolutions around them.

        The pipeline knows one scaling factor for all channels and no shift; after this it is 1 and right for each.
        """
        quant, post = self.vae.quant_conv, self.vae.post_quant_conv
        z = len(mean)
        post.bias += post.weight[:, :, 0, 0] @ mean
        post.weight *= std[None, :, None, None]
        quant.weight[:z] /= std[:, None, None, None]
        quant.bias[:z] = (quant.bias[:z] - mean) / std
        quant.bias[z:] -= 2 * std.log()


class StableDiffusion(Family):
    """`scenes-sd`."""

    native: ClassVar[dict[str, Any]] = {
        "height": NATIVE_SIZE,
        "width": NATIVE_SIZE,
        "num_inference_steps": 50,
        "guidance_scale": 1.5,
        "negative_prompt": "",
    }
    denoiser_folder = "unet"
    patch = 1
    windows = True
    compiles_vae = False
    uses = 4

    def build_tokenizer(self) -> CLIPTokenizer:
        return build_tokenizer()

    def build_text_encoder(self, tokenizer: Any) -> CLIPTextModel:
        return build_text_encoder(tokenizer)

    def language(self, encoder: Any) -> nn.Module:
        return encoder

    def tokenize(self, tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        return tokenize(tokenizer, prompts)

    def encode(self, encoder: Any, ids: torch.Tensor) -> torch.Tensor:
        return encode(encoder, ids)

    def build_vae(self) -> AutoencoderKL:
        return build_vae()

    def training_vae(self, vae: Any) -> PlainVAE:
        return PlainVAE(vae)

    def finish_vae(self, flat: TrainingVAE, mean: torch.Tensor, std: torch.Tensor) -> AutoencoderKL:
        assert isinstance(flat, PlainVAE)
        flat.normalise(mean, std)
        return flat.vae

    def latent_scale(self, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.zeros(LATENT_CHANNELS, 1, 1), torch.ones(LATENT_CHANNELS, 1, 1)

    def build_denoiser(self, width: int | None = None, layers: int | None = None) -> UNet2DConditionModel:
        return build_unet(width or 96, layers or 1)

    def training_denoiser(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> TrainingUNet:
        from hasten.zoo.sd_denoiser import TrainingUNet

        return TrainingUNet(model, dtype)

    def add_noise(self, x: torch.Tensor, faint: bool = False) -> Noised:
        from hasten.zoo.sd_denoiser import add_noise

        return add_noise(build_scheduler(), x, (60, 560) if faint else (0, 1000))

    def sample(self, denoise: Denoise, noise: torch.Tensor, steps: int) -> torch.Tensor:
        from hasten.zoo.sd_denoiser import sample_ddim

        return sample_ddim(build_scheduler(), denoise, noise, steps, self.native["guidance_scale"])

    def load_tokenizer(self, folder: Path) -> CLIPTokenizer:
        from transformers import CLIPTokenizer

        return CLIPTokenizer.from_pretrained(folder)

    def load_parts(self, folder: Path) -> tuple[Any, Any, Any]:
        from diffusers import AutoencoderKL
        from transformers import CLIPTextModel

        return (
            self.load_tokenizer(folder / "tokenizer"),
            CLIPTextModel.from_pretrained(folder / "text_encoder"),
            AutoencoderKL.from_pretrained(folder / "vae"),
        )

    def pipeline(self, tokenizer: Any, encoder: Any, vae: Any, denoiser: Any) -> StableDiffusionPipeline:
        from diffusers import StableDiffusionPipeline

        return StableDiffusionPipeline(
            vae=vae,
            text_encoder=encoder,
            tokenizer=tokenizer,
            unet=denoiser,
            scheduler=build_scheduler(),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
