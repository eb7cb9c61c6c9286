"""CLIP score and directional similarity: by hand on vectors, and by transformers' own forward on a tiny model."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.metrics.networks import save_clip
from transformers import CLIPModel

from hasten.errors import HastenError, LoadError
from hasten.metrics import Clip, clip_score, directional_similarity
from hasten.metrics.clip import prepare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clip")
    save_clip(folder)
    return folder


@pytest.fixture(scope="module")
def clip(folder: Path) -> Clip:
    return Clip(folder)


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_score_is_a_hundred_times_the_cosine_and_never_negative() -> None:
    a, b = torch.tensor([3.0, 4.0]), torch.tensor([2.0, 0.0])
    assert clip_score(a, b) == pytest.approx(60.0)
    assert clip_score(a, -b) == 0
    assert math.isnan(directional_similarity(a, a, a, b))


def test_the_directional_similarity_is_the_cosine_of_the_changes() -> None:
    right, up = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    # The picture goes from right to up, (-1, 1); the caption from right to left, (-2, 0).
    assert directional_similarity(up, right, -right, right) == pytest.approx(math.sqrt(0.5))
    assert directional_similarity(up, right, up, right) == pytest.approx(1.0)
    assert directional_similarity(right, up, up, right) == pytest.approx(-1.0)


def test_the_score_is_what_the_models_own_forward_gives(clip: Clip, folder: Path) -> None:
    image, texts = noise(0, 3, 16, 16), ["red", "a blue one"]
    model = CLIPModel.from_pretrained(folder).eval()
    tokens = clip.tokenizer(texts, padding=True, return_tensors="pt")
    pixels = prepare(image, 16, (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    with torch.inference_mode():
        logits = model(**tokens, pixel_values=pixels).logits_per_image[0] / model.logit_scale.exp()
    assert abs(logits[0] - logits[1]) > 1e-3  # the texts are told apart
    for text, cosine in zip(texts, logits.tolist(), strict=True):
        assert clip.score(image, text) == pytest.approx(100 * max(cosine, 0), abs=1e-3)


def test_a_batch_scores_as_its_pictures_do_one_by_one(clip: Clip) -> None:
    batch = noise(1, 3, 3, 20, 16)
    alone = torch.cat([clip.embed_images(picture) for picture in batch])
    torch.testing.assert_close(clip.embed_images(batch), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(clip.embed_images(list(batch)), alone, atol=1e-5, rtol=0)
    # Padding to the longest text changes none.
    together = clip.embed_texts(["red", "a much longer"])
    torch.testing.assert_close(together[0], clip.embed_texts(["red"])[0], atol=1e-5, rtol=0)


def test_bytes_grey_pictures_and_sizes_are_taken(clip: Clip) -> None:
    grey = np.random.default_rng(0).integers(0, 256, (24, 40), dtype=np.uint8)
    picture = Image.fromarray(grey)
    assert clip.similarity(picture, picture.convert("RGB")) == pytest.approx(1.0)
    assert clip.similarity(torch.from_numpy(grey).float() / 255, picture) == pytest.approx(1.0, abs=1e-5)


def test_an_edit_is_measured_from_end_to_end(clip: Clip) -> None:
    after, before = noise(0, 3, 16, 16), noise(1, 3, 16, 16)
    there = clip.directional(after, before, "red", "blue")
    assert -1 <= there <= 1
    assert clip.directional(before, after, "red", "blue") == pytest.approx(-there, abs=1e-5)


def test_a_long_prompt_is_cut_and_that_can_be_asked(clip: Clip) -> None:
    long = "abc" * 20
    assert clip.fits("abc")
    assert not clip.fits(long)
    torch.testing.assert_close(clip.embed_texts([long]), clip.embed_texts([long[:20]]))


def test_pixels_are_prepared_as_transformers_prepares_them() -> None:
    processing = pytest.importorskip("transformers.models.clip.image_processing_pil_clip")
    picture = Image.fromarray(np.random.default_rng(1).integers(0, 256, (40, 61, 3), dtype=np.uint8))
    processor = processing.CLIPImageProcessorPil(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, image_mean=[0.5] * 3, image_std=[0.25] * 3
    )
    expected = torch.as_tensor(np.asarray(processor(picture)["pixel_values"]))
    # Theirs is rounded to bytes after the resize: half a byte is 0.008 here.
    torch.testing.assert_close(prepare(picture, 16, [0.5] * 3, [0.25] * 3), expected, atol=0.02, rtol=0)


def test_a_picture_that_is_not_finite_has_no_features(clip: Clip) -> None:
    with pytest.raises(HastenError, match="NaN"):
        clip.score(torch.full((3, 16, 16), math.nan), "red")
    with pytest.raises(HastenError, match="not 4"):
        clip.score(torch.zeros(4, 16, 16), "red")


def test_a_folder_says_how_its_pixels_are_normalised(tmp_path: Path) -> None:
    save_clip(tmp_path)
    before = Clip(tmp_path).embed_images(noise(0, 3, 16, 16))
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0, 0, 0], "image_std": [1, 1, 1]}')
    assert not torch.allclose(Clip(tmp_path).embed_images(noise(0, 3, 16, 16)), before)


def test_what_is_no_clip_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no folder of a CLIP model: it holds no config\.json \(nothing is downloaded"):
        Clip(tmp_path / "openai" / "clip")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(LoadError, match="is no JSON"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(LoadError, match="holds a vit model, not CLIP"):
        Clip(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip"}))
    with pytest.raises(LoadError, match="holds no model that can be read"):
        Clip(tmp_path)


def test_weights_that_lack_a_part_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    save_clip(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["visual_projection.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(LoadError, match=r"its weights lack visual_projection\.weight"):
        Clip(tmp_path)
