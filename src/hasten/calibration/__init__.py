"""Calibration: figures that some methods need, measured in a few full runs and kept in a small file.

Files: `key` (what the figures hold for), `store` (the file, and where it is found), `measure` (the runs).
"""
