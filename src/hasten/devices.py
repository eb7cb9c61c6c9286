"""Where a pipeline runs: names of devices and dtypes made real, with refusals that say what to do.

`torch.accelerator` would be the neat way, but on CPU builds its calls raise and not every backend implements all of
it, so each call here looks the function up on the backend's own module and falls back where it is missing.
"""

from __future__ import annotations

import gc
import importlib
import importlib.util
import platform
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self

import psutil
import torch

from hasten.errors import DeviceError


@dataclass(frozen=True)
class Backend:
    """One kind of device: the package that brings it, and what to tell a user who lacks it."""

    name: str
    package: str | None
    missing: str


# In the order in which `auto` tries them.
BACKENDS: dict[str, Backend] = {
    backend.name: backend
    for backend in (
        Backend(
            "cuda", None, "install a torch build with CUDA (or ROCm) from https://pytorch.org and the GPU's driver"
        ),
        Backend("npu", "torch_npu", "install torch_npu (pip install torch-npu) and Ascend's CANN toolkit"),
        Backend(
            "hpu",
            "habana_frameworks.torch.core",
            "install Intel Gaudi's habana_frameworks (pip install habana-torch-plugin)",
        ),
        Backend("xpu", None, "install a torch build with XPU from https://pytorch.org and Intel's GPU driver"),
        Backend("mps", None, "use a torch build for macOS on Apple silicon"),
    )
}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def backend_module(kind: str) -> ModuleType | None:
    """The torch module of a backend (`torch.cuda`, `torch.npu`, …), or None where it cannot be used here."""
    if kind not in BACKENDS:
        return None
    package = BACKENDS[kind].package
    if package and not hasattr(torch, kind):
        try:
            if importlib.util.find_spec(package.split(".")[0]) is None:
                return None
            importlib.import_module(package)
        except (ImportError, OSError):  # OSError: the package is there, its driver libraries are not
            return None
    module: ModuleType | None = getattr(torch, kind, None)
    if module is None:
        return None
    is_available = torch.backends.mps.is_available if kind == "mps" else getattr(module, "is_available", None)
    return module if is_available is not None and is_available() else None


def available() -> list[str]:
    """Kinds of devices that work on this machine, the preferred one first; "cpu" is always the last."""
    return [*(kind for kind in BACKENDS if backend_module(kind) is not None), "cpu"]


def resolve_device(name: str = "auto") -> torch.device:
    """A device's name ("auto", "cpu", "cuda:1", …) as a device that is really there.

    Raises:
        DeviceError: the name is unknown, the backend is not installed or has no device, or the index is too high.
    """
    kind, _, index_text = name.partition(":")
    if kind == "auto" and not index_text:
        kind = available()[0]
        return torch.device(kind) if kind in ("cpu", "mps") else torch.device(kind, 0)
    if kind != "cpu" and kind not in BACKENDS:
        raise DeviceError(
            f"device {name!r} is unknown: use auto, cpu, {', '.join(BACKENDS)}, with an index like cuda:1"
        )
    if index_text and not index_text.isdecimal():
        raise DeviceError(f"device {name!r}: the index {index_text!r} is no number; write {kind}:0")
    index = int(index_text or 0)
    if kind == "cpu":
        if index:
            raise DeviceError(f"device {name!r}: there is one cpu; write cpu")
        return torch.device("cpu")
    module = backend_module(kind)
    here = ", ".join(available())
    if module is None:
        raise DeviceError(f"device {name!r} is not available here: {BACKENDS[kind].missing}. Available now: {here}")
    count = int(getattr(module, "device_count", lambda: 1)())
    if index >= count:
        raise DeviceError(f"device {name!r}: this machine has {count} {kind} device(s), numbered from {kind}:0")
    return torch.device(kind) if kind == "mps" else torch.device(kind, index)


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """A dtype's name ("auto", "fp32", "fp16", "bf16") as one that this device computes in.

    auto is bf16 on accelerators that have it (fp16 on those that have not, and on mps) and fp32 on the CPU.

    Raises:
        DeviceError: the name is unknown, or an operation that denoisers need fails in this dtype on this device.
    """
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        name = "bf16" if device.type != "mps" and _has_bf16(device) else "fp16"
    if name not in DTYPES:
        raise DeviceError(f"dtype {name!r} is unknown: use auto, {', '.join(DTYPES)}")
    dtype = DTYPES[name]
    if dtype is torch.bfloat16 and not _has_bf16(device):
        raise DeviceError(f"{device_name(device)} has no bf16 arithmetic: use fp16 or fp32")
    if dtype is not torch.float32:
        failure = first_missing_operation(dtype, device)
        if failure:
            raise DeviceError(f"{name} cannot be used on {device}: {failure}. Use fp32")
    return dtype


