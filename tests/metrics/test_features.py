"""What sets of pictures are compared in."""

from __future__ import annotations

import math
import random
import warnings
from pathlib import Path

import pytest
import torch
from tests.metrics.networks import save_clip
from transformers import ViTConfig, ViTModel

from hasten.errors import HastenError, LoadError
from hasten.metrics import frechet_distance, load_extractor
from hasten.metrics.features import scenes_features
from hasten.zoo.scenes import COLOURS, VOCABULARIES, Placed, arrange, draw, sample_scene


def drawn(*things: Placed, background: str = "white", size: int = 128) -> torch.Tensor:
    return (draw([list(things)], [background], size)[0][0] + 1) / 2


def test_scenes_features_say_what_is_drawn() -> None:
    things = (Placed("circle", "red", 0.25, 0.5, 0.15), Placed("square", "blue", 0.75, 0.5, 0.15))
    features = scenes_features(drawn(*things, background="gray")).tolist()
    assert len(features) == 32
    assert features[:4] == pytest.approx([0, 1, 0, 2 / 3])  # white, gray, black; objects
    assert features[4:12] == [float(name in ("red", "blue")) for name in COLOURS]
    assert features[12:14] == [1, 1]
    assert features[19:21] == pytest.approx([0.5, 0.5], abs=0.02)  # mean place
    assert features[23:25] == pytest.approx([0.25, 0], abs=0.02)  # spread


def test_scenes_features_hardly_change_with_the_size_of_the_picture() -> None:
    thing = Placed("circle", "red", 0.5, 0.5, 0.2)
    small, large = (scenes_features(drawn(thing, size=size)) for size in (128, 256))
    torch.testing.assert_close(small[:-1], large[:-1], atol=0.03, rtol=0)


def test_an_empty_picture_and_a_grey_one_have_features() -> None:
    extractor = load_extractor("scenes")
    found = extractor(torch.full((2, 1, 64, 64), 0.98))
    assert found.shape == (2, 32)
    assert found[0, 3] == 0


def test_scenes_that_lack_an_object_are_further_away_than_other_scenes() -> None:
    rng = random.Random(0)
    extractor = load_extractor("scenes")

    def pictures(lacking: int) -> torch.Tensor:
        scenes = [sample_scene(rng, VOCABULARIES["small"]) for _ in range(20)]
        placed = [arrange(scene, rng)[lacking:] or [Placed("circle", "red", 9, 9, 0.1)] for scene in scenes]
        return (draw(placed, [scene.background for scene in scenes], 64)[0] + 1) / 2

    reference = extractor(pictures(0))
    assert frechet_distance(extractor(pictures(1)), reference) > frechet_distance(extractor(pictures(0)), reference)


def test_a_clip_folder_is_an_extractor(tmp_path: Path) -> None:
    save_clip(tmp_path / "tiny")
    extractor = load_extractor(tmp_path / "tiny")
    assert extractor.name == "tiny (CLIP)"
    assert extractor(torch.rand(2, 1, 20, 20)).shape == (2, 8)


@pytest.mark.parametrize("pooled", [True, False])
def test_a_vision_model_gives_its_pooled_output_or_the_class_token_where_it_has_no_trained_pooler(
    tmp_path: Path, pooled: bool
) -> None:
    config = ViTConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    torch.manual_seed(0)
    model = ViTModel(config, add_pooling_layer=pooled).eval()
    model.save_pretrained(tmp_path)
    extractor = load_extractor(tmp_path)
    frames = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])[..., None, None]
    with torch.inference_mode():
        output = model(pixel_values=(frames - mean) / std)
    expected = output.pooler_output if pooled else output.last_hidden_state[:, 0]
    torch.testing.assert_close(extractor(frames), expected.double(), atol=1e-5, rtol=0)
    assert extractor.name.endswith("(vit)")


def test_a_torchscript_file_is_given_bytes(tmp_path: Path) -> None:
    class Mean(torch.nn.Module):
        def forward(self, x: torch.Tensor, return_features: bool = False) -> torch.Tensor:
            if return_features:
                return x.float().mean((2, 3))
            return x.float()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(Mean()).save(str(tmp_path / "inception.pt"))
    extractor = load_extractor(tmp_path / "inception.pt")
    assert extractor.name == "inception.pt"
    assert extractor(torch.full((2, 3, 4, 4), 0.2)).tolist() == [[51.0] * 3] * 2


def test_what_is_no_extractor_is_refused(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"inception: no extractor: give scenes, a folder"):
        load_extractor("inception")
    (tmp_path / "a.pt").write_text("nothing")
    with pytest.raises(LoadError, match="is no TorchScript file"):
        load_extractor(tmp_path / "a.pt")
    (tmp_path / "config.json").write_text('{"model_type": "vit"}')
    with pytest.raises(LoadError, match="holds no model that can be read"):
        load_extractor(tmp_path)
    with pytest.raises(HastenError, match="NaN"):
        load_extractor("scenes")(torch.full((1, 3, 8, 8), math.nan))
