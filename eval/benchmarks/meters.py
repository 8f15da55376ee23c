"""Measuring: time, peak memory, and what the machine can do at best.

A floor is no estimate: it is measured in the same run, with the same threads, dtype and device as the work it is held
against, because other work on the machine slows both.
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
    """Where and how large.

    Args:
        device: `"cpu"` or `"cuda"`.
        dtype: of the models that a suite runs; quantising is float32 always.
        size: a key of the suite's `SIZES`.
        repeats: runs that the best time is taken of.
    """

    device: str = "cpu"
    dtype: torch.dtype = torch.bfloat16
    size: str = "full"
    repeats: int = 5


def machine(device: str) -> str:
    """The GPU's name, or the CPU's and how it multiplies bfloat16."""
    if device == "cuda":
        return torch.cuda.get_device_name()
    able = torch.cpu.get_capabilities()
    units = [name for name in ("amx_bf16", "avx512_bf16") if able.get(name)]
    return f"{able.get('cpu_name', 'CPU')}, {units[0] if units else 'no bfloat16'}"


def best_seconds(*functions: Callable[[], Any], setting: Setting) -> list[float]:
    """Least wall time of each function, after one run to warm up; they take turns, so that a slow spell hits all."""
    times: list[list[float]] = [[] for _ in functions]
    for function in functions:
        _timed(function, setting.device)
    for _ in range(setting.repeats):
        for function, seconds in zip(functions, times, strict=True):
            seconds.append(_timed(function, setting.device))
    return [min(seconds) for seconds in times]


def _timed(function: Callable[[], Any], device: str) -> float:
    _wait(device)
    start = time.perf_counter()
    function()
    _wait(device)
    return time.perf_counter() - start


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def peak_extra_mib(function: Callable[[], Any], device: str) -> float | None:
    """Memory that a run takes at its peak beyond what was there before, in MiB, its result included.

    On CUDA the allocator's count; on Linux resident pages of the process, scratch space of libraries included; None
    elsewhere. Call it after a first run, so that code is loaded and caches that stay are filled.
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
        libc.malloc_trim(0)  # freed memory that the allocator kept would hide what is taken from it
    restart_peak()
    before = resident_bytes()
    function()
    return (resident_bytes(peak=True) - before) / MIB


def restart_peak() -> None:
    """Let the peak that `resident_bytes` tells begin anew, at what is resident now (Linux)."""
    _CLEAR.write_text("5")


def resident_bytes(peak: bool = False) -> int:
    """Bytes of this process that lie in memory, or the most that ever did since `restart_peak` (Linux).

    Raises:
        ValueError: a system that does not tell.
    """
    field = "VmHWM" if peak else "VmRSS"
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    if match is None:
        raise ValueError(f"{_STATUS} does not tell {field}: peak memory cannot be measured on this system.")
    return 1024 * int(match[1])


def peak_flops(dtype: torch.dtype, setting: Setting) -> float:
    """Floating-point operations a second of a large square matmul."""
    side = 256 if setting.size == "tiny" else 2048
    left, right = (torch.randn(side, side, device=setting.device).to(dtype) for _ in range(2))
    [seconds] = best_seconds(lambda: left @ right, setting=setting)
    return 2 * side**3 / seconds


def peak_bandwidth(setting: Setting) -> float:
    """Bytes a second that memory moves at best: the better of reading (a sum) and copying, which reads and writes."""
    count = 2**18 if setting.size == "tiny" else 2**27  # 512 MiB: more than caches hold
    source = torch.ones(count, device=setting.device)
    target = torch.empty_like(source)
    reading, copying = best_seconds(source.sum, lambda: target.copy_(source), setting=setting)
    return max(4 * count / reading, 8 * count / copying)
