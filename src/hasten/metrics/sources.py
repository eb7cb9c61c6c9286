"""Pictures, films and latents wherever they are: in memory, in files, in folders; and which belong together."""

from __future__ import annotations

import pickle
import re
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageSequence, UnidentifiedImageError

from hasten.errors import HastenError
from hasten.metrics.fidelity import to_float
from hasten.metrics.videos import to_frames

IMAGES = {".png", ".apng", ".gif", ".webp", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm"}
VIDEOS = {".mp4", ".mkv", ".webm", ".mov", ".avi"}
TENSORS = {".pt", ".npy", ".safetensors"}


@dataclass(frozen=True)
class Item:
    """One picture, film or latent; read only when it is needed.

    name: unique in its source; of a file, its path within the folder, with slashes.
    load: float64 frames (T, C, H, W) in [0, 1]; of a latent its tensor as it is.
    latent: a tensor file: no picture.
    path: of its file or folder, if it has one.
    """

    name: str
    load: Callable[[], torch.Tensor]
    latent: bool = False
    path: Path | None = None

    @property
    def stem(self) -> str:
        return re.sub(r"\.[^./]+$", "", self.name) if self.path else self.name


@dataclass(frozen=True)
class Matching:
    """Which items belong together, and which have no partner."""

    pairs: tuple[tuple[Item, Item], ...]
    left: tuple[str, ...]
    right: tuple[str, ...]


def open_source(source: Any, video: bool = False) -> list[Item]:
    """What there is to measure.

    Args:
        source: path of a file or a folder (searched to the bottom, hidden files passed over); a PIL image, array or
            tensor; or a sequence of these. A tensor or array with one more dimension than a picture is a batch of
            pictures, with two more a batch of films.
        video: a folder of pictures is one film, its frames in the order of their names (2 before 10); a folder of such
            folders is several; a batch or a sequence in memory is one film.

    Raises:
        HastenError: there is nothing there.
    """
    if isinstance(source, (str, Path)):
        return _open_path(Path(source), video)
    if isinstance(source, (list, tuple)):
        if not source:
            raise HastenError("there are no pictures: the sequence is empty")
        if video and not isinstance(source[0], (str, Path, list, tuple)):
            return [Item("0", lambda: to_frames(source))]
        if all(isinstance(one, (str, Path)) for one in source):
            return _unique([item for one in source for item in _open_path(Path(one), video)])
        return [Item(str(i), lambda one=one: _frames(one)) for i, one in enumerate(source)]  # type: ignore[misc]
    pixels = to_float(source)
    if pixels.ndim > 5:
        raise HastenError(f"no pictures: shape {tuple(pixels.shape)} has more dimensions than a batch of films")
    if pixels.ndim == 3 or (video and pixels.ndim == 4):
        return [Item("0", lambda: _frames(pixels))]
    return [Item(str(i), lambda one=one: _frames(one)) for i, one in enumerate(pixels)]  # type: ignore[misc]


def match(image: Sequence[Item], reference: Sequence[Item], key: Callable[[Item], Hashable | None]) -> Matching:
    """Pair items by name, then by name without its ending, then by `key`; a single one of each side is a pair.

    Args:
        key: what else identifies an item (such as prompt and seed), or None. Keys that a side has twice pair nothing.
    """
    if len(image) == len(reference) == 1:
        return Matching(((image[0], reference[0]),), (), ())
    partner: dict[str, Item] = {}
    taken: set[str] = set()
    for name_of in (lambda item: item.name, lambda item: item.stem, key):
        left = _by(name_of, [item for item in image if item.name not in partner])
        right = _by(name_of, [item for item in reference if item.name not in taken])
        for name in left.keys() & right.keys():
            partner[left[name].name] = right[name]
            taken.add(right[name].name)
    return Matching(
        tuple((item, partner[item.name]) for item in image if item.name in partner),
        tuple(item.name for item in image if item.name not in partner),
        tuple(item.name for item in reference if item.name not in taken),
    )


def _by(name_of: Callable[[Item], Hashable | None], items: Sequence[Item]) -> dict[Hashable, Item]:
    names = [name_of(item) for item in items]
    counts = Counter(names)
    return {name: item for name, item in zip(names, items, strict=True) if name is not None and counts[name] == 1}


def _open_path(path: Path, video: bool) -> list[Item]:
    if not path.exists():
        raise HastenError(f"{path}: no such file or folder")
    if path.is_file():
        return [_file(path, path.name)]
    if video:
        found = _films(path)
    else:
        known = IMAGES | VIDEOS | TENSORS
        files = [file for file in _visible(path, path.rglob("*")) if file.is_file() and file.suffix.lower() in known]
        found = [_file(file, file.relative_to(path).as_posix()) for file in files]
    if not found:
        raise HastenError(f"{path} holds nothing to measure: no {', '.join(sorted(IMAGES | VIDEOS | TENSORS))}")
    return found


def _films(folder: Path) -> list[Item]:
    frames = _images(folder)
    if frames:
        return [Item(folder.name, lambda: to_frames([_read_image(file)[0] for file in frames]), path=folder)]
    found = []
    for path in _visible(folder, folder.iterdir()):
        if path.is_dir() and _images(path):
            found += _films(path)
        elif path.is_file() and path.suffix.lower() in VIDEOS:
            found.append(_file(path, path.name))
    return found


def _images(folder: Path) -> list[Path]:
    return [path for path in _visible(folder, folder.iterdir()) if path.is_file() and path.suffix.lower() in IMAGES]


def _visible(folder: Path, paths: Any) -> list[Path]:
    shown = [path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]
    return sorted(shown, key=lambda path: natural(path.relative_to(folder).as_posix()))


def natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts frame_2 before frame_10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name) if part]


