"""Names that any prompt survives; writes that leave no half file and replace none."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.errors import HastenError
from hasten.files import MAX_PROMPT_BYTES, check_writable, file_name, free_path, sanitize, write_new

DEFAULT = "{method}_{prompt}_{seed}.png"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red circle, left of a blue square!", "a_red_circle_left_of_a_blue_square"),
        ("一只红色的圆", "一只红色的圆"),
        ("دائرة حمراء", "دائرة_حمراء"),
        ("वृत्त लाल", "वृत्त_लाल"),
        ("../../etc/passwd", "etc_passwd"),
        ("C:\\Windows\\system32", "C_Windows_system32"),
        ("", "untitled"),
        ("!!!", "untitled"),
        ("...", "untitled"),
        ("🐱", "untitled"),
        ("line\nbreak\ttab\0nul", "line_break_tab_nul"),
        ("con", "con_"),
        ("NUL.txt", "NUL.txt_"),
        (".hidden", "hidden"),
        ("-rf", "rf"),
        ("e\u0301te\u0301", "été"),
        ("1.5 mm - wide", "1.5_mm_wide"),
    ],
)
def test_a_prompt_becomes_a_name(text: str, name: str) -> None:
    assert sanitize(text) == name


@given(st.text())
def test_no_prompt_escapes_its_folder_or_breaks_a_file_system(text: str) -> None:
    name = sanitize(text)
    assert name
    assert name not in (".", "..")
    assert not re.search(r'[/\\:*?"<>|\x00-\x1f\s]', name)
    assert name[0] not in ".-"
    assert name[-1] not in "."
    assert len(name.encode()) <= MAX_PROMPT_BYTES + 1
    made = file_name(DEFAULT, method="taylorseer", prompt=text, seed=2**63, index=0, steps=50)
    assert len(made.encode()) < 200
    assert sanitize(name) == name


def test_a_long_prompt_is_cut_between_characters() -> None:
    name = sanitize("圆" * 1000)
    assert name == "圆" * (MAX_PROMPT_BYTES // 3)


@pytest.mark.parametrize(
    ("pattern", "role", "name"),
    [
        (DEFAULT, "", "taylorseer_a_red_circle_7.png"),
        (DEFAULT, "compare", "compare_taylorseer_a_red_circle_7.png"),
        ("img_{index:03d}_steps{steps}.png", "", "img_012_steps50.png"),
        ("img_{index:03d}_steps{steps}.png", "reference", "reference_img_012_steps50.png"),
    ],
)
def test_an_images_name_tells_what_its_pattern_asks_for(pattern: str, role: str, name: str) -> None:
    made = file_name(pattern, method="taylorseer", prompt="a red circle", seed=7, index=12, steps=50, role=role)
    assert made == name


def _write(text: bytes):
    return lambda file: file.write(text)


def test_a_name_that_is_taken_gets_a_number(tmp_path: Path) -> None:
    wanted = tmp_path / "image.png"
    paths = [write_new(wanted, _write(bytes([n]))) for n in range(3)]
    assert [path.name for path in paths] == ["image.png", "image-2.png", "image-3.png"]
    assert [path.read_bytes() for path in paths] == [b"\0", b"\1", b"\2"]
    assert free_path(wanted).name == "image-4.png"
    assert free_path(wanted, taken=[tmp_path / "image-4.png"]).name == "image-5.png"


def test_names_are_kept_apart_without_hard_links_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(*args: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", no_links)
    paths = [write_new(tmp_path / "image.png", _write(bytes([n]))) for n in range(2)]
    assert [path.read_bytes() for path in paths] == [b"\0", b"\1"]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["image-2.png", "image.png"]


@pytest.mark.parametrize("kind", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_write_leaves_nothing(tmp_path: Path, kind: type[BaseException]) -> None:
    def half(file: BinaryIO) -> None:
        file.write(b"half")
        raise kind

    with pytest.raises(kind):
        write_new(tmp_path / "image.png", half)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_an_error_for_people(tmp_path: Path) -> None:
    def full(file: BinaryIO) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(HastenError, match=r"cannot write .*image\.png: No space left"):
        write_new(tmp_path / "image.png", full)
    assert list(tmp_path.iterdir()) == []


def test_written_files_are_as_readable_as_any_other(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert write_new(tmp_path / "image.png", _write(b"")).stat().st_mode == plain.stat().st_mode


def test_a_folder_is_made_where_there_is_none(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert (tmp_path / "a" / "b").is_dir()
    assert list((tmp_path / "a" / "b").iterdir()) == []


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HastenError, match="choose another folder with --out"):
        check_writable(tmp_path / "file" / "inside")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HastenError, match="Permission denied"):
        check_writable(tmp_path)
