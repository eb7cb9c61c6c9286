"""Devices and dtypes: what is there is used, what is not is refused with the way out."""

from __future__ import annotations

import types

import pytest
import torch

from hasten import devices
from hasten.devices import PeakMemory, available, clean_up, resolve_device, resolve_dtype, synchronize
from hasten.errors import DeviceError


@pytest.fixture
def fake_cuda(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    """A machine with two GPUs, as far as names go."""
    module = types.SimpleNamespace(
        device_count=lambda: 2,
        is_bf16_supported=lambda including_emulation=True: including_emulation,
        get_device_name=lambda device: "Tesla V100",
        calls=[],
    )
    module.synchronize = lambda device: module.calls.append(("synchronize", device))
    module.empty_cache = lambda: module.calls.append(("empty_cache",))
    module.reset_peak_memory_stats = lambda device: module.calls.append(("reset", device))
    module.max_memory_allocated = lambda device: 123
    monkeypatch.setattr(devices, "backend_module", lambda kind: module if kind == "cuda" else None)
    monkeypatch.setattr(devices, "first_missing_operation", lambda dtype, device: None)
    return module


@pytest.fixture
def cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "backend_module", lambda kind: None)


def test_cpu_is_always_there() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert available()[-1] == "cpu"


@pytest.mark.usefixtures("cpu_only")
def test_auto_is_the_cpu_where_nothing_else_is() -> None:
    assert resolve_device("auto") == torch.device("cpu")


@pytest.mark.usefixtures("fake_cuda")
def test_auto_prefers_an_accelerator() -> None:
    assert resolve_device("auto") == torch.device("cuda", 0)


@pytest.mark.usefixtures("cpu_only")
@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("cuda", "torch build with CUDA"),
        ("npu", "torch_npu"),
        ("hpu", "habana_frameworks"),
        ("xpu", "torch build with XPU"),
        ("mps", "Apple silicon"),
    ],
)
def test_a_missing_backend_names_what_to_install_and_what_is_here(kind: str, remedy: str) -> None:
    with pytest.raises(DeviceError, match=remedy) as caught:
        resolve_device(kind)
    assert "Available now: cpu" in str(caught.value)


@pytest.mark.usefixtures("fake_cuda")
def test_an_index_beyond_the_last_device_is_refused() -> None:
    assert resolve_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"has 2 cuda device"):
        resolve_device("cuda:2")


@pytest.mark.parametrize(
    ("name", "message"), [("gpu", "unknown"), ("cpu:1", "one cpu"), ("cuda:x", "no number"), ("auto:1", "unknown")]
)
def test_names_that_mean_nothing_are_refused(name: str, message: str) -> None:
    with pytest.raises(DeviceError, match=message):
        resolve_device(name)


def test_a_backend_package_that_is_not_installed_is_no_backend() -> None:
    assert devices.backend_module("npu") is None
    assert devices.backend_module("cpu") is None


def test_auto_dtype_is_fp32_on_the_cpu() -> None:
    assert resolve_dtype("auto", torch.device("cpu")) is torch.float32


@pytest.mark.parametrize("name", ["fp16", "bf16"])
def test_half_precision_on_this_cpu_is_accepted_exactly_where_every_operation_works(name: str) -> None:
    dtype, cpu = devices.DTYPES[name], torch.device("cpu")
    if devices.first_missing_operation(dtype, cpu) is None:
        assert resolve_dtype(name, cpu) is dtype
    else:
        with pytest.raises(DeviceError, match="cannot be used"):
            resolve_dtype(name, cpu)


def test_a_dtype_is_refused_with_the_operation_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def conv2d(*args: object) -> None:
        raise RuntimeError("\"slow_conv2d_cpu\" not implemented for 'Half'")

    monkeypatch.setattr(torch.nn.functional, "conv2d", conv2d)
    with pytest.raises(DeviceError, match=r"convolution fails .*not implemented for 'Half'.*Use fp32"):
        resolve_dtype("fp16", torch.device("cpu"))


@pytest.mark.usefixtures("fake_cuda")
def test_a_gpu_that_only_emulates_bf16_gets_fp16_by_itself_and_a_refusal_on_request() -> None:
    assert resolve_dtype("auto", torch.device("cuda", 0)) is torch.float16
    with pytest.raises(DeviceError, match="Tesla V100 has no bf16"):
        resolve_dtype("bf16", torch.device("cuda", 0))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(DeviceError, match="fp8"):
        resolve_dtype("fp8", torch.device("cpu"))


def test_waiting_and_cleaning_reach_the_backend(fake_cuda: types.SimpleNamespace) -> None:
    device = torch.device("cuda", 1)
    synchronize(device)
    clean_up(device)
    assert fake_cuda.calls == [("synchronize", device), ("empty_cache",)]


def test_waiting_and_cleaning_do_nothing_on_the_cpu(fake_cuda: types.SimpleNamespace) -> None:
    synchronize(torch.device("cpu"))
    clean_up(torch.device("cpu"))
    assert fake_cuda.calls == []


def test_peak_memory_of_an_accelerator_is_its_allocators(fake_cuda: types.SimpleNamespace) -> None:
    device = torch.device("cuda", 0)
    with PeakMemory(device) as memory:
        assert fake_cuda.calls == [("reset", device)]
    assert (memory.bytes, memory.source) == (123, "allocator")


def test_peak_memory_on_the_cpu_sees_what_was_freed_again() -> None:
    size = 64 << 20
    with PeakMemory(torch.device("cpu"), interval=0.001) as before:
        pass
    with PeakMemory(torch.device("cpu"), interval=0.001) as memory:
        block = torch.ones(size // 4)
        for _ in range(20):  # long enough to be looked at
            block.add_(1)
        del block
    assert memory.source == "process"
    assert before.bytes is not None
    assert memory.bytes is not None
    assert memory.bytes > before.bytes + size // 2


def test_the_watching_thread_ends_also_after_an_error() -> None:
    memory = PeakMemory(torch.device("cpu"))
    with pytest.raises(KeyboardInterrupt), memory:
        raise KeyboardInterrupt
    assert memory.bytes
    assert not memory._thread.is_alive()


def test_the_cpu_has_a_name() -> None:
    assert devices.device_name(torch.device("cpu"))
