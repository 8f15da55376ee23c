"""How much memory something takes at most, and a limit that it meets before it takes all of the machine's."""

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path


_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
_ADDRESSES = 4_000_000_000  # bytes of them beyond those in use; libraries reserve some that they never touch


def _status(name: str) -> int:
    [line] = [line for line in _STATUS.read_text().splitlines() if line.startswith(f"{name}:")]
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def little_memory(megabytes: int) -> Iterator[None]:
    """Fails if what runs inside takes more than so much memory above what the process had, at any moment of it."""
    if not _CLEAR.exists():  # another system than Linux
        yield
        return
    _CLEAR.write_text("5")  # the peak begins anew
    before = _status("VmRSS")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + _ADDRESSES, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    taken = (_status("VmHWM") - before) / 1e6
    assert taken < megabytes, f"took {taken:,.0f} MB"
