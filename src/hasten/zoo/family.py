"""What a bundled model's family has to say for itself so that the one recipe can train it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import nn

from hasten.zoo.scenes import COLOURS, SHAPES

NATIVE_SIZE = 128
TEXT_WIDTH = 128
TOKEN = 8  # pixels along a side of what one image token shows
PROBED = 1 + len(SHAPES) + len(COLOURS)  # answers of a probe for each token: nothing or a shape, and a colour

# (noisy tokens [B, N, C], noise levels [B]) → predictions with the prompt and without, [B, N, C] each
Denoise = Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]


class TrainingVAE(nn.Module, ABC):
    """An autoencoder of single pictures in training dress."""

    def forward(self, x: torch.Tensor, decode: bool = False) -> Any:
        """`decode` or `encode`: the entry that `compile()` compiles."""
        return self.decode(x) if decode else self.encode(x)

    @abstractmethod
    def encode(self, pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """pixels [B, 3, H, W] in −1…1 → mean and log-variance of the latents, each [B, z, h, w]."""

    @abstractmethod
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """latents [B, z, h, w] → pixels [B, 3, H, W], not clamped."""

    @abstractmethod
    def write_back(self) -> Any:
        """Give the ordinary module back, with the trained weights in it."""


class TrainingDenoiser(nn.Module, ABC):
    """A denoiser in training dress.

    A linear probe on a middle block names the object under each token; it turns the caption's binding of words to
    places into a loss of its own (cf. representation alignment, Yu et al. 2024, arXiv 2410.06940). It is thrown away.
    """

    model: Any
    probe: nn.Linear
    dtype: torch.dtype

    def compile_blocks(self) -> None:
        """Compile what gains from it; nothing by default."""

    @abstractmethod
    def forward(
        self, noisy: torch.Tensor, level: torch.Tensor, text: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """noisy [B, N, C], level [B], text [B, L, width], mask [B, L] → prediction [B, N, C], probe [B, N, PROBED]."""


class Noised(NamedTuple):
    """Latents made noisy, and what the denoiser should say of them."""

    noisy: torch.Tensor  # [B, N, C]
    level: torch.Tensor  # [B], as the denoiser takes it
    target: torch.Tensor  # [B, N, C]
    hidden: torch.Tensor  # bool [B]: more than nine parts in ten are noise
    kept: torch.Tensor  # [B, 1, 1]
    dropped: torch.Tensor  # [B, 1, 1]; latents = kept · noisy − dropped · target

    def recover(self, predicted: torch.Tensor) -> torch.Tensor:
        """The latents that a prediction of the target amounts to: [B, N, C]."""
        return self.kept * self.noisy - self.dropped * predicted


class Family(ABC):
    """The parts of one pipeline class, untrained, and what their training has to know about them."""

    native: ClassVar[dict[str, Any]]
    denoiser_folder: ClassVar[str]
    patch: ClassVar[int]  # latent cells along a side of one token
    windows: ClassVar[bool] = False  # the autoencoder learns on windows of native pictures, not on small pictures

    compiles_vae: ClassVar[bool] = True
    uses: ClassVar[int] = 2  # how often a drawn scene is used in the denoiser's training, with other noise each time

    @abstractmethod
    def build_tokenizer(self) -> Any: ...

    @abstractmethod
    def build_text_encoder(self, tokenizer: Any) -> Any: ...

    @abstractmethod
    def language(self, encoder: Any) -> nn.Module:
        """The part of the text encoder that is trained."""

    @abstractmethod
    def tokenize(self, tokenizer: Any, prompts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Token ids, int64 [batch, all tokens], and which of the encoded tokens are text, bool [batch, length]."""

    @abstractmethod
    def encode(self, encoder: Any, ids: torch.Tensor) -> torch.Tensor:
        """The hidden states that the pipeline hands to its denoiser: [batch, length, TEXT_WIDTH]."""

    @abstractmethod
    def build_vae(self) -> Any: ...

    @abstractmethod
    def training_vae(self, vae: Any) -> TrainingVAE: ...

    @abstractmethod
    def finish_vae(self, flat: TrainingVAE, mean: torch.Tensor, std: torch.Tensor) -> Any:
        """Write the latents' mean and deviation [z] where the pipeline looks for them; return the ordinary module."""

    @abstractmethod
    def latent_scale(self, vae: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and deviation of the latents as the pipeline scales them, [z, 1, 1] each."""

    @abstractmethod
    def build_denoiser(self, width: int | None = None, layers: int | None = None) -> Any: ...

    @abstractmethod
    def training_denoiser(self, model: Any, dtype: torch.dtype = torch.bfloat16) -> TrainingDenoiser: ...

    @abstractmethod
    def add_noise(self, x: torch.Tensor, faint: bool = False) -> Noised:
        """Mix latents x [B, N, C] with noise at levels drawn at random, most where a scene of this size is decided.

        faint: only at levels that leave a scene to be seen.
        """

    @abstractmethod
    def sample(self, denoise: Denoise, noise: torch.Tensor, steps: int) -> torch.Tensor:
        """Turn noise [B, N, C] into latents with the pipeline's guidance, for a look during training."""

    @abstractmethod
    def load_tokenizer(self, folder: Path) -> Any: ...

    @abstractmethod
    def load_parts(self, folder: Path) -> tuple[Any, Any, Any]:
        """Tokenizer, text encoder and autoencoder of a run's folder."""

    @abstractmethod
    def pipeline(self, tokenizer: Any, encoder: Any, vae: Any, denoiser: Any) -> Any:
        """The diffusers pipeline of these parts."""


def pack(latents: torch.Tensor, patch: int) -> torch.Tensor:
    """[B, C, H, W] → tokens [B, H·W/patch², patch²·C], as QwenImagePipeline packs them (patch 2)."""
    b, c, h, w = latents.shape
    tokens = latents.view(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return tokens.reshape(b, h * w // patch**2, patch**2 * c)


def unpack(tokens: torch.Tensor, patch: int) -> torch.Tensor:
    """Tokens of a square picture back to latents; see `pack`."""
    b, n, c = tokens.shape
    side, channels = int(n**0.5), c // patch**2
    latents = tokens.view(b, side, side, channels, patch, patch).permute(0, 3, 1, 4, 2, 5)
    return latents.reshape(b, channels, patch * side, patch * side)
