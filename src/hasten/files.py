"""File names that any prompt survives, and writes that never leave half a file or overwrite one."""

from __future__ import annotations

import itertools
import os
import tempfile
import unicodedata
from collections.abc import Callable, Collection
from pathlib import Path
from string import Formatter
from typing import IO

from hasten.errors import HastenError

# File systems stop at 255 bytes; this leaves room for the method, the seed and a counter.
MAX_PROMPT_BYTES = 120
_RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{n}" for port in ("com", "lpt") for n in range(1, 10))}


def sanitize(text: str, max_bytes: int = MAX_PROMPT_BYTES) -> str:
    """Text of any script as a part of a file name: letters, digits and their marks stay, the rest becomes `_`.

    Args:
        text: e.g. a prompt.
        max_bytes: longest result, in bytes of UTF-8; no character is cut in two.

    Returns:
        A non-empty name without separators, dots at its ends, or a name that Windows reserves.
    """
    kept = (
        character if unicodedata.category(character)[0] in "LNM" or character in "-." else "_"
        for character in unicodedata.normalize("NFC", text)
    )
    name = "_".join(part for part in "".join(kept).split("_") if part.strip("-."))
    while len(name.encode()) > max_bytes:
        name = name[:-1]
    name = name.strip("._-") or "untitled"
    return f"{name}_" if name.split(".")[0].casefold() in _RESERVED else name


def file_name(pattern: str, *, method: str, prompt: str, seed: int, index: int, steps: int, role: str = "") -> str:
    """The name of an image by a plan's `io.filename`, safe on every file system.

    Args:
        pattern: with `{method}`, `{prompt}`, `{seed}`, `{index}`, `{steps}`.
        role: "reference", "compare", "grid" for what is made beside the images.

    >>> file_name("img_{index:03d}_steps{steps}.png", method="none", prompt="a", seed=0, index=7, steps=20)
    'img_007_steps20.png'
    """
    tells_method = any(field == "method" for _, field, _, _ in Formatter().parse(pattern))
    if role and not tells_method:
        pattern = f"{role}_{pattern}"
    kind = method if role in ("", method) else f"{role}_{method}"
    return pattern.format(method=sanitize(kind), prompt=sanitize(prompt), seed=seed, index=index, steps=steps)


def free_path(path: Path, taken: Collection[Path] = ()) -> Path:
    """The first of `name.png`, `name-2.png`, `name-3.png`, … that neither exists nor is taken."""
    candidates = (path if count == 1 else numbered(path, count) for count in itertools.count(1))
    return next(candidate for candidate in candidates if not candidate.exists() and candidate not in taken)


def numbered(path: Path, count: int) -> Path:
    return path.with_name(f"{path.stem}-{count}{path.suffix}")


def check_writable(folder: Path) -> None:
    """Make the folder and try to write into it, so that a long run does not end at a closed door.

    Raises:
        HastenError: the folder cannot be made or written to.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise HastenError(f"cannot write to {folder}: {error.strerror}; choose another folder with --out") from error


def write_new(path: Path, write: Callable[[IO[bytes]], object]) -> Path:
    """Write a file in one piece under a name that is free: `name.png`, else `name-2.png`, `name-3.png`, …

    The bytes go to a temporary file beside it first, so that an interrupt leaves nothing under the real name.

    Args:
        path: the wanted name.
        write: gets the open temporary file.

    Returns:
        The name that was taken.
    Raises:
        HastenError: the file system refuses.
    """
    temporary: Path | None = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".hasten-", suffix=".tmp", delete=False) as file:
            temporary = Path(file.name)
            write(file)
        temporary.chmod(0o666 & ~_umask())  # temporary files are private, pictures are not
        return _publish(temporary, path)
    except OSError as error:
        raise HastenError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _publish(temporary: Path, path: Path) -> Path:
    count = 1
    while True:
        target = path if count == 1 else numbered(path, count)
        try:
            # A hard link is atomic and fails where the name is taken, also by another process at this moment.
            os.link(temporary, target)
        except FileExistsError:
            count += 1
        except OSError:  # no hard links here (FAT, some network drives)
            try:
                os.close(os.open(target, os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                count += 1
                continue
            temporary.replace(target)
            return target
        else:
            return target


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask
