"""How well a picture fits its words, and an edit its instruction, by a CLIP model from a local folder.

Radford et al., 2021, arXiv 2103.00020 (CLIP); Hessel et al., 2021, arXiv 2104.08718 (CLIP score); Gal et al., 2021,
arXiv 2108.00946 (directional similarity). Own small code on transformers' `CLIPModel`: its projections are called
directly, since what `get_image_features` returns differs between transformers 4 and 5.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from hasten.devices import resolve_device
from hasten.errors import HastenError, LoadError
from hasten.metrics.fidelity import to_float

if TYPE_CHECKING:
    from hasten.metrics.fidelity import Picture

# CLIP's own statistics of pixels, for folders without a preprocessor_config.json.
_MEAN, _STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def clip_score(image: torch.Tensor, text: torch.Tensor) -> float:
    """100 · max(cosine, 0) of an image's and a text's embedding (D,)."""
    return 100 * max(_cosine(image, text), 0.0)


def directional_similarity(
    image: torch.Tensor, source_image: torch.Tensor, text: torch.Tensor, source_text: torch.Tensor
) -> float:
    """Cosine of what changed in the picture and what changed in its caption.

    Args:
        image, source_image, text, source_text: embeddings (D,); taken to unit length before they are subtracted.

    Returns:
        -1…1; nan where picture or caption did not change.
    """
    image, source_image, text, source_text = (
        F.normalize(x.double(), dim=-1) for x in (image, source_image, text, source_text)
    )
    return _cosine(image - source_image, text - source_text)


def _cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return (a @ b / (a.norm() * b.norm())).item()  # 0 / 0 is nan, as it should be


class Clip:
    """A CLIP model from a local folder.

    Args:
        folder: as `CLIPModel.save_pretrained` and the tokenizer's write it. Nothing is downloaded.
        device: where it runs.

    Raises:
        LoadError: the folder is missing or holds no CLIP model.
    """

    def __init__(self, folder: str | Path, device: str = "cpu") -> None:
        self.folder = Path(folder)
        if not (self.folder / "config.json").is_file():
            raise LoadError(f"{folder} is no folder of a CLIP model: it holds no config.json (nothing is downloaded)")
        if (kind := model_type(self.folder)) != "clip":
            raise LoadError(f"{folder} holds a {kind} model, not CLIP")
        from transformers import AutoTokenizer, CLIPModel

        self.device = resolve_device(device)
        self.model, missing = load_network(CLIPModel, self.folder)
        if missing:
            raise LoadError(f"{folder} is no whole CLIP model: its weights lack {missing[0]}")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise LoadError(f"{folder} holds no tokenizer that can be read: {str(error).splitlines()[0]}") from error
        self.model.to(self.device).eval()
        self.max_tokens: int = self.model.config.text_config.max_position_embeddings
        self._size: int = self.model.config.vision_config.image_size
        self._mean, self._std = pixel_statistics(self.folder, _MEAN, _STD)

    def embed_images(self, pictures: Picture | Sequence[Picture]) -> torch.Tensor:
        """Embeddings (N, D) of pictures, of unit length, on the CPU.

        Raises:
            HastenError: a picture holds NaN or infinity.
        """
        batch: Sequence[Any] = pictures if isinstance(pictures, (list, tuple)) else [pictures]
        pixels = torch.cat([prepare(picture, self._size, self._mean, self._std) for picture in batch])
        with torch.inference_mode():
            pooled = self.model.vision_model(pixel_values=pixels.to(self.device)).pooler_output
            return F.normalize(self.model.visual_projection(pooled), dim=-1).double().cpu()

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        """Embeddings (N, D) of texts, of unit length, on the CPU. A text above `max_tokens` is cut; see `fits`."""
        tokens = self.tokenizer(
            list(texts), padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.device)
        with torch.inference_mode():
            pooled = self.model.text_model(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            ).pooler_output
            return F.normalize(self.model.text_projection(pooled), dim=-1).double().cpu()

    def fits(self, text: str) -> bool:
        """Whether the model sees the whole text."""
        # One token above the limit is enough to know, and makes the tokenizer cut instead of warn.
        cut = self.tokenizer(text, truncation=True, max_length=self.max_tokens + 1)["input_ids"]
        return len(cut) <= self.max_tokens

    def score(self, image: Picture, text: str) -> float:
        """CLIP score of one picture and its prompt, 0…100."""
        return clip_score(self.embed_images(image)[0], self.embed_texts([text])[0])

    def similarity(self, image: Picture, reference: Picture) -> float:
        """Cosine of two pictures' embeddings: a learned likeness, 1 for identical ones."""
        return _cosine(self.embed_images(image)[0], self.embed_images(reference)[0])

    def directional(self, image: Picture, source_image: Picture, text: str, source_text: str) -> float:
        """Whether an edit from `source_image` to `image` follows its captions; see `directional_similarity`."""
        after, before = self.embed_images([image, source_image])
        words, source_words = self.embed_texts([text, source_text])
        return directional_similarity(after, before, words, source_words)


def prepare(picture: Picture, size: int, mean: Sequence[float], std: Sequence[float]) -> torch.Tensor:
    """What a vision network takes: shorter side to `size` (bicubic, antialiased), centre cropped, normalised.

    Computed in float throughout, where processors round to bytes in between.

    Returns:
        float32 (N, 3, size, size).
    Raises:
        HastenError: the picture holds NaN or infinity, or has no 1 or 3 channels.
    """
    pixels = to_float(picture).float()
    pixels = pixels.reshape(-1, *pixels.shape[-3:])
    if not pixels.isfinite().all():
        raise HastenError("a picture that holds NaN or infinity has no features")
    if pixels.shape[1] not in (1, 3):
        raise HastenError(f"a picture has 1 or 3 channels, not {pixels.shape[1]}")
    pixels = pixels.expand(-1, 3, -1, -1)
    height, width = pixels.shape[-2:]
    if min(height, width) != size:
        shape = [size, int(size * width / height)] if height <= width else [int(size * height / width), size]
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    top, left = (pixels.shape[-2] - size) // 2, (pixels.shape[-1] - size) // 2
    pixels = pixels[..., top : top + size, left : left + size]
    shift, scale = (pixels.new_tensor(list(values)).view(3, 1, 1) for values in (mean, std))
    return (pixels - shift) / scale


def model_type(folder: Path) -> str | None:
    """What config.json says the model is.

    Raises:
        LoadError: it is no JSON.
    """
    file = folder / "config.json"
    try:
        kind = json.loads(file.read_text("utf-8")).get("model_type")
    except (ValueError, AttributeError) as error:
        raise LoadError(f"{file} is no JSON object: {error}") from error
    return None if kind is None else str(kind)


def load_network(kind: Any, folder: Path) -> tuple[Any, list[str]]:
    """A transformers model in float32, and the weights that its folder lacks: those would be random.

    Raises:
        LoadError: it cannot be read.
    """
    try:
        model, told = kind.from_pretrained(folder, local_files_only=True, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise LoadError(f"{folder} holds no model that can be read: {str(error).splitlines()[0]}") from error
    return model, sorted(told["missing_keys"])


def pixel_statistics(
    folder: Path, mean: Sequence[float], std: Sequence[float]
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation that a model's folder says its pixels are normalised with, or the given ones.

    Raises:
        LoadError: preprocessor_config.json is no JSON.
    """
    file = folder / "preprocessor_config.json"
    if not file.is_file():
        return tuple(mean), tuple(std)
    try:
        said = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise LoadError(f"{file} is no JSON: {error}") from error
    return tuple(said.get("image_mean", mean)), tuple(said.get("image_std", std))
