"""LPIPS: the distance of two pictures in the features of a network that people's judgements were fitted to.

Zhang et al., 2018, "The unreasonable effectiveness of deep features as a perceptual metric", arXiv 1801.03924.
Nothing is downloaded: the weights are files that the user names.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from hasten.devices import resolve_device
from hasten.errors import HastenError, LoadError
from hasten.metrics.fidelity import to_float

if TYPE_CHECKING:
    from hasten.metrics.fidelity import Picture


@dataclass(frozen=True)
class _Backbone:
    """torchvision's `features`: (index, stride, padding) of its convolutions; pools before and taps after some."""

    convolutions: tuple[tuple[int, int, int], ...]
    pools: tuple[int, ...]
    taps: tuple[int, ...]
    pool_size: int
    smallest: int  # side of the smallest picture that reaches the last tap


_VGG = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
_BACKBONES = {
    "alex": _Backbone(((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1)), (3, 6), (0, 3, 6, 8, 10), 3, 31),
    "vgg": _Backbone(tuple((i, 1, 1) for i in _VGG), (5, 10, 17, 24), (2, 7, 14, 21, 28), 2, 16),
}
_NEEDED = (
    "LPIPS needs a file of torchvision's AlexNet or VGG16 weights (alexnet-….pth, vgg16-….pth) and, beside it, LPIPS' "
    "own linear weights (alex.pth, vgg.pth), which torchmetrics also brings: pip install 'hasten[metrics]'"
)


class Lpips:
    """LPIPS with local weights.

    Args:
        path: the backbone's file (.pth or .safetensors), or a folder that holds it.
        device: where it runs.

    Raises:
        LoadError: a file is missing or holds something else; the message says what is needed and where.
    """

    def __init__(self, path: str | Path, device: str = "cpu") -> None:
        file = _backbone_file(Path(path))
        self.device = resolve_device(device)
        weights = _read(file)
        # VGG16 has a convolution at features.28, AlexNet ends at features.10.
        self.name = "vgg" if "features.28.weight" in weights else "alex"
        self._backbone = _BACKBONES[self.name]
        linear_file = _linear_file(file.parent, self.name)
        linear = _read(linear_file)
        try:
            self._convolutions = {
                index: tuple(weights[f"features.{index}.{part}"].float().to(self.device) for part in ("weight", "bias"))
                for index, _, _ in self._backbone.convolutions
            }
        except KeyError as error:
            raise LoadError(f"{file} holds no {error}: it is no AlexNet or VGG16 of torchvision") from error
        try:
            self._linear = [linear[f"lin{i}.model.1.weight"].float().to(self.device) for i in range(5)]
        except KeyError as error:
            raise LoadError(f"{linear_file} holds no {error}: it is not LPIPS' linear weights") from error

    def __call__(self, image: Picture, reference: Picture) -> float:
        """The distance, 0 for identical pictures; a batch's mean.

        Raises:
            HastenError: different sizes, or pictures too small for the network.
        """
        a, b = (self._prepare(picture) for picture in (image, reference))
        if a.shape != b.shape:
            raise HastenError(f"pictures of different sizes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
        if min(a.shape[-2:]) < self._backbone.smallest:
            raise HastenError(
                f"LPIPS ({self.name}) needs {self._backbone.smallest} pixels a side; these have {min(a.shape[-2:])}"
            )
        total = torch.zeros(len(a), device=self.device)
        with torch.inference_mode():
            for x, y, linear in zip(self._features(a), self._features(b), self._linear, strict=True):
                total += F.conv2d((x - y).square(), linear).mean(dim=(1, 2, 3))
        return total.mean().item()

    def _prepare(self, picture: Picture) -> torch.Tensor:
        pixels = to_float(picture).float().to(self.device)
        pixels = pixels.reshape(-1, *pixels.shape[-3:])
        shift = pixels.new_tensor((-0.030, -0.088, -0.188)).view(3, 1, 1)
        scale = pixels.new_tensor((0.458, 0.448, 0.450)).view(3, 1, 1)
        return (2 * pixels.expand(-1, 3, -1, -1) - 1 - shift) / scale

    def _features(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Activations at the taps, each of unit length over its channels."""
        taps = []
        for index, stride, padding in self._backbone.convolutions:
            if index in self._backbone.pools:
                x = F.max_pool2d(x, self._backbone.pool_size, 2)
            weight, bias = self._convolutions[index]
            x = F.conv2d(x, weight, bias, stride, padding).relu()
            if index in self._backbone.taps:
                taps.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return taps


def _backbone_file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise LoadError(f"{path}: no such file or folder. {_NEEDED}")
    found = [file for kind in ("alexnet", "vgg16") for file in sorted(path.glob(f"{kind}*")) if file.is_file()]
    if not found:
        raise LoadError(f"{path} holds no alexnet… or vgg16… file. {_NEEDED}")
    return found[0]


def _linear_file(folder: Path, name: str) -> Path:
    for suffix in (".pth", ".safetensors"):
        if (folder / f"{name}{suffix}").is_file():
            return folder / f"{name}{suffix}"
    spec = find_spec("torchmetrics")  # found without importing it
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / "functional" / "image" / "lpips_models" / f"{name}.pth"
        if file.is_file():
            return file
    raise LoadError(f"there is no {name}.pth in {folder}. {_NEEDED}")


def _read(file: Path) -> dict[str, torch.Tensor]:
    try:
        if file.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(file)
        content = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
        raise LoadError(f"{file} is no file of weights: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict):
        raise LoadError(f"{file} is no file of weights: it holds a {type(content).__name__}")
    return content
