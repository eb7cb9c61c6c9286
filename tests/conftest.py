"""What every test has in common: no network, plain output of a fixed width."""

from __future__ import annotations

import os

import pytest

# Read when huggingface_hub and rich are imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        from hasten.devices import available

        if available() == ["cpu"]:
            pytest.skip("there is no accelerator here")
