"""A learned distance of two pictures: how far apart vision models put them.

Fu et al., 2023, "DreamSim: Learning new dimensions of human visual similarity using synthetic data", arXiv 2306.09344:
the cosine of several models' embeddings, laid side by side. DreamSim itself has models (DINO, CLIP, OpenCLIP) that were
tuned to people's judgements; with the folders of such models this is DreamSim, with others it is a distance like it.
Nothing is downloaded: the folders are the user's.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hasten.errors import HastenError
from hasten.metrics.features import load_extractor
from hasten.metrics.fidelity import to_float

if TYPE_CHECKING:
    from hasten.metrics.fidelity import Picture


class EmbeddingDistance:
    """1 − cos of two pictures' embeddings in one vision model or in several.

    Args:
        folders: of CLIP or other vision models of transformers (DINOv2, ViT, …), or TorchScript files.
        device: where they run.

    Raises:
        LoadError: a folder holds no such model.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], device: str = "cpu") -> None:
        chosen = [folders] if isinstance(folders, (str, Path)) else list(folders)
        if not chosen or "scenes" in map(str, chosen):
            raise HastenError("an embedding distance needs folders of vision models; made-by-hand features are none")
        self._extractors = [load_extractor(folder, device) for folder in chosen]
        self.name = " + ".join(extractor.name for extractor in self._extractors)

    def __call__(self, image: Picture, reference: Picture) -> float:
        """The distance, 0 for identical pictures, at most 2; a batch's mean.

        Raises:
            HastenError: pictures that hold NaN or infinity.
        """
        a, b = (self._embed(picture) for picture in (image, reference))
        return (1 - F.cosine_similarity(a, b, dim=1)).clamp_min(0).mean().item()

    def _embed(self, picture: Picture) -> torch.Tensor:
        pixels = to_float(picture).float()
        frames = pixels.reshape(-1, *pixels.shape[-3:])
        return torch.cat([_centred(extractor(frames)) for extractor in self._extractors], dim=1)


def _centred(embedding: torch.Tensor) -> torch.Tensor:
    """As DreamSim lays models side by side: each of unit length, then without its mean."""
    embedding = F.normalize(embedding, dim=1)
    return embedding - embedding.mean(dim=1, keepdim=True)
