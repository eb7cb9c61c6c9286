"""Finding what is to be measured, and what belongs together."""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from hasten.errors import HastenError
from hasten.metrics.sources import Item, match, open_source


def save(path: Path, *levels: int, mode: str = "L") -> Path:
    """A picture, or a film of several, whose frames are grey."""
    path.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = (Image.new("L", (6, 4), level).convert(mode) for level in levels)
    first.save(path, **({"save_all": True, "append_images": rest, "duration": 100} if rest else {}))
    return path


def levels(item: Item) -> list[int]:
    return [round(frame.mean().item() * 255) for frame in item.load()]


def none(_: Item) -> None:
    return None


def names(items: list[Item]) -> list[str]:
    return [item.name for item in items]


def test_a_folder_is_searched_to_the_bottom_in_the_order_of_its_numbers(tmp_path: Path) -> None:
    for name in ("b/10.png", "b/9.png", "a.jpg", ".cache/x.png", "b/.hidden.png"):
        save(tmp_path / name, 7)
    (tmp_path / "notes.txt").write_text("no picture")
    assert names(open_source(tmp_path)) == ["a.jpg", "b/9.png", "b/10.png"]


@pytest.mark.parametrize("name", ["film.gif", "film.png", "film.webp"])
def test_an_animation_is_a_film(tmp_path: Path, name: str) -> None:
    (item,) = open_source(save(tmp_path / name, 0, 120, 255, mode="RGB"))
    frames = item.load()
    assert frames.shape == (3, 3, 4, 6)
    assert levels(item) == pytest.approx([0, 120, 255], abs=2)


def test_a_folder_of_frames_is_a_film_when_asked_for(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        for level in (2, 10, 1):
            save(tmp_path / folder / f"frame_{level}.png", level)
    (film,) = open_source(tmp_path / "one", video=True)
    assert film.name == "one"
    assert levels(film) == [1, 2, 10]
    assert names(open_source(tmp_path, video=True)) == ["one", "two"]
    assert len(open_source(tmp_path)) == 6


def test_an_mp4_is_read_by_pyav_where_it_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "film.mp4").write_bytes(b"film")
    monkeypatch.setitem(sys.modules, "av", None)
    (item,) = open_source(tmp_path)
    with pytest.raises(HastenError, match=r"film\.mp4: \.mp4 is read by PyAV, which is not installed: pip install av"):
        item.load()

    class Container:
        def __enter__(self) -> Container:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def decode(self, video: int) -> list[types.SimpleNamespace]:
            assert video == 0
            return [
                types.SimpleNamespace(to_image=lambda level=level: Image.new("L", (4, 4), level)) for level in (1, 2)
            ]

    monkeypatch.setitem(sys.modules, "av", types.SimpleNamespace(open=lambda path: Container()))
    assert levels(item) == [1, 2]


def test_tensor_files_are_latents(tmp_path: Path) -> None:
    tensor = torch.arange(6.0).view(2, 3)
    np.save(tmp_path / "a.npy", tensor.numpy())
    torch.save(tensor, tmp_path / "b.pt")
    save_file({"latents": tensor}, tmp_path / "c.safetensors")
    items = open_source(tmp_path)
    assert all(item.latent for item in items)
    for item in items:
        torch.testing.assert_close(item.load(), tensor)
    torch.save({"a": tensor, "b": tensor}, tmp_path / "b.pt")
    with pytest.raises(HastenError, match="holds no single tensor"):
        items[1].load()


def test_a_pickle_that_runs_code_is_not_read(tmp_path: Path) -> None:
    torch.save(Path("x"), tmp_path / "a.pt")
    with pytest.raises(HastenError, match="no tensor that can be read"):
        open_source(tmp_path / "a.pt")[0].load()


@pytest.mark.parametrize(
    ("source", "video", "shapes"),
    [
        (Image.new("L", (6, 4)), False, [(1, 1, 4, 6)]),
        (np.zeros((4, 6, 3), np.uint8), False, [(1, 3, 4, 6)]),
        (torch.zeros(2, 3, 4, 6), False, [(1, 3, 4, 6)] * 2),
        (torch.zeros(2, 3, 4, 6), True, [(2, 3, 4, 6)]),
        (torch.zeros(2, 5, 3, 4, 6), False, [(5, 3, 4, 6)] * 2),
        ([Image.new("RGB", (6, 4)), torch.zeros(1, 4, 6)], False, [(1, 3, 4, 6), (1, 1, 4, 6)]),
        ([Image.new("RGB", (6, 4))] * 3, True, [(3, 3, 4, 6)]),
        ([[Image.new("RGB", (6, 4))] * 3, torch.zeros(2, 3, 4, 6)], True, [(3, 3, 4, 6), (2, 3, 4, 6)]),
    ],
)
def test_what_is_in_memory_is_taken_as_it_comes(source: object, video: bool, shapes: list[tuple[int, ...]]) -> None:
    assert [tuple(item.load().shape) for item in open_source(source, video)] == shapes


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: folder / "none.png", r"none\.png: no such file or folder"),
        (lambda folder: folder, "holds nothing to measure"),
        (lambda folder: [], "the sequence is empty"),
        (lambda folder: [save(folder / "a/x.png", 1), save(folder / "b/x.png", 1)], r"several files are called x\.png"),
        (lambda folder: torch.zeros(1, 1, 1, 3, 4, 4), "more dimensions than a batch of films"),
    ],
)
def test_where_there_is_nothing_that_is_said(tmp_path: Path, make: Callable[[Path], object], message: str) -> None:
    with pytest.raises(HastenError, match=message):
        open_source(make(tmp_path))


def test_a_file_that_is_no_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_text("no image")
    with pytest.raises(HastenError, match=r"a\.png is no image that can be read"):
        open_source(tmp_path)[0].load()


def test_names_pair_first_then_stems_then_the_key(tmp_path: Path) -> None:
    left = [Item(name, torch.Tensor, path=tmp_path) for name in ("a.png", "b.png", "taylorseer_x.png", "lonely.png")]
    right = [Item(name, torch.Tensor, path=tmp_path) for name in ("none_x.png", "b.jpg", "a.png", "other.png")]
    found = match(left, right, lambda item: "x" if "_x" in item.name else None)
    paired = {a.name: b.name for a, b in found.pairs}
    assert paired == {"a.png": "a.png", "b.png": "b.jpg", "taylorseer_x.png": "none_x.png"}
    assert (found.left, found.right) == (("lonely.png",), ("other.png",))


def test_what_is_ambiguous_pairs_nothing(tmp_path: Path) -> None:
    left = [Item(name, torch.Tensor, path=tmp_path) for name in ("a.png", "a.jpg")]
    right = [Item(name, torch.Tensor, path=tmp_path) for name in ("a.webp", "b.png")]
    assert match(left, right, none).pairs == ()
    assert match(left, right, lambda item: "the same").pairs == ()


def test_one_and_one_are_a_pair_whatever_they_are_called(tmp_path: Path) -> None:
    a, b = Item("a.png", torch.Tensor, path=tmp_path), Item("b.jpg", torch.Tensor, path=tmp_path)
    assert match([a], [b], none).pairs == ((a, b),)
