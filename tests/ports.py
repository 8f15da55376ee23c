"""Chooses ports for servers and process groups that tests start."""

import itertools
import os
import random
import socket


# Below the range from which Linux (32768 to 60999) and others take the ports of outgoing connections: a port from
# there that is free now may be taken before the process that is to listen has started. Every worker has its own block.
_FIRST, _WORKERS, _BLOCK = 12_000, 16, 1_200
_worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % _WORKERS
_offsets = itertools.count(random.SystemRandom().randrange(_BLOCK))


def free_port() -> int:
    """Chooses a port of 127.0.0.1 that nothing listens on and that no other test of this run is given."""
    for offset in itertools.islice(_offsets, _BLOCK):
        port = _FIRST + _worker * _BLOCK + offset % _BLOCK
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError(f"no free port among the {_BLOCK} of test worker {_worker}")
