"""Running servers of one checkpoint that generate the images of an evaluation together."""

import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from evotok.serving.client import BusyServerError, ServerClient


if TYPE_CHECKING:
    from PIL import Image

AT_ONCE = 16
"""Requests open at each server; one of `evotok serve` takes 64 by default."""
PATIENCE_SECONDS = 300.0
"""From a server's first failure until the others go on without it."""
PAUSE_SECONDS = 1.0


class ServerPool:
    """Servers that share the requests; one that fails is asked again, and its requests go to the others.

    Args:
        urls: of the servers.
        api_key: that all of them take.
        at_once: requests open at each.

    Raises:
        ValueError: no server at one of the addresses, or models of different image sizes.
    """

    def __init__(self, urls: Sequence[str], api_key: str | None = None, at_once: int = AT_ONCE):
        self._clients = [ServerClient(url, api_key) for url in urls]
        self._at_once = at_once
        sizes = {client.image_size for client in self._clients}
        if len(sizes) > 1:
            raise ValueError(f"engine: servers of different models, with images of {sizes} px: give servers of one.")

    @property
    def at_once(self) -> int:
        """Requests open at all servers together."""
        return len(self._clients) * self._at_once

    def generate_images(
        self, orders: Sequence[tuple[str, int]], **settings: Any
    ) -> Iterator[tuple[int, "Image.Image"]]:
        """Yields images as they are finished, each with the index of its order.

        Args:
            orders: prompts and seeds.
            settings: of the requests, such as `guidance_scale`.

        Raises:
            ValueError: what a server refuses, or the last failure when no server answers any more.
        """
        work = _Work(orders, settings)
        for client in self._clients:
            for _ in range(min(self._at_once, len(orders))):
                threading.Thread(target=work.run, args=(client,), name="evotok-client", daemon=True).start()
                work.threads += 1
        try:
            for _ in orders:
                yield work.result()
        finally:
            work.is_over = True


class _Work:
    """Orders on their way through the threads of all clients."""

    def __init__(self, orders: Sequence[tuple[str, int]], settings: dict[str, Any]):
        self._orders, self._settings = orders, settings
        self._waiting: SimpleQueue[int] = SimpleQueue()
        for index in range(len(orders)):
            self._waiting.put(index)
        self._results: SimpleQueue[Any] = SimpleQueue()
        self.threads, self.is_over = 0, False

    def result(self) -> tuple[int, "Image.Image"]:
        """Returns the next image; raises what ended the work."""
        while True:
            found = self._results.get()
            if isinstance(found, BusyServerError):
                self.threads -= 1  # one that has given up
                if self.threads == 0:
                    raise found
            elif isinstance(found, BaseException):
                raise found
            else:
                return found

    def run(self, client: ServerClient) -> None:
        """Sends orders to one server, one after the other, until all are answered."""
        failing_since = None
        while not self.is_over:
            try:
                index = self._waiting.get(timeout=PAUSE_SECONDS)
            except Empty:
                continue  # another thread may fail, and put its order back
            prompt, seed = self._orders[index]
            try:
                image = client.generate_image(prompt, seed, **self._settings)
            except BusyServerError as error:
                self._waiting.put(index)
                failing_since = failing_since or time.monotonic()
                if time.monotonic() > failing_since + PATIENCE_SECONDS:
                    self._results.put(error)
                    return
                time.sleep(PAUSE_SECONDS)
            except Exception as error:  # noqa: BLE001 - handed over to the reader
                self._results.put(error)
                return
            else:
                failing_since = None
                self._results.put((index, image))
