"""What the distance of two sets of pictures is measured in: an extractor makes a vector of every picture."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from hasten.devices import resolve_device
from hasten.errors import HastenError, LoadError
from hasten.metrics.clip import Clip, load_network, model_type, pixel_statistics, prepare
from hasten.metrics.fidelity import to_float
from hasten.metrics.scenes import Reading, read
from hasten.zoo.scenes import BACKGROUNDS, COLOURS, SHAPES

_SIDE = 128  # pixels: the bundled models' size, which the reader of scenes is made for


@dataclass(frozen=True)
class Extractor:
    """Features of pictures.

    name: stands beside every distance that is measured in them.
    extract: frames (N, 3, H, W), float in [0, 1] → (N, D).
    """

    name: str
    extract: Callable[[torch.Tensor], torch.Tensor]

    def __call__(self, frames: torch.Tensor) -> torch.Tensor:
        """Features (N, D), float64, of frames (N, 1 or 3, H, W) in [0, 1].

        Raises:
            HastenError: the frames hold NaN or infinity.
        """
        if not frames.isfinite().all():
            raise HastenError("a picture that holds NaN or infinity has no features")
        with torch.inference_mode():
            return self.extract(frames.expand(-1, 3, -1, -1)).double().cpu()


def load_extractor(source: str | Path, device: str = "cpu") -> Extractor:
    """Find an extractor by what the user names.

    Args:
        source: "scenes" (hand-made, needs no weights: see `scenes_features`); a folder of a CLIP or another vision
            model of transformers; or a TorchScript file (.pt) that takes bytes (N, 3, H, W) and, like StyleGAN's
            inception-2015-12-05.pt, may take `return_features=True`. With that file the Fréchet distance is the FID.
        device: where a network runs.

    Raises:
        LoadError: there is no such file or folder, or it holds something else.
    """
    if str(source) == "scenes":
        return Extractor("scenes features", lambda frames: torch.stack([scenes_features(frame) for frame in frames]))
    path = Path(source)
    if path.is_file():
        return _torchscript(path, device)
    if not (path / "config.json").is_file():
        raise LoadError(f"{source}: no extractor: give scenes, a folder with a config.json, or a TorchScript file")
    kind = model_type(path)
    if kind == "clip":
        return Extractor(f"{path.name} (CLIP)", Clip(path, device).embed_images)
    return _vision_model(path, str(kind), device)


def scenes_features(picture: Any) -> torch.Tensor:
    """What the analytic reader sees in a drawn scene, and a few figures of its pixels: float64 (32,).

    Background, number of objects, counts of each colour and shape, mean and spread of the objects' places, their sizes
    and how well their outlines fit; the channels' means and deviations, and the strength of edges. Made by hand for the
    bundled models' scenes: on photographs it says next to nothing.
    """
    pixels = to_float(picture).float()
    pixels = F.interpolate(pixels[None].expand(-1, 3, -1, -1), (_SIDE, _SIDE), mode="bilinear", antialias=True)[0]
    reading = read(pixels)
    edges = pixels.diff(dim=-1).abs().mean() + pixels.diff(dim=-2).abs().mean()
    plain = (*pixels.mean((1, 2)).tolist(), *pixels.std((1, 2)).tolist(), 10 * edges.item())
    return torch.tensor((*_told(reading), *plain), dtype=torch.float64)


def _told(reading: Reading) -> list[float]:
    objects = reading.objects
    count = max(1, len(objects))
    mean = {key: sum(getattr(one, key) for one in objects) / count for key in ("x", "y", "side", "overlap")}
    spread = [sum((getattr(one, key) - mean[key]) ** 2 for one in objects) / count for key in ("x", "y")]
    return [
        *(float(reading.background == name) for name in BACKGROUNDS),
        len(objects) / 3,
        *(float(sum(one.colour == name for one in objects)) for name in COLOURS),
        *(float(sum(one.shape == name for one in objects)) for name in SHAPES),
        *mean.values(),
        *(value**0.5 for value in spread),
    ]


def _vision_model(folder: Path, kind: str, device: str) -> Extractor:
    from transformers import AutoModel

    model, missing = load_network(AutoModel, folder)
    # A classifier's folder has no pooler: transformers makes up a random one. Its class token is what was trained.
    pools = not any(name.startswith("pooler.") for name in missing)
    if lacking := [name for name in missing if not name.startswith("pooler.")]:
        raise LoadError(f"{folder} is no whole model: its weights lack {lacking[0]}")
    where = resolve_device(device)
    model.to(where).eval()
    size = getattr(model.config, "image_size", None)
    if not isinstance(size, int):
        raise LoadError(f"{folder}: {kind} is no vision model: its config.json names no image_size")
    mean, std = pixel_statistics(folder, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

    def extract(frames: torch.Tensor) -> torch.Tensor:
        output = model(pixel_values=prepare(frames, size, mean, std).to(where))
        pooled = getattr(output, "pooler_output", None) if pools else None
        return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)

    return Extractor(f"{folder.name} ({kind})", extract)


def _torchscript(file: Path, device: str) -> Extractor:
    where = resolve_device(device)
    try:
        with warnings.catch_warnings():
            # torch calls TorchScript deprecated; the Inception network that FID is defined with comes in no other form.
            warnings.simplefilter("ignore", DeprecationWarning)
            network: Any = torch.jit.load(str(file), map_location=where).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise LoadError(f"{file} is no TorchScript file: {str(error).splitlines()[0]}") from error
    takes = "return_features" in str(network.forward.schema) if hasattr(network, "forward") else False
    keywords = {"return_features": True} if takes else {}

    def extract(frames: torch.Tensor) -> torch.Tensor:
        # Such networks are defined on bytes, resizing included.
        output = network((frames * 255).round().clamp(0, 255).to(torch.uint8).to(where), **keywords)
        if not isinstance(output, torch.Tensor):
            raise LoadError(f"{file} gives a {type(output).__name__}, not one tensor of features")
        return output.flatten(1)

    return Extractor(file.name, extract)
