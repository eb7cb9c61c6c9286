"""LPIPS with weights of AlexNet's form, against the formula written out."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tests.metrics.networks import save_alexnet

from hasten.errors import HastenError, LoadError
from hasten.metrics import Lpips


def by_hand(a: torch.Tensor, b: torch.Tensor, w: dict[str, torch.Tensor], linear: dict[str, torch.Tensor]) -> float:
    shift, scale = torch.tensor([-0.030, -0.088, -0.188]), torch.tensor([0.458, 0.448, 0.450])

    def taps(x: torch.Tensor) -> list[torch.Tensor]:
        x = ((2 * x - 1 - shift[:, None, None]) / scale[:, None, None])[None]
        one = F.relu(F.conv2d(x, w["features.0.weight"], w["features.0.bias"], stride=4, padding=2))
        two = F.relu(F.conv2d(F.max_pool2d(one, 3, 2), w["features.3.weight"], w["features.3.bias"], padding=2))
        three = F.relu(F.conv2d(F.max_pool2d(two, 3, 2), w["features.6.weight"], w["features.6.bias"], padding=1))
        four = F.relu(F.conv2d(three, w["features.8.weight"], w["features.8.bias"], padding=1))
        five = F.relu(F.conv2d(four, w["features.10.weight"], w["features.10.bias"], padding=1))
        return [F.normalize(x[0], dim=0) for x in (one, two, three, four, five)]

    total = 0.0
    for i, (x, y) in enumerate(zip(taps(a), taps(b), strict=True)):
        total += ((x - y) ** 2 * linear[f"lin{i}.model.1.weight"][0]).sum(0).mean().item()
    return total


def test_the_distance_is_that_of_the_paper(tmp_path: Path) -> None:
    backbone, linear = save_alexnet(tmp_path)
    a, b = torch.rand(2, 3, 40, 48, generator=torch.Generator().manual_seed(0))
    lpips = Lpips(tmp_path)
    assert lpips.name == "alex"
    assert lpips(a, b) == pytest.approx(by_hand(a, b, backbone, linear), rel=1e-4)
    assert lpips(a, b) == pytest.approx(lpips(b, a))
    assert lpips(a, a) == 0


def test_batches_are_means_and_grey_bytes_are_pictures(tmp_path: Path) -> None:
    save_alexnet(tmp_path)
    lpips = Lpips(tmp_path / "alexnet-owt-tiny.pth")
    a, b = torch.randint(0, 256, (2, 2, 1, 40, 40), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert lpips(a, b) == pytest.approx((lpips(a[0], b[0]) + lpips(a[1], b[1])) / 2)
    assert lpips(a[0], a[0].expand(3, 40, 40)) == pytest.approx(0, abs=1e-6)


def test_vgg_is_told_by_its_depth(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for i, index in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)):
        weights[f"features.{index}.weight"] = torch.randn(4, 3 if i == 0 else 4, 3, 3, generator=generator) / 3
        weights[f"features.{index}.bias"] = torch.rand(4, generator=generator)
    save_file(weights, tmp_path / "vgg16.safetensors")
    save_file({f"lin{i}.model.1.weight": torch.ones(1, 4, 1, 1) for i in range(5)}, tmp_path / "vgg.safetensors")
    lpips = Lpips(tmp_path)
    a, b = torch.rand(2, 3, 16, 16, generator=generator)
    assert lpips.name == "vgg"
    assert 0 < lpips(a, b) <= 5 * 4  # five taps of unit vectors


def test_the_linear_weights_that_torchmetrics_brings_are_found(tmp_path: Path) -> None:
    pytest.importorskip("torchmetrics")
    save_alexnet(tmp_path)
    (tmp_path / "alex.pth").unlink()
    channels = [weight.shape[1] for weight in Lpips(tmp_path)._linear]
    assert channels == [64, 192, 384, 256, 256]


def test_sizes_that_cannot_be_measured_are_refused(tmp_path: Path) -> None:
    save_alexnet(tmp_path)
    lpips = Lpips(tmp_path)
    with pytest.raises(HastenError, match="needs 31 pixels a side; these have 30"):
        lpips(torch.zeros(3, 30, 64), torch.zeros(3, 30, 64))
    assert lpips(torch.zeros(3, 31, 31), torch.zeros(3, 31, 31)) == 0
    with pytest.raises(HastenError, match="different sizes"):
        lpips(torch.zeros(3, 32, 40), torch.zeros(3, 40, 32))


def test_missing_or_strange_weights_are_told(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no such file or folder\. LPIPS needs a file of torchvision's AlexNet"):
        Lpips(tmp_path / "none")
    with pytest.raises(LoadError, match="holds no alexnet… or vgg16… file"):
        Lpips(tmp_path)
    (tmp_path / "alexnet.pth").write_text("no weights")
    with pytest.raises(LoadError, match=r"alexnet\.pth is no file of weights"):
        Lpips(tmp_path)
    torch.save({"layer": torch.zeros(1)}, tmp_path / "alexnet.pth")
    with pytest.raises(LoadError, match="is no AlexNet or VGG16 of torchvision"):
        Lpips(tmp_path)
