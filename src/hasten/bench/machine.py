"""The machine, and what its graphics driver tells while something runs (nvidia-ml-py, where installed)."""

from __future__ import annotations

import contextlib
import importlib
import platform
import statistics
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import psutil
import torch

from hasten.bench.schema import Gpu, Machine
from hasten.devices import device_name


def describe(device: torch.device, dtype: str, watch: GpuWatch) -> Machine:
    """The machine, as far as it tells."""
    memory = None
    if device.type == "cuda":
        memory = int(torch.cuda.get_device_properties(device).total_memory)
    return Machine(
        platform=platform.platform(),
        cpu=device_name(torch.device("cpu")),
        cores=psutil.cpu_count(logical=False) or psutil.cpu_count() or 1,
        threads=torch.get_num_threads(),
        ram_bytes=int(psutil.virtual_memory().total),
        device=str(device),
        device_name=device_name(device),
        dtype=dtype,
        memory_bytes=memory,
        driver=watch.driver,
    )


class GpuWatch:
    """Utilisation, power and energy of an NVIDIA GPU while a `with` block runs; on anything else it does nothing.

    Attributes:
        driver: the driver's version, or None where no driver tells anything.
        note: why nothing can be told of a GPU that is there.
        reading: of the last block.
    """

    def __init__(self, device: torch.device, interval: float = 0.1) -> None:
        """interval: seconds between two looks."""
        self.driver: str | None = None
        self.note: str | None = None
        self.reading: Gpu | None = None
        self._interval = interval
        self._library: Any = None
        if device.type != "cuda":
            return
        try:
            library = importlib.import_module("pynvml")
        except ImportError:
            self.note = "GPU utilisation and power were not read: pip install 'hasten[bench]' (nvidia-ml-py)"
            return
        try:
            library.nvmlInit()
            self.driver = _text(library.nvmlSystemGetDriverVersion())
            self._gpu = _find(library, device)
            self._library = library
        except (
            Exception
        ) as error:  # its errors' class is made at run time, and a GPU's absence must not end a benchmark
            self.note = f"GPU utilisation and power were not read: {error}"

    def __enter__(self) -> Self:
        self.reading = None
        if self._library is None:
            return self
        self._loads: list[float] = []
        self._watts: list[float] = []
        self._energy = self._ask(self._library.nvmlDeviceGetTotalEnergyConsumption)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look, name="hasten-gpu-watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._library is None:
            return
        self._ended.set()
        self._thread.join()
        after = self._ask(self._library.nvmlDeviceGetTotalEnergyConsumption)
        self.reading = Gpu(
            utilisation=statistics.fmean(self._loads) if self._loads else None,
            power=statistics.fmean(self._watts) if self._watts else None,
            energy=(after - self._energy) / 1000 if after is not None and self._energy is not None else None,
        )

    def _look(self) -> None:
        while True:
            watts = self._ask(self._library.nvmlDeviceGetPowerUsage)
            load = self._ask(lambda gpu: self._library.nvmlDeviceGetUtilizationRates(gpu).gpu)
            if watts is not None:
                self._watts.append(watts / 1000)
            if load is not None:
                self._loads.append(load)
            if self._ended.wait(self._interval):
                return

    def _ask(self, question: Callable[[Any], Any]) -> float | None:
        with contextlib.suppress(Exception):  # older GPUs and virtual ones do not answer every question
            return float(question(self._gpu))
        return None


def _find(library: Any, device: torch.device) -> Any:
    """The driver numbers all GPUs, torch the visible ones: their UUID is the same."""
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        return library.nvmlDeviceGetHandleByIndex(device.index or 0)
    text = str(uuid)
    return library.nvmlDeviceGetHandleByUUID((text if text.startswith(("GPU-", "MIG-")) else f"GPU-{text}").encode())


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
