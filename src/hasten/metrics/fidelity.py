"""How close an image is to its reference, computed in float.

On uint8 arrays a difference of -1 wraps around to 255 and a PSNR means nothing; everything here is float64 in [0, 1].
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from hasten.errors import HastenError

if TYPE_CHECKING:
    from PIL.Image import Image

    Picture = Image | np.ndarray[Any, Any] | torch.Tensor

_SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # of MS-SSIM, finest first: the paper's


def to_float(image: Picture) -> torch.Tensor:
    """A picture as float64 in [0, 1], channels first.

    Args:
        image: PIL image; array of shape (..., H, W, C) or (H, W); tensor of shape (..., C, H, W) or (H, W).
            Integers are divided by their type's maximum, floats are taken to lie in [0, 1] already.

    Returns:
        Tensor of shape (..., C, H, W), on the CPU.
    Raises:
        HastenError: the shape or the type is no picture's.
    """
    if isinstance(image, torch.Tensor):
        tensor = image.detach().cpu()
    elif isinstance(image, np.ndarray):
        tensor = torch.from_numpy(np.ascontiguousarray(image))
        tensor = tensor.movedim(-1, -3) if tensor.ndim > 2 else tensor
    elif hasattr(image, "convert"):
        plain = image if image.mode in ("L", "RGB", "I;16", "F") else image.convert("RGB")
        array = np.array(plain)
        tensor = torch.from_numpy(array.astype(np.float32) / 65535 if plain.mode == "I;16" else array)
        tensor = tensor.movedim(-1, -3) if tensor.ndim > 2 else tensor
    else:
        raise HastenError(f"no picture: {type(image).__name__}; give a PIL image, an array or a tensor")
    if tensor.ndim < 2 or tensor.is_complex():
        raise HastenError(f"no picture: shape {tuple(tensor.shape)}, {tensor.dtype}; expected (..., C, H, W)")
    if tensor.ndim == 2:
        tensor = tensor[None]
    if tensor.dtype.is_floating_point or tensor.dtype is torch.bool:
        return tensor.double()
    return tensor.double() / torch.iinfo(tensor.dtype).max


def _pair(image: Picture, reference: Picture) -> tuple[torch.Tensor, torch.Tensor]:
    a, b = to_float(image), to_float(reference)
    if a.shape[-3] == 1 or b.shape[-3] == 1:  # a grey picture is an RGB picture with equal channels
        channels = max(a.shape[-3], b.shape[-3])
        a, b = (x.expand(*x.shape[:-3], channels, *x.shape[-2:]) if x.shape[-3] == 1 else x for x in (a, b))
    if a.shape != b.shape:
        raise HastenError(f"pictures of different sizes cannot be compared: {tuple(a.shape)} and {tuple(b.shape)}")
    return a, b


def psnr(image: Picture, reference: Picture) -> float:
    """Peak signal-to-noise ratio in dB, peak 1.0; higher is closer.

    Args:
        image, reference: pictures of the same size (see `to_float`); a batch is measured as one signal.

    Returns:
        dB; inf where they are identical, nan where either holds NaN or infinity.
    Raises:
        HastenError: different sizes.
    """
    a, b = _pair(image, reference)
    error = (a - b).square().mean().item()
    if not math.isfinite(error):
        return math.nan
    return math.inf if error == 0 else -10 * math.log10(error)


def ssim(image: Picture, reference: Picture) -> float:
    """Structural similarity, 1 for identical pictures: mean over channels and all places of an 11-pixel window.

    Gaussian window of sigma 1.5, k1 = 0.01, k2 = 0.03, population statistics, borders reflected (torchmetrics'
    convention; the paper leaves borders out). Wang et al., 2004, "Image quality assessment: from error visibility to
    structural similarity". Pictures with a side below 11 pixels are measured with the largest odd window that fits.

    Returns:
        At most 1; nan where either picture holds NaN or infinity.
    Raises:
        HastenError: different sizes.
    """
    a, b = _pair(image, reference)
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    a, b = (x.reshape(-1, 1, *x.shape[-2:]) for x in (a, b))
    side = min(11, *a.shape[-2:])
    side -= 1 - side % 2
    position = torch.arange(side, dtype=torch.float64) - side // 2
    bell = torch.exp(-position.square() / (2 * 1.5**2))
    bell = bell / bell.sum()

    def blur(x: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pad(x, (side // 2,) * 4, mode="reflect")
        x = torch.nn.functional.conv2d(x, bell.view(1, 1, 1, side))
        return torch.nn.functional.conv2d(x, bell.view(1, 1, side, 1))

    mean_a, mean_b = blur(a), blur(b)
    variance_a, variance_b = ((blur(x * x) - mean**2).clamp_min(0) for x, mean in ((a, mean_a), (b, mean_b)))
    covariance = blur(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    likeness = (2 * mean_a * mean_b + c1) * (2 * covariance + c2)
    return (likeness / ((mean_a**2 + mean_b**2 + c1) * (variance_a + variance_b + c2))).mean().item()


def ms_ssim(image: Picture, reference: Picture, scales: int = 5) -> float:
    """Multi-scale structural similarity, 1 for identical pictures (torchmetrics; extra `metrics`).

    Wang et al., 2003, "Multi-scale structural similarity for image quality assessment".

    Args:
        image, reference: pictures of the same size; the shorter side has to be 176 pixels for the paper's five scales,
            99 for four, 44 for three.
        scales: with fewer, the paper's first weights are used, scaled to a sum of 1; say so beside the figure.

    Returns:
        At most 1; nan where either picture holds NaN or infinity.
    Raises:
        HastenError: different sizes, pictures too small, or torchmetrics is not installed.
    """
    if not 1 <= scales <= len(_SCALE_WEIGHTS):
        raise HastenError(f"MS-SSIM has 1 to {len(_SCALE_WEIGHTS)} scales, not {scales}")
    a, b = _pair(image, reference)
    # The window of 11 pixels has to fit into the coarsest scale; torchmetrics asks for the squares.
    side, needed = min(a.shape[-2:]), 11 * max((scales - 1) ** 2, 2 ** (scales - 1))
    if side < needed:
        raise HastenError(f"MS-SSIM at {scales} scales needs {needed} pixels a side; these have {side}")
    if not (a.isfinite().all() and b.isfinite().all()):
        return math.nan
    try:
        from torchmetrics.functional.image import multiscale_structural_similarity_index_measure as measure
    except ImportError as error:
        raise HastenError("MS-SSIM is computed by torchmetrics: pip install 'hasten[metrics]'") from error
    weights = _SCALE_WEIGHTS[:scales]
    a, b = (x.reshape(-1, *x.shape[-3:]) for x in (a, b))
    betas = tuple(weight / sum(weights) for weight in weights)
    return float(measure(a, b, data_range=1.0, betas=betas))


def max_difference(image: Picture, reference: Picture) -> float:
    """The largest difference of any value, 0 for identical pictures; nan where either holds NaN or infinity.

    Raises:
        HastenError: different sizes.
    """
    a, b = _pair(image, reference)
    largest = (a - b).abs().max().item()
    return largest if math.isfinite(largest) else math.nan


def identical(image: Picture, reference: Picture) -> bool:
    """Whether every value is the same; False where either picture holds NaN.

    Raises:
        HastenError: different sizes.
    """
    return torch.equal(*_pair(image, reference))
