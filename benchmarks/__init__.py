"""The measurements behind the documentation's tables: `python -m benchmarks --help`."""
