"""What every test has in common: no network, plain output of a fixed width."""

from __future__ import annotations

import os

# Read when huggingface_hub and rich are imported, hence here and not in a fixture.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["COLUMNS"] = "120"
os.environ["NO_COLOR"] = "1"
os.environ.pop("FORCE_COLOR", None)
