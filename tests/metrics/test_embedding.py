"""The learned distance as DreamSim's."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from tests.metrics.networks import save_clip

from hasten.errors import HastenError, LoadError
from hasten.metrics import Clip, EmbeddingDistance

A, B = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folders = [tmp_path_factory.mktemp(name) for name in ("one", "two")]
    for seed, folder in enumerate(folders):
        torch.manual_seed(seed)
        save_clip(folder)
    return folders


def test_one_model_gives_one_minus_the_cosine_of_what_is_left_without_the_mean(folders: list[Path]) -> None:
    a, b = (Clip(folders[0]).embed_images(picture)[0].double() for picture in (A, B))
    a, b = ([x / math.hypot(*v.tolist()) for x in v.tolist()] for v in (a, b))
    a, b = ([x - sum(v) / len(v) for x in v] for v in (a, b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / math.hypot(*a) / math.hypot(*b)
    assert EmbeddingDistance(folders[0])(A, B) == pytest.approx(1 - cosine, abs=1e-6)


def test_several_models_are_laid_side_by_side(folders: list[Path]) -> None:
    one, two, both = (EmbeddingDistance(some)(A, B) for some in (folders[0], folders[1], folders))
    assert min(one, two) <= both <= max(one, two)
    assert EmbeddingDistance([folders[0]] * 2)(A, B) == pytest.approx(one, abs=1e-6)


def test_identical_pictures_are_at_distance_zero_and_batches_are_means(folders: list[Path]) -> None:
    distance = EmbeddingDistance(folders[0])
    assert distance(A, A) == pytest.approx(0, abs=1e-6)
    assert distance(torch.stack([A, A]), torch.stack([A, B])) == pytest.approx(distance(A, B) / 2, abs=1e-6)
    grey = (A.mean(0) * 255).round().to(torch.uint8)
    assert distance(grey, grey[None].expand(3, -1, -1)) == pytest.approx(0, abs=1e-6)


def test_what_has_no_distance_is_refused(folders: list[Path], tmp_path: Path) -> None:
    with pytest.raises(HastenError, match="NaN"):
        EmbeddingDistance(folders[0])(A, torch.full_like(A, math.nan))
    with pytest.raises(LoadError, match="no extractor"):
        EmbeddingDistance(tmp_path)
    with pytest.raises(HastenError, match="needs folders"):
        EmbeddingDistance("scenes")
