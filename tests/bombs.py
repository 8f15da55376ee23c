"""Peak memory of a block of code, and a limit below the memory of the machine."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ADDRESSES = 4_000_000_000  # bytes beyond those in use; libraries reserve some that they never touch


def _status(name: str) -> int:
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """Fails if the block raises the peak memory of the process by more than so many megabytes."""
    if not _CLEAR.exists():  # not Linux
        yield
        return
    _CLEAR.write_text("5")  # resets the peak
    before = _status("VmRSS")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = (_status("VmHWM") - before) / 1e6
    assert taken < megabytes, f"took {taken:,.0f} MB"
