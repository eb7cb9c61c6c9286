"""Reference and accelerated side by side: same inputs, honest medians, float quality."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import hasten
import prompted
from hasten.comparison import Comparison, compare, measure
from hasten.errors import HastenError
from hasten.generation import Progress, Result, Session, generate
from hasten.metrics import psnr, ssim
from hasten.plan import Plan, load_plan
from hasten.record import Timings, read_png

PROMPT = "a red circle"


@pytest.fixture(scope="module")
def pipe() -> Any:
    return prompted.qwen()


def small(source: Any = "taylorseer", **settings: Any) -> Plan:
    return load_plan(source, **{"num_inference_steps": 10, "width": 32, "height": 32} | settings)


@pytest.fixture(scope="module")
def comparison(pipe: Any) -> Comparison:
    return compare(small(), PROMPT, rounds=2, pipe=pipe)[0]


def test_it_is_offered_at_the_top() -> None:
    assert hasten.compare is compare


def test_both_images_are_what_generate_makes(pipe: Any, comparison: Comparison) -> None:
    assert torch.equal(comparison.reference.pixels, generate(small(None), PROMPT, pipe=pipe)[0].pixels)
    assert torch.equal(comparison.accelerated.pixels, generate(small(), PROMPT, pipe=pipe)[0].pixels)


def test_quality_is_measured_in_float_before_rounding_to_bytes(comparison: Comparison) -> None:
    a, b = comparison.accelerated, comparison.reference
    assert comparison.quality.psnr == psnr(a.pixels, b.pixels)
    assert comparison.quality.ssim == ssim(a.pixels, b.pixels)
    assert comparison.quality.latent_relative_l2 == pytest.approx(
        float((a.latents - b.latents).norm() / b.latents.norm()), rel=1e-4
    )
    assert comparison.quality.max_difference == float((a.pixels - b.pixels).abs().max())
    assert not comparison.quality.identical


def test_the_quality_stands_in_the_accelerated_record(comparison: Comparison) -> None:
    assert comparison.accelerated.record.quality == comparison.quality
    assert comparison.reference.record.quality is None
    assert comparison.quality.rounds == 2
    assert comparison.quality.speedup == comparison.speedup > 0


def test_ways_take_turns_after_a_warm_up(pipe: Any) -> None:
    told: list[Progress] = []
    compare(small(), PROMPT, rounds=3, progress=told.append, pipe=pipe)
    labels = list(dict.fromkeys(now.label for now in told))
    assert labels == [
        "warm-up",
        "reference 1/3",
        "taylorseer 1/3",
        "taylorseer 2/3",
        "reference 2/3",
        "reference 3/3",
        "taylorseer 3/3",
    ]
    assert [now.skipped for now in told if now.label == "warm-up"][-1] > 0
    assert max(now.skipped for now in told if now.label.startswith("reference")) == 0


def test_times_are_medians(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    totals = {False: iter([9.0, 4.0, 100.0]), True: iter([1.0, 2.0, 50.0])}
    original = Session.run

    def timed(self: Session, prompt: str, seed: int, *, accelerated: bool = True, **more: Any) -> Result:
        result = original(self, prompt, seed, accelerated=accelerated, **more)
        if more["label"] == "warm-up":
            return result
        seconds = next(totals[accelerated])
        times = Timings(text=0, denoise=seconds, decode=0, other=0, total=seconds, per_step=seconds / 10)
        record = result.record.model_copy(update={"timings": times})
        return Result(result.pixels, result.latents, record)

    monkeypatch.setattr(Session, "run", timed)
    comparison = compare(small(), PROMPT, rounds=3, pipe=pipe)[0]
    assert comparison.reference.record.timings.total == 9.0
    assert comparison.accelerated.record.timings.total == 2.0
    assert comparison.speedup == 4.5


def test_a_plan_that_changes_nothing_is_identical(pipe: Any) -> None:
    comparison = compare(small(interval=1), PROMPT, rounds=1, pipe=pipe)[0]
    assert comparison.quality.identical
    assert comparison.quality.psnr is None
    assert comparison.quality.ssim == pytest.approx(1.0)
    assert comparison.image().getpixel((comparison.image().width - 100, 200)) == (0, 0, 0)  # no difference


def test_a_plan_that_skips_nothing_cannot_be_compared(pipe: Any) -> None:
    with pytest.raises(HastenError, match="nothing to compare"):
        compare(small(None), PROMPT, pipe=pipe)
    with pytest.raises(HastenError, match="at least one round"):
        compare(small(), PROMPT, rounds=0, pipe=pipe)


def test_a_mask_is_warmed_up_with_all_its_steps(pipe: Any) -> None:
    plan = small(cache={"mask": [0, 1, 2, 6, 9]})
    comparison = compare(plan, PROMPT, rounds=1, pipe=pipe)[0]
    assert comparison.accelerated.record.steps.computed == 5


def test_a_run_too_short_to_skip_is_said_once_by_the_real_run(pipe: Any) -> None:
    with pytest.warns(UserWarning, match="hasten skipped nothing") as caught:
        compare(small(num_inference_steps=3), PROMPT, rounds=1, pipe=pipe)
    assert len(caught) == 1


def test_three_files_are_written_for_each_prompt(pipe: Any, tmp_path: Path) -> None:
    comparisons = compare(small(out=tmp_path), [PROMPT, "two"], rounds=1, pipe=pipe, save=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "compare_taylorseer_a_red_circle_0.png",
        "compare_taylorseer_two_0.png",
        "reference_a_red_circle_0.png",
        "reference_two_0.png",
        "taylorseer_a_red_circle_0.png",
        "taylorseer_two_0.png",
    ]
    first = comparisons[0]
    assert first.accelerated.path is not None
    assert first.picture is not None
    record = read_png(first.accelerated.path).record
    assert record is not None
    assert record.quality == first.quality
    with Image.open(first.picture) as picture:
        assert np.array_equal(np.array(picture), np.array(first.image()))


def test_a_nan_image_has_no_figures(comparison: Comparison) -> None:
    broken = Result(comparison.accelerated.pixels * math.nan, None, comparison.accelerated.record)
    quality = measure(broken, comparison.reference)
    assert (quality.psnr, quality.ssim, quality.identical, quality.latent_relative_l2) == (None, None, False, None)
