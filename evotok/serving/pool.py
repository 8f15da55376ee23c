"""Pool of servers of one checkpoint, which generate the images of an evaluation."""

import threading
import time
from collections.abc import Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any

from evotok.serving.client import BusyServerError, ServerClient


if TYPE_CHECKING:
    from PIL import Image

AT_ONCE = 16
"""Open requests of each server; `evotok serve` accepts 64 by default."""
PATIENCE_SECONDS = 300.0
"""Time from a server's first failure until it gets no more requests, in seconds."""
PAUSE_SECONDS = 1.0


class ServerPool:
    """Pool that distributes requests over servers; a failed server is retried, and its requests go to the others.

    Args:
        urls: of the servers.
        api_key: of all servers.
        at_once: open requests of each server.

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
        """Returns the number of open requests of all servers together."""
        return len(self._clients) * self._at_once

    def generate_images(
        self, orders: Sequence[tuple[str, int]], **settings: Any
    ) -> Iterator[tuple[int, "Image.Image"]]:
        """Yields images as they are finished, each with the index of its order.

        Args:
            orders: prompts and seeds.
            settings: of the requests, such as `guidance_scale`.

        Raises:
            ValueError: a server refuses a request, or no server responds any more.
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
    """Queue of image requests shared by the client threads."""

    def __init__(self, orders: Sequence[tuple[str, int]], settings: dict[str, Any]):
        self._orders, self._settings = orders, settings
        self._waiting: SimpleQueue[int] = SimpleQueue()
        for index in range(len(orders)):
            self._waiting.put(index)
        self._results: SimpleQueue[Any] = SimpleQueue()
        self.threads, self.is_over = 0, False

    def result(self) -> tuple[int, "Image.Image"]:
        """Returns the next image with the index of its order; raises the error that ended the work."""
        while True:
            found = self._results.get()
            if isinstance(found, BusyServerError):
                self.threads -= 1  # this thread has ended
                if self.threads == 0:
                    raise found
            elif isinstance(found, BaseException):
                raise found
            else:
                return found

    def run(self, client: ServerClient) -> None:
        """Sends orders to one server, one after the other, until all are finished."""
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
            except Exception as error:  # noqa: BLE001 - raised again by `result`
                self._results.put(error)
                return
            else:
                failing_since = None
                self._results.put((index, image))
