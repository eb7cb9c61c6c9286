"""What every test has in common: no network, a home of their own, plain output of a fixed width."""

from __future__ import annotations

import os
import signal
import tempfile

import pytest

# Read when huggingface_hub and rich are imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)
# Calibrations of whoever runs the tests are none of their business.
os.environ["HASTEN_HOME"] = tempfile.mkdtemp(prefix="hasten-tests-")
# A shell ignores Ctrl-C for what it starts in the background, and children inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The pages of the docs take long: half of them come first, half in the middle.

    pytest-xdist gives each of two processes one half of all tests from its beginning on, and at the end those that are
    left to whoever is free: no process should then work alone through page after page.
    """
    pages = [item for item in items if item.path.name == "test_docs.py"]
    others = [item for item in items if item.path.name != "test_docs.py"]
    half = len(others) // 2
    items[:] = [*pages[::2], *others[:half], *pages[1::2], *others[half:]]


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        from hasten.devices import available

        if available() == ["cpu"]:
            pytest.skip("there is no accelerator here")
