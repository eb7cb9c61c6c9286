"""The command line. No module here imports torch or diffusers at import time."""
