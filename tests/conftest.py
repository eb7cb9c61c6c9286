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
    """The pages of the docs first: each takes long, and at the end one process would work on them while others wait."""
    items.sort(key=lambda item: item.path.name != "test_docs.py")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") is not None:
        from hasten.devices import available

        if available() == ["cpu"]:
            pytest.skip("there is no accelerator here")