def _has_bf16(device: torch.device) -> bool:
    check = getattr(backend_module(device.type), "is_bf16_supported", None)
    if check is None:
        return True
    # torch also says yes to GPUs that only emulate bf16, many times slower than fp32.
    return bool(check(including_emulation=False) if device.type == "cuda" else check())


def first_missing_operation(dtype: torch.dtype, device: torch.device) -> str | None:
    """Try the operations that diffusion models are made of on tiny tensors; the first that fails, with its error.

    What a device can do in half precision changes with every torch release, so it is tried and not looked up.
    """
    functional: Any = torch.nn.functional

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=dtype, device=device)

    operations: dict[str, Callable[[], object]] = {
        "linear": lambda: functional.linear(ones(2, 4), ones(4, 4), ones(4)),
        "convolution": lambda: functional.conv2d(ones(1, 2, 4, 4), ones(2, 2, 3, 3)),
        "layer norm": lambda: functional.layer_norm(ones(2, 4), (4,)),
        "group norm": lambda: functional.group_norm(ones(1, 4, 2, 2), 2),
        "attention": lambda: functional.scaled_dot_product_attention(*[ones(1, 1, 4, 8)] * 3),
        "activation": lambda: functional.gelu(functional.silu(ones(4))),
        "softmax": lambda: ones(2, 4).softmax(-1),
        "upsampling": lambda: functional.interpolate(ones(1, 2, 4, 4), scale_factor=2.0, mode="nearest"),
    }
    for name, operation in operations.items():
        try:
            operation()
        except (RuntimeError, NotImplementedError, TypeError) as error:
            return f"{name} fails ({str(error).splitlines()[0]})"
    return None


def device_name(device: torch.device) -> str:
    """The device's name as its maker calls it, e.g. "NVIDIA H200"."""
    if device.type != "cpu":
        get_name = getattr(backend_module(device.type), "get_device_name", None)
        return str(get_name(device)) if get_name else str(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def synchronize(device: torch.device) -> None:
    """Wait until everything queued on the device has run; a clock read before that measures the queueing."""
    wait = getattr(backend_module(device.type), "synchronize", None)
    if wait is not None:
        wait() if device.type == "mps" else wait(device)


def clean_up(device: torch.device) -> None:
    """Give back memory that nothing refers to: Python's cycles first, then the allocator's cached blocks."""
    gc.collect()
    empty_cache = getattr(backend_module(device.type), "empty_cache", None)
    if empty_cache is not None:
        empty_cache()


class PeakMemory:
    """Peak memory while a `with` block runs.

    Attributes:
        bytes: the peak, in bytes; None before the block ends.
        source: "allocator" (tensors on the accelerator) or "process" (resident memory of this whole process).
    """

    def __init__(self, device: torch.device, interval: float = 0.02) -> None:
        """interval: seconds between two looks where the peak has to be sampled."""
        self.bytes: int | None = None
        self._device = device
        self._interval = interval
        self._module = backend_module(device.type)
        self._counts = hasattr(self._module, "max_memory_allocated") and hasattr(
            self._module, "reset_peak_memory_stats"
        )
        self._current: Callable[[], int] = _resident_bytes(psutil.Process())
        self.source = "process"
        if self._counts:
            self.source = "allocator"
        elif device.type == "mps" and self._module is not None:
            self.source, self._current = "allocator", self._module.driver_allocated_memory

    def __enter__(self) -> Self:
        self.bytes = None
        if self._counts:
            self._module.reset_peak_memory_stats(self._device)  # type: ignore[union-attr]
            return self
        self._highest = self._current()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="hasten-peak-memory", daemon=True)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._ended.wait(self._interval):
            self._highest = max(self._highest, self._current())

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._counts:
            self.bytes = int(self._module.max_memory_allocated(self._device))  # type: ignore[union-attr]
            return
        self._ended.set()
        self._thread.join()
        self.bytes = max(self._highest, self._current())


def _resident_bytes(process: psutil.Process) -> Callable[[], int]:
    return lambda: int(process.memory_info().rss)
