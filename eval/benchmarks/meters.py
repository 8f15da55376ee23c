"""Meters of time, of peak memory, and of the limits of the machine.

A floor is measured in the same run as the work that is compared with it, with the same threads, dtype and device,
because other work on the machine slows both.
"""

import ctypes
import gc
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


MIB = 2**20
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Setting:
    """Device, dtype and size of a benchmark.

    Args:
        device: `"cpu"` or `"cuda"`.
        dtype: of the models; quantization is always float32.
        size: a key of the benchmark's `SIZES`.
        repeats: runs, of which the best counts.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    size: str = "full"
    repeats: int = 5


def machine(device: str) -> str:
    """Returns the GPU's name, or the CPU's with its units for bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    able = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16") if able.get(name)]
    return f"{able.get('cpu_name', 'CPU')}, {units[0] if units else 'no bfloat16'}"


def best_seconds(*functions: Callable[[], Any], setting: Setting) -> list[float]:
    """Measures the least wall time of each function after a warm-up; they alternate, so that other load affects all."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        timed(function, setting.device)
    for _ in range(setting.repeats):
        for function, seconds in zip(functions, times, strict=True):
            seconds.append(timed(function, setting.device))
    return [min(seconds) for seconds in times]


def timed(function: Callable[[], Any], device: str) -> float:
    """Measures the wall time of one run in seconds, until the device is done."""
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def waits_for_device(function: Callable[[], Any]) -> bool:
    """Returns whether a function, which ran before, waits for the GPU, as far as PyTorch knows: a copy to the CPU, for
    example. Such a function cannot be captured as a CUDA graph."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        function()
    except RuntimeError as error:
        if "synchronizing CUDA operation" not in str(error):
            raise
        return True
    finally:
        torch.cuda.set_sync_debug_mode(before)
    return False


def peak_extra_mib(function: Callable[[], Any], device: str) -> float | None:
    """Measures the peak memory of a run beyond the memory before it, in MiB, its result included.

    On CUDA it is the allocator's count; on Linux resident pages of the process, scratch space of libraries included;
    None elsewhere. Call it after a first run, when code is loaded and lasting caches are filled.
    """
    gc.collect()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        _wait(device)
        return (torch.cuda.max_memory_allocated() - before) / MIB
    if sys.platform != "linux" or not _CLEAR.exists():
        return None
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)  # memory that the allocator keeps would be reused unseen
    restart_peak()
    before = resident_bytes()
    function()
    return (resident_bytes(peak=True) - before) / MIB


def restart_peak() -> None:
    """Resets the peak of `resident_bytes` to what is resident now (Linux)."""
    _CLEAR.write_text("5")


def resident_bytes(peak: bool = False) -> int:
    """Returns the resident bytes of this process, or their peak since `restart_peak` (Linux).

    Raises:
        ValueError: the system does not report them.
    """
    field = "VmHWM" if peak else "VmRSS"
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{_STATUS} has no {field}: peak memory cannot be measured on this system.")
    return 1024 * int(match[1])


def peak_flops(dtype: torch.dtype, setting: Setting) -> float:
    """Measures the floating-point operations a second of a large square matmul."""
    side = 256 if setting.size == "tiny" else 8192 if setting.device == "cuda" else 2048
    left, right = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    [seconds] = best_seconds(lambda: left @ right, setting=setting)
    return 2 * side**3 / seconds


def peak_bandwidth(setting: Setting) -> float:
    """Measures the bandwidth of memory in bytes a second: the better of reading (a sum) and copying."""
    count = 2**18 if setting.size == "tiny" else 2**27  # 512 MiB: more than caches hold
    source = torch.ones(count, device=setting.device)
    target = torch.empty_like(source)
    reading, copying = best_seconds(source.sum, lambda: target.copy_(source), setting=setting)
    return max(4 * count / reading, 8 * count / copying)