def _file(path: Path, name: str) -> Item:
    suffix = path.suffix.lower()
    if suffix in TENSORS:
        return Item(name, lambda: _read_tensor(path), latent=True, path=path)
    if suffix in VIDEOS:
        return Item(name, lambda: to_frames(_read_video(path)), path=path)
    return Item(name, lambda: to_frames(_read_image(path)), path=path)


def _frames(picture: Any) -> torch.Tensor:
    if isinstance(picture, (str, Path)):
        return _file(Path(picture), "").load()
    if isinstance(picture, (list, tuple)):
        return to_frames(picture)
    pixels = to_float(picture)
    return pixels if pixels.ndim == 4 else pixels[None]


def _unique(items: list[Item]) -> list[Item]:
    twice = [name for name, count in Counter(item.name for item in items).items() if count > 1]
    if twice:
        raise HastenError(f"several files are called {twice[0]}: give their folder instead")
    return items


def _read_image(path: Path) -> list[Image.Image]:
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) == 1:
                return [image.copy()]
            # A film's frames differ in palette and transparency; as RGB they are what is shown.
            return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError) as error:
        raise HastenError(f"{path} is no image that can be read: {error}") from error


def _read_video(path: Path) -> list[Image.Image]:
    try:
        import av
    except ImportError as error:
        raise HastenError(
            f"{path}: {path.suffix} is read by PyAV, which is not installed: pip install av "
            "(gif, animated png and webp, and folders of frames with --video, need nothing more)"
        ) from error
    try:
        with av.open(str(path)) as container:
            return [frame.to_image() for frame in container.decode(video=0)]
    except (OSError, ValueError, IndexError) as error:  # PyAV's own errors are all of these
        raise HastenError(f"{path} is no film that can be read: {error}") from error


def _read_tensor(path: Path) -> torch.Tensor:
    try:
        if path.suffix == ".npy":
            return torch.from_numpy(np.load(path, allow_pickle=False))
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content: Any = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, ValueError, TypeError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise HastenError(f"{path} is no tensor that can be read: {str(error).splitlines()[0]}") from error
    if isinstance(content, dict) and len(content) == 1:
        (content,) = content.values()
    if not isinstance(content, torch.Tensor):
        raise HastenError(f"{path} holds no single tensor")
    return content
