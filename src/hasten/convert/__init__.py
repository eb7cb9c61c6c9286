"""Convert checkpoints: single files into diffusers folders and back, number formats, shards, variants."""

from __future__ import annotations

from hasten.convert.folders import convert, keep_native, read_pickle

__all__ = ["convert", "keep_native", "read_pickle"]
