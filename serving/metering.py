"""Counters of the endpoint for Prometheus, and the count of requests in it that decides who has to come back later."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from data.requests import Logged
from serving.refused import Refused
from settings import Settings

LEAST = 8
"""Requests that are let in whatever the pace: engines answer several at once."""
FRACTIONS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.08, 0.12, 0.2, 0.4, 0.8)
TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384)
SECONDS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 60.0)


def cost(read: int, written: int, prices: Settings) -> float:
    """What tokens read and written cost by the settings' prices per million of them."""
    return (read * prices.price_prompt_million + written * prices.price_completion_million) / 1e6


class Meters:
    """The endpoint's metrics, in a registry of their own. Only known assistants, keys and tenants become labels.

    What the field has names for is named so: OpenTelemetry's semantic conventions for generative AI, as its exporter
    for Prometheus writes them (`gen_ai_server_time_to_first_token_seconds`). The model is the assistant.
    """

    def __init__(self):
        self.registry = CollectorRegistry()
        here = {"registry": self.registry}
        self.requests = Counter("perennial_requests", "Requests answered", ("assistant", "arm", "status"), **here)
        self.errors = Counter("perennial_errors", "Requests answered with an error", ("status",), **here)
        whose = ("assistant", "key", "tenant")
        self.tokens = Counter("perennial_tokens", "Tokens read and written", (*whose, "kind"), **here)
        self.cost = Counter("perennial_cost", "Cost of the tokens, estimated", whose, **here)
        self.flags = Counter(
            "perennial_flags", "Requests in which a screen found something", ("assistant", "flag"), **here
        )
        self.reuse = Counter("perennial_reuse", "Answers looked for among earlier ones", ("assistant", "found"), **here)
        self.saved = Counter("perennial_saved_cost", "Cost of answers given again", ("assistant",), **here)
        self.abstained = Counter("perennial_abstained", "Answers that say no", ("assistant",), **here)

        def measured(name: str, what: str, buckets: tuple, *labels: str) -> Histogram:
            return Histogram(name, what, labels, buckets=buckets, registry=self.registry)

        model = "gen_ai_request_model"
        self.stages = measured("perennial_seconds", "Time by stage", SECONDS, "assistant", "stage")
        self.total = measured("gen_ai_server_request_duration_seconds", "Whole request", SECONDS, model)
        self.first = measured("gen_ai_server_time_to_first_token_seconds", "From arrival", SECONDS, model)
        self.each = measured("gen_ai_server_time_per_output_token_seconds", "After the first", FRACTIONS, model)
        self.usage = measured("gen_ai_client_token_usage", "Per request", TOKENS, model, "gen_ai_token_type")
        self.in_flight = Gauge("perennial_in_flight", "Requests in the endpoint", **here)
        self.lost = Gauge("perennial_log_lost", "Rows that the request log had to drop", **here)
        self.traces_lost = Gauge("perennial_traces_lost", "Traces that could not be sent", **here)
        self.routing_age = Gauge("perennial_routing_age_seconds", "Since the ledger was last read", **here)

    def count(self, row: Logged) -> None:
        """Count one request that an assistant answered or failed to."""
        self.requests.labels(row.assistant, row.arm, str(row.status)).inc()
        whose = (row.assistant, row.key, row.tenant)
        self.cost.labels(*whose).inc(row.cost)
        for kind, ours, tokens in (
            ("input", "prompt", row.prompt_tokens),
            ("output", "completion", row.completion_tokens),
        ):
            self.tokens.labels(*whose, ours).inc(tokens)
            self.usage.labels(row.assistant, kind).observe(tokens)
        for flag in row.flags:
            self.flags.labels(row.assistant, flag).inc()
        if row.reuse:
            self.reuse.labels(row.assistant, row.reuse).inc()
            self.saved.labels(row.assistant).inc(row.saved_cost)
        if row.abstained:
            self.abstained.labels(row.assistant).inc()
        for stage in ("queue", "retrieval", "engine"):
            if (seconds := getattr(row, f"{stage}_s")) is not None:
                self.stages.labels(row.assistant, stage).observe(seconds)
        for histogram, seconds in (
            (self.total, row.total_s),
            (self.first, row.first_token_s),
            (self.each, row.token_s),
        ):
            if seconds is not None:
                histogram.labels(row.assistant).observe(seconds)

    def render(self) -> tuple[bytes, str]:
        """The metrics in Prometheus' text format, and its content type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Admission:
    """At most `limit` requests in the endpoint at once, and beyond LEAST no more than are answered within `patience_s`
    at its present pace: who would wait longer is told so at once. Counted on the endpoint's one event loop.

    The pace is the mean time between two answers, over about the last twenty. The first is left out, as a model may
    have to be loaded for it, and no time counts for more than the LEASTth part of the patience.
    """

    def __init__(self, limit: int, patience_s: float, gauge: Gauge):
        self.limit, self.patience_s, self.gauge, self.inside = limit, patience_s, gauge, 0
        self.pace_s = 0.0  # between two answers while there is something to answer; 0 before the second
        self._since = 0.0  # a request last ended, or when the endpoint last became busy
        self._answers = 0

    def enter(self, paced: bool = True) -> Callable[[], None]:
        """Take a place, and return what gives it back (once: calling it again changes nothing). `paced`: whether it
        waits for those who are inside.

        Raises Refused 429 when there is no place, with the seconds after which there should be one.
        """
        wait = self.inside * self.pace_s - self.patience_s if paced else 0.0
        if self.inside >= self.limit or (self.inside >= LEAST and wait > 0):
            message = f"{self.inside} requests are being answered; try again in a moment"
            again = max(1, math.ceil(wait))
            raise Refused(429, message, "rate_limit_error", code="too_many_requests", retry_after=again)
        if not self.inside:
            self._since = time.monotonic()
        self._change(1)
        left = False

        def leave() -> None:
            nonlocal left
            if not left:
                left = True
                self._change(-1)

        return leave

    def ended(self, answered: bool) -> None:
        """Note the end of one request. Without an answer it says nothing of the pace, nor does the time up to it."""
        now = time.monotonic()
        if answered and self._answers:
            took_s = min(now - self._since, self.patience_s / LEAST)
            self.pace_s += (took_s - self.pace_s) / min(self._answers, 20)
        self._answers += answered
        self._since = now

    def _change(self, by: int) -> None:
        self.inside += by
        self.gauge.set(self.inside)
