"""What `pip install` brings, and what `import hasten` offers."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

import hasten

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel() -> dict[str, int]:
    """The files of the wheel and their sizes in bytes."""
    included = WheelBuilder(str(ROOT)).recurse_included_files()
    return {file.distribution_path: Path(file.path).stat().st_size for file in included}


def test_the_wheel_has_the_presets_the_type_marker_and_every_module(wheel: dict[str, int]) -> None:
    assert "hasten/py.typed" in wheel
    source = ROOT / "src" / "hasten"
    for pattern in ("presets/*.yaml", "**/*.py", "**/*.j2"):
        for file in source.glob(pattern):
            assert f"hasten/{file.relative_to(source).as_posix()}" in wheel


def test_the_wheel_has_the_bundled_weights_and_stays_small(wheel: dict[str, int]) -> None:
    weights = ROOT / "src" / "hasten" / "zoo" / "weights"
    for file in weights.rglob("*"):
        if file.is_file():
            assert f"hasten/zoo/weights/{file.relative_to(weights).as_posix()}" in wheel
    assert sum(wheel.values()) < 100e6


def test_every_public_name_is_there() -> None:
    for name in hasten.__all__:
        assert getattr(hasten, name) is not None
    assert set(hasten.__all__) <= set(dir(hasten))
    with pytest.raises(AttributeError, match="no attribute 'acelerate'"):
        hasten.acelerate  # noqa: B018


def test_import_hasten_imports_no_torch() -> None:
    code = "import sys, hasten; print('torch' in sys.modules, hasten.Plan, 'torch' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "False <class 'hasten.plan.schema.Plan'> False\n"


def test_the_constraints_pin_everything_that_the_package_names() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pinned = {
        re.sub(r"[-_.]+", "-", line.partition("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line and not line.startswith("#")
    }
    for requirement in [*project["dependencies"], *project["optional-dependencies"]["dev"]]:
        name = re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()  # type: ignore[index]
        assert name in pinned, f"{name} is not in constraints.txt"
