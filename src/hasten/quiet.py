"""Other libraries, without what they say about things that are as they should be."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

# torchao tells of every kernel for other machines that it cannot load here, and diffusers, which imports it, of that.
_LOGGERS = ("torchao", "torch.utils._pytree", "diffusers.quantizers.torchao.torchao_quantizer")


@contextlib.contextmanager
def without_torchaos_noise() -> Iterator[None]:
    """For imports and calls of torchao, and for imports that lead to one."""
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
