"""Everything at once: what is in the result, what is not, and why."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tests.metrics.networks import save_alexnet, save_clip

from hasten.errors import HastenError
from hasten.metrics import measure
from hasten.metrics.report import Measurement
from hasten.plan import load_plan
from hasten.record import Device, Memory, Model, Record, Steps, Timings
from hasten.zoo.scenes import Placed, draw


def figures(found: Measurement) -> dict[str, float]:
    return {figure.metric: figure.mean for figure in found.figures()}


def reasons(found: Measurement) -> dict[str, str]:
    return {missing.metric: missing.reason for missing in found.not_computed}


def adherence(found: Measurement) -> dict[str, tuple[float | None, float | None]]:
    return {one.metric: (one.image, one.reference) for one in found.adherence}


def scene(*things: Placed) -> Image.Image:
    pixels = (draw([list(things)], ["white"], 128)[0][0] + 1) * 127.5
    return Image.fromarray(pixels.round().byte().movedim(0, -1).numpy())


CIRCLE, SQUARE = Placed("circle", "red", 0.27, 0.5, 0.15), Placed("square", "blue", 0.73, 0.5, 0.15)
PROMPT = "a red circle left of a blue square"


def record(seed: int, prompt: str = PROMPT) -> Record:
    return Record(
        prompt=prompt,
        seed=seed,
        width=128,
        height=128,
        method="taylorseer",
        plan=load_plan("taylorseer"),
        model=Model(name="scenes-qwen", pipeline="QwenImagePipeline"),
        device=Device(type="cpu", name="a CPU", dtype="float32"),
        versions={},
        timings=Timings(text=0, denoise=1, decode=0, other=0, total=1, per_step=1),
        steps=Steps(total=1, computed=1, skipped=0),
        memory=Memory(peak_bytes=1, source="process"),
    )


def test_bytes_are_compared_as_numbers() -> None:
    dark, light = (np.full((32, 32, 3), level, np.uint8) for level in (100, 101))
    found = figures(measure(dark, light))
    assert found["psnr"] == pytest.approx(20 * math.log10(255))
    assert found["max_difference"] == pytest.approx(1 / 255)


def test_identical_pictures_are_infinite_here_and_null_in_json() -> None:
    image = torch.rand(3, 16, 16)
    found = measure(image, image.clone())
    assert found.identical
    assert figures(found)["psnr"] == math.inf
    document = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert document["identical"] is True
    assert document["summary"]["psnr"] == {
        "mean": None,
        "worst": None,
        "count": 1,
        "identical": True,
        "better": "higher",
    }
    assert document["pairs"][0]["identical"] is True
    assert document["pairs"][0]["values"]["psnr"] is None
    assert document["version"] == 1


def test_one_identical_pair_does_not_make_the_mean_infinite() -> None:
    reference = torch.zeros(3, 3, 16, 16)
    image = reference.clone()
    image[1], image[2] = 0.1, 0.01
    (psnr, *_) = measure(image, reference, features=None).figures()
    assert (psnr.mean, psnr.worst) == pytest.approx((30.0, 20.0), abs=1e-4)
    assert (psnr.count, psnr.identical) == (3, 1)


def test_a_grey_picture_and_its_colours_are_identical() -> None:
    grey = Image.new("L", (16, 16), 40)
    assert measure(grey, grey.convert("RGB")).identical


def test_what_is_not_finite_is_null_and_said() -> None:
    image = torch.rand(3, 16, 16)
    broken = image.clone()
    broken[0, 0, 0] = math.nan
    found = measure(broken, image)
    assert all(map(math.isnan, figures(found).values()))
    assert any("NaN" in note for note in found.notes)
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["summary"]["ssim"]["mean"] is None
    assert not found.identical


def test_one_pair_of_another_size_does_not_spoil_the_others() -> None:
    pictures = [torch.rand(3, 16, 16), torch.rand(3, 16, 17)]
    found = measure(pictures, [pictures[0], pictures[0]], features=None)
    assert [pair.name for pair in found.pairs] == ["0"]
    assert [(one.name, "different sizes" in one.reason) for one in found.failed] == [("1", True)]
    with pytest.raises(HastenError, match="different sizes"):
        measure(pictures[1], pictures[0])
    with pytest.raises(HastenError, match="no pair could be compared; the first, 0: pictures of different sizes"):
        measure([pictures[1]] * 2, [pictures[0]] * 2)


def test_a_film_has_frames_and_movement() -> None:
    reference = torch.tensor([0.2, 0.4, 0.6]).view(3, 1, 1, 1).expand(3, 3, 12, 12).clone()
    film = reference.clone()
    film[1] += 0.1
    (pair,) = measure(film, reference, video=True).pairs
    assert pair.values["psnr"] == pytest.approx(20.0, abs=1e-4)  # of the frame that differs
    assert pair.per_frame["psnr"] == pytest.approx((math.inf, 20.0, math.inf), abs=1e-4)
    assert pair.values["temporal_l1"] == pytest.approx(0.1, abs=1e-6)
    assert not pair.identical


def test_latents_are_compared_as_latents(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([3.0, 0.0]))
    np.save(tmp_path / "b.npy", np.array([0.0, 4.0]))
    found = measure(tmp_path / "a.npy", tmp_path / "b.npy")
    assert figures(found) == pytest.approx(
        {"max_difference": 4, "relative_l1": 7 / 4, "relative_l2": 5 / 4, "cosine": 0}
    )
    Image.new("L", (2, 1)).save(tmp_path / "b.png")
    with pytest.raises(HastenError, match="compared with latents only"):
        measure(tmp_path / "a.npy", tmp_path / "b.png")


def test_folders_pair_by_name_and_by_what_hasten_wrote(tmp_path: Path) -> None:
    for side, method in (("a", "taylorseer"), ("b", "none")):
        (tmp_path / side).mkdir()
        for seed in (1, 2):
            image = Image.new("RGB", (16, 16), (seed, 0, 0))
            image.save(tmp_path / side / f"{method}_{seed}.png", pnginfo=record(seed).png_info())
        Image.new("RGB", (16, 16)).save(tmp_path / side / "same.png")
        Image.new("RGB", (16, 16)).save(tmp_path / side / f"only_{side}.png")
    found = measure(tmp_path / "a", tmp_path / "b", features=None)
    assert {(pair.name, pair.reference) for pair in found.pairs} == {
        ("same.png", "same.png"),
        ("taylorseer_1.png", "none_1.png"),
        ("taylorseer_2.png", "none_2.png"),
    }
    assert found.identical
    assert (found.unmatched_images, found.unmatched_references) == (("only_a.png",), ("only_b.png",))
    (tmp_path / "c").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "c" / "x.png")
    with pytest.raises(HastenError, match=r"nothing belongs together: only_a\.png, same\.png.* and 1 more on one side"):
        measure(tmp_path / "a", tmp_path / "c")


def test_the_scenes_are_read_on_both_sides_with_the_prompt_that_is_in_the_file(tmp_path: Path) -> None:
    scene(CIRCLE).save(tmp_path / "a.png", pnginfo=record(1).png_info())
    scene(CIRCLE, SQUARE).save(tmp_path / "b.png", pnginfo=record(1).png_info())
    told = adherence(measure(tmp_path / "a.png", tmp_path / "b.png"))
    assert told["scenes_right"] == (0, 1)
    assert told["scenes_objects"] == (0.5, 1)
    assert told["scenes_background"] == (1, 1)


def test_prompts_may_be_given_by_name_by_order_or_once() -> None:
    pictures = [scene(CIRCLE), scene(SQUARE)]
    by_order = measure(pictures, prompts=["a red circle", "a red circle"])
    assert adherence(by_order)["scenes_right"] == (0.5, None)
    assert adherence(measure(pictures, prompts={"1": "a blue square"}))["scenes_right"] == (1, None)
    assert adherence(measure(pictures, prompts="a blue square"))["scenes_right"] == (0.5, None)
    assert reasons(by_order)["fidelity"] == "there is no reference"
    with pytest.raises(HastenError, match="1 prompts for 2 pictures"):
        measure(pictures, prompts=["a red circle"])
    with pytest.raises(HastenError, match=r"the prompts name x\.png; the pictures are 0, 1"):
        measure(pictures, prompts={"x.png": "a red circle"})


def test_references_are_asked_for_what_their_partners_are() -> None:
    found = measure([scene(CIRCLE), scene(SQUARE)], [scene(CIRCLE), scene(CIRCLE)], prompts=["a red circle"] * 2)
    assert adherence(found)["scenes_right"] == (0.5, 1)


def test_a_prompt_of_no_scene_is_a_reason() -> None:
    found = measure([scene(CIRCLE)] * 2, prompts=["a cat", "a dog"])
    assert found.adherence == ()
    assert "no coloured shape in 'a cat'" in reasons(found)["scenes"]
    assert reasons(found)["scenes"].endswith("(and 1 more such prompts)")


def test_whatever_was_not_computed_says_why() -> None:
    image = torch.rand(3, 16, 16)
    told = reasons(measure(image, image))
    assert told == {
        "ms_ssim": "MS-SSIM at 5 scales needs 176 pixels a side; these have 16",
        "lpips": "no weights were named",
        "embedding_distance": "no vision model was named",
        "clip_image_similarity": "no CLIP model was named",
        "scenes": "no prompt is known: none was given, and the files say none",
        "clip_score": "no CLIP model was named",
        "reward": "no file of scores was named",
        "frechet_distance": "sets of 1 and 1 pictures have no distribution",
        "kernel_distance": "sets of 1 and 1 pictures have no distribution",
    }
    assert reasons(measure([image] * 2, [image] * 2, features=None))["kernel_distance"] == "no features were named"


def test_the_networks_that_are_named_are_used(tmp_path: Path) -> None:
    for folder in ("clip", "lpips"):
        (tmp_path / folder).mkdir()
    save_clip(tmp_path / "clip")
    save_alexnet(tmp_path / "lpips")
    a, b = torch.rand(2, 3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    a[0] = b[0]
    found = measure(
        a,
        b,
        prompts=["red", "a very long prompt indeed", "blue"],
        reference_prompts=["red", "green", "blue one"],
        clip=tmp_path / "clip",
        lpips=tmp_path / "lpips",
        embedding=[tmp_path / "clip"],
        features=tmp_path / "clip",
    )
    first = found.pairs[0]
    assert first.values["lpips"] == 0
    assert first.values["embedding_distance"] == pytest.approx(0, abs=1e-6)
    assert found.pairs[1].values["embedding_distance"] > 0
    assert first.values["clip_image_similarity"] == pytest.approx(1.0)
    assert found.pairs[1].values["lpips"] > 0
    told = adherence(found)
    assert told["clip_score"][0] is not None
    assert told["clip_directional_similarity"][1] is None
    assert {distance.features for distance in found.distances} == {"clip (CLIP)"}
    assert [(one.metric, one.images, one.references, one.dimensions) for one in found.distances] == [
        ("frechet_distance", 3, 3, 8),
        ("kernel_distance", 3, 3, 8),
    ]
    assert any("1 of 5 prompts were cut" in note for note in found.notes)
    assert any("3 pictures are few for 8 dimensions" in note for note in found.notes)


def test_scores_of_another_program_are_averaged(tmp_path: Path) -> None:
    for name in ("a/x.png", "a/y.png", "b/x_reference.png", "b/y_reference.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("L", (8, 8)).save(tmp_path / name)
    file = tmp_path / "scores.json"
    file.write_text(json.dumps({"x.png": 1.0, "y": 2.0, str(tmp_path / "b" / "x_reference.png"): 4.0}))
    found = measure(tmp_path / "a", scores=file)
    assert adherence(found)["reward"] == (1.5, None)
    both = measure([tmp_path / "a" / "x.png"], [tmp_path / "b" / "x_reference.png"], scores=file)
    assert adherence(both)["reward"] == (1.0, 4.0)
    file.write_text('{"z.png": 1}')
    assert reasons(measure(tmp_path / "a", scores=file))["reward"].endswith("it names z.png")


def test_a_score_by_a_name_that_both_sides_have_is_the_first_sides(tmp_path: Path) -> None:
    for name in ("a/x.png", "b/x.png"):
        (tmp_path / name).parent.mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name)
    (tmp_path / "scores.csv").write_text("x.png,3\n")
    found = measure(tmp_path / "a", tmp_path / "b", scores=tmp_path / "scores.csv")
    assert adherence(found)["reward"] == (3.0, None)
    assert any("taken for the first side's" in note for note in found.notes)
