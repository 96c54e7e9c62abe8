"""Counters of the endpoint for Prometheus, and the count of requests in it that decides who has to come back later."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from data.requests import Logged
from serving.guard import Refused

SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60.0)


class Meters:
    """The endpoint's metrics, in a registry of their own. Only known assistants become labels."""

    def __init__(self):
        self.registry = CollectorRegistry()
        here = {"registry": self.registry}
        self.requests = Counter("perennial_requests", "Requests answered", ("assistant", "arm", "status"), **here)
        self.errors = Counter("perennial_errors", "Requests answered with an error", ("status",), **here)
        self.tokens = Counter("perennial_tokens", "Tokens read and written", ("assistant", "kind"), **here)
        self.abstained = Counter("perennial_abstained", "Answers that say no", ("assistant",), **here)
        self.seconds = Histogram(
            "perennial_seconds", "Time by stage", ("assistant", "stage"), buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("perennial_in_flight", "Requests in the endpoint", **here)
        self.lost = Gauge("perennial_log_lost", "Rows that the request log had to drop", **here)
        self.routing_age = Gauge("perennial_routing_age_seconds", "Since the ledger was last read", **here)

    def count(self, row: Logged) -> None:
        """Count one request that an assistant answered or failed to."""
        self.requests.labels(row.assistant, row.arm, str(row.status)).inc()
        self.tokens.labels(row.assistant, "prompt").inc(row.prompt_tokens)
        self.tokens.labels(row.assistant, "completion").inc(row.completion_tokens)
        if row.abstained:
            self.abstained.labels(row.assistant).inc()
        for stage in ("queue", "retrieval", "engine", "first_token", "total"):
            if (seconds := getattr(row, f"{stage}_s")) is not None:
                self.seconds.labels(row.assistant, stage).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Admission:
    """At most `limit` requests in the endpoint at once, counted on its one event loop."""

    def __init__(self, limit: int, gauge: Gauge):
        self.limit, self.gauge, self.inside = limit, gauge, 0

    def enter(self) -> Callable[[], None]:
        """Take a place, and return what gives it back (once: calling it again changes nothing).

        Raises Refused 429 when there is no place.
        """
        if self.inside >= self.limit:
            message = f"{self.inside} requests are being answered; try again in a moment"
            raise Refused(429, message, "rate_limit_error", code="too_many_requests", retry_after=1)
        self._change(1)
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._change(-1)

        return leave

    def _change(self, by: int) -> None:
        self.inside += by
        self.gauge.set(self.inside)
