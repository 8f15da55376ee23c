"""Counts and times of a server, in the format of Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest


_SECONDS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_ROWS = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters, gauges and histograms of one server, and the memory and CPU time of its process."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "evotok_requests", "Requests by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "evotok_request_seconds",
            "Seconds from the first byte of a request to the last of its answer.",
            ["endpoint"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.first_token_seconds = Histogram(
            "evotok_first_token_seconds",
            "Seconds from a request to the first text of its answer.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.batch_rows = Histogram(
            "evotok_batch_rows", "Rows of a batch.", ["kind"], buckets=_ROWS, registry=self.registry
        )
        self.tokens = Counter("evotok_generated_tokens", "Tokens of answers.", registry=self.registry)
        self.images = Counter("evotok_generated_images", "Images generated.", registry=self.registry)
        self.aborted = Counter(
            "evotok_aborted_requests", "Requests whose client disconnected before the response.", registry=self.registry
        )
        self._waiting = Gauge("evotok_requests_waiting", "Requests that wait for a batch.", registry=self.registry)
        self._running = Gauge("evotok_requests_running", "Requests in the running batch.", registry=self.registry)

    def watch(self, waiting: Callable[[], int], running: Callable[[], int]) -> None:
        """Connects the gauges of the queue to the counts of the engine."""
        self._waiting.set_function(waiting)
        self._running.set_function(running)

    def render(self) -> bytes:
        """Renders the text that Prometheus scrapes."""
        return generate_latest(self.registry)
