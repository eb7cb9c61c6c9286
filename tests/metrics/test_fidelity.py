"""PSNR and SSIM against hand-computed values, other implementations, and the traps of byte arithmetic."""

from __future__ import annotations

import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from hasten.errors import HastenError
from hasten.metrics import max_difference, ms_ssim, psnr, ssim
from hasten.metrics.fidelity import to_float


def test_psnr_of_a_constant_error_is_what_pen_and_paper_say() -> None:
    reference = torch.zeros(3, 16, 16)
    assert psnr(reference + 0.1, reference) == pytest.approx(20.0, abs=1e-5)
    assert psnr(reference + 0.01, reference) == pytest.approx(40.0, abs=1e-5)


def test_bytes_do_not_wrap_around() -> None:
    dark, light = (np.full((8, 8, 3), value, dtype=np.uint8) for value in (100, 101))
    expected = 20 * math.log10(255)
    assert psnr(dark, light) == pytest.approx(expected)
    assert psnr(light, dark) == pytest.approx(expected)
    assert psnr(Image.fromarray(dark), Image.fromarray(light)) == pytest.approx(expected)


def test_identical_pictures_are_infinitely_close() -> None:
    image = torch.rand(3, 32, 32)
    assert psnr(image, image) == math.inf
    assert ssim(image, image) == pytest.approx(1.0)


def test_bytes_floats_and_pil_images_of_one_picture_are_one_picture() -> None:
    array = np.random.default_rng(0).integers(0, 256, (12, 9, 3), dtype=np.uint8)
    tensor = torch.from_numpy(array).movedim(-1, 0)
    for other in (Image.fromarray(array), tensor, tensor.float() / 255, array.astype(np.float64) / 255):
        assert psnr(array, other) > 140  # float32 rounding
        assert to_float(other).shape == (3, 12, 9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_half_precision_pictures_are_measured_in_double(dtype: torch.dtype) -> None:
    assert to_float(torch.ones(3, 4, 4, dtype=dtype)).dtype is torch.float64


def test_sixteen_bit_greys_keep_their_depth() -> None:
    array = np.full((8, 8), 65535 // 2, dtype=np.uint16)
    assert to_float(Image.fromarray(array)).mean().item() == pytest.approx(0.5, abs=1e-4)


def test_a_grey_picture_is_a_picture_with_equal_channels() -> None:
    grey = torch.rand(1, 16, 16)
    assert psnr(grey, grey.expand(3, 16, 16)) == math.inf
    image = Image.new("L", (16, 16), 10)
    assert psnr(image, image.convert("RGB")) == math.inf


def test_transparency_and_palettes_are_flattened() -> None:
    image = Image.new("RGB", (8, 8), (250, 10, 10))
    assert psnr(image.convert("RGBA"), image) == math.inf
    assert psnr(image.convert("P", palette=Image.Palette.ADAPTIVE), image) > 40


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_different_sizes_are_refused(measure) -> None:
    with pytest.raises(HastenError, match=r"\(3, 8, 8\) and \(3, 8, 9\)"):
        measure(torch.zeros(3, 8, 8), torch.zeros(3, 8, 9))


@pytest.mark.parametrize("measure", [psnr, ssim])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_picture_that_is_not_finite_has_no_quality(measure, bad: float) -> None:
    image = torch.full((3, 16, 16), 0.5)
    broken = image.clone()
    broken[0, 3, 3] = bad
    assert math.isnan(measure(broken, image))
    assert math.isnan(measure(image, broken))


@pytest.mark.parametrize("nothing", [torch.zeros(3), "image.png", torch.zeros(2, 2, dtype=torch.complex64)])
def test_what_is_no_picture_is_refused(nothing) -> None:
    with pytest.raises(HastenError, match="no picture"):
        psnr(nothing, torch.zeros(1, 2, 2))


def test_ssim_of_flat_pictures_is_the_luminance_term() -> None:
    a, b = torch.full((1, 16, 16), 0.4), torch.full((1, 16, 16), 0.6)
    c1 = 0.01**2
    assert ssim(a, b) == pytest.approx((2 * 0.4 * 0.6 + c1) / (0.4**2 + 0.6**2 + c1))


def test_ssim_of_a_picture_smaller_than_the_window_is_defined() -> None:
    image = torch.rand(3, 6, 7)
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(image, 1 - image) < 0.9


def test_ssim_falls_with_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(3, 32, 32, generator=generator)
    noise = torch.randn(3, 32, 32, generator=generator)
    values = [ssim(image + scale * noise, image) for scale in (0.01, 0.05, 0.2)]
    assert values == sorted(values, reverse=True)


def test_both_agree_with_torchmetrics() -> None:
    image = pytest.importorskip("torchmetrics.functional.image")
    generator = torch.Generator().manual_seed(0)
    a = torch.rand(2, 3, 40, 33, generator=generator, dtype=torch.float64)
    b = (a + 0.1 * torch.randn(a.shape, generator=generator, dtype=torch.float64)).clamp(0, 1)
    assert psnr(a, b) == pytest.approx(image.peak_signal_noise_ratio(a, b, data_range=1.0).item(), abs=1e-6)
    expected = image.structural_similarity_index_measure(a, b, data_range=1.0).item()
    assert ssim(a, b) == pytest.approx(expected, abs=1e-6)


def test_ms_ssim_of_flat_pictures_is_the_luminance_of_the_coarsest_scale() -> None:
    pytest.importorskip("torchmetrics")
    a, b = torch.full((3, 176, 180), 0.4), torch.full((3, 176, 180), 0.6)
    luminance = (2 * 0.4 * 0.6 + 0.01**2) / (0.4**2 + 0.6**2 + 0.01**2)
    assert ms_ssim(a, b) == pytest.approx(luminance**0.1333, abs=1e-5)
    assert ms_ssim(a[:, :99], b[:, :99], scales=4) == pytest.approx(luminance ** (0.2363 / 0.8667), abs=1e-5)
    assert ms_ssim(a, a) == pytest.approx(1.0)


def test_ms_ssim_takes_grey_bytes_and_batches() -> None:
    pytest.importorskip("torchmetrics")
    a = torch.randint(0, 256, (2, 1, 176, 176), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    b = a.clone()
    b[1] = 0
    each = [ms_ssim(a[i], b[i]) for i in range(2)]
    assert ms_ssim(a, b) == pytest.approx(sum(each) / 2)
    assert each[0] == pytest.approx(1.0)


def test_ms_ssim_refuses_what_it_cannot_measure(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.rand(3, 180, 175)
    with pytest.raises(HastenError, match="176 pixels a side; these have 175"):
        ms_ssim(image, image)
    with pytest.raises(HastenError, match="1 to 5 scales, not 6"):
        ms_ssim(image, image, scales=6)
    assert math.isnan(ms_ssim(image * math.nan, image, scales=4))
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
    with pytest.raises(HastenError, match=r"pip install 'hasten\[metrics\]'"):
        ms_ssim(image, image, scales=4)


def test_the_maximum_difference_has_a_sign_of_its_own_in_bytes_and_floats() -> None:
    dark, light = (torch.full((3, 4, 4), value, dtype=torch.uint8) for value in (0, 51))
    assert max_difference(dark, light) == max_difference(light, dark) == pytest.approx(0.2)
    assert max_difference(light, light) == 0
    assert math.isnan(max_difference(dark * math.nan, light))
