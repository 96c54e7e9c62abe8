"""Traces of answered requests, sent by plain OTLP: question, retrieval, prompt, generation.

Spans are made after the fact, in a thread, from what the request measured of itself: a request pays for one look at its
trace id and a queue put. By default they go to MLflow, each into the experiment of its assistant, beside its runs.

Texts are redacted as in the request log. What only some may read stays out: a passage with an access label or a tenant
is named, not shown, and neither is an answer that may hold it. Who asked stays out too: a trace has the response id, by
which the request log knows that.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import threading
import time
from base64 import b64encode
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import httpx

from data.records import Chunk
from data.redaction import redact
from serving import rag

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.trace import SpanContext

    from serving.exchange import Exchange

log = logging.getLogger("perennial.traces")

WAITING, BATCH = 500, 50
"""Traces that may wait, and that are sent together."""
HIDDEN = "(only for some readers)"
BATCH_S, EXPORT_S = 1.0, 5.0
"""How long a batch is waited for, and how long sending one may take, retries included."""


@dataclass(frozen=True)
class Trace:
    """A finished request, when it ended (epoch seconds), and the caller's span that it belongs to, if it has one."""

    exchange: Exchange
    ended: float
    caller: SpanContext | None


class Traces:
    """Sends a `share` of the finished requests, and every one that failed on our side; nothing where `share` is 0.

    A caller that sends a `traceparent` decides by its sampled flag instead. `url`: an OTLP/HTTP address for traces;
    '': that of the MLflow server at `mlflow`. `lost` counts traces that could not be sent, or found the queue full.
    """

    def __init__(self, share: float, url: str = "", mlflow: str = ""):
        self.share, self.url, self.mlflow = share, url, mlflow
        self.lost = 0
        self._waiting: queue.Queue[Trace | None] = queue.Queue(WAITING)
        self._exporters: dict[str, SpanExporter] = {}
        self._sender: threading.Thread | None = None
        self._starting = threading.Lock()

    def write(self, exchange: Exchange, headers: Mapping[str, str]) -> None:
        """Queue a finished request if it is one to trace; never blocks."""
        if not self.share:
            return
        calling = caller(headers)
        if not self.takes(exchange, calling):
            return
        with self._starting:
            if self._sender is None:
                self._sender = threading.Thread(target=self._run, name="traces", daemon=True)
                self._sender.start()
        try:
            self._waiting.put_nowait(Trace(exchange, time.time(), calling))
        except queue.Full:
            self.lost += 1

    def takes(self, exchange: Exchange, calling: SpanContext | None) -> bool:
        """Whether a finished request is traced."""
        if exchange.row.status >= 500:
            return True
        if calling:
            return calling.trace_flags.sampled
        return int(digits(exchange.row.response)[:12], 16) < self.share * 16**12  # as random as a UUID begins

    def close(self) -> None:
        """Send what is waiting, for at most one batch's time, and stop."""
        if self._sender:
            try:
                self._waiting.put_nowait(None)
            except queue.Full:
                return  # the thread is a daemon, and nobody takes what waits
            self._sender.join(EXPORT_S)

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        ending = False
        while not ending:
            batch = [self._waiting.get()]
            deadline = time.monotonic() + BATCH_S
            while batch[-1] is not None and len(batch) < BATCH:
                try:
                    batch.append(self._waiting.get(timeout=max(0.0, deadline - time.monotonic())))
                except queue.Empty:
                    break
            ending = batch[-1] is None
            self._send(trace for trace in batch if trace is not None)

    def _send(self, batch: Iterable[Trace]) -> None:
        from opentelemetry.sdk.trace.export import SpanExportResult

        by_assistant = defaultdict(list)
        for trace in batch:
            by_assistant[trace.exchange.row.assistant].append(trace)
        for assistant, traces in by_assistant.items():
            try:
                made = [span for trace in traces for span in spans(trace)]
                sent = self._exporter(assistant).export(made) is SpanExportResult.SUCCESS
            except Exception as error:  # whatever is wrong with these, the thread goes on with the next
                ours = not isinstance(error, httpx.HTTPError)
                log.warning("traces of %s are not sent: %s", assistant, error, exc_info=ours)
                sent = False
            if not sent:
                self.lost += len(traces)
                self._exporters.pop(assistant, None)  # its experiment may have been deleted: it is asked for again

    def _exporter(self, assistant: str) -> SpanExporter:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        if assistant not in self._exporters:
            headers, url = {}, self.url
            if not url:
                headers = credentials() | {"x-mlflow-experiment-id": experiment(self.mlflow, assistant)}
                url = f"{self.mlflow}/v1/traces"
            self._exporters[assistant] = OTLPSpanExporter(url, headers=headers, timeout=EXPORT_S)
        return self._exporters[assistant]


# --- MLflow, by its REST API ------------------------------------------------------------------


def experiment(mlflow: str, name: str) -> str:
    """The id of MLflow's experiment `name`, which is made when it is not there. Raises httpx.HTTPError."""
    if known := _known(mlflow, name):
        return known
    return _post(mlflow, "experiments/create", {"name": name})["experiment_id"]


def prune(mlflow: str, assistants: Iterable[str], days: float) -> None:
    """Delete traces older than `days`; where MLflow does not answer, the next time will do."""
    until = int((time.time() - days * 86_400) * 1000)
    try:
        for name in assistants:
            if known := _known(mlflow, name):
                _post(mlflow, "traces/delete-traces", {"experiment_id": known, "max_timestamp_millis": until})
    except httpx.HTTPError as error:
        log.warning("old traces stay in MLflow for now: %s", error)


def credentials() -> dict[str, str]:
    """The header that shows MLflow who asks, by the variables that its own client reads; nothing where none is set."""
    user, password, token = (os.environ.get(f"MLFLOW_TRACKING_{name}") for name in ("USERNAME", "PASSWORD", "TOKEN"))
    if user and password:
        return {"authorization": f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"authorization": f"Bearer {token}"} if token else {}


def _known(mlflow: str, name: str) -> str | None:
    asked = {"params": {"experiment_name": name}, "headers": credentials(), "timeout": EXPORT_S}
    found = httpx.get(f"{mlflow}/api/2.0/mlflow/experiments/get-by-name", **asked)
    return None if found.status_code == 404 else found.raise_for_status().json()["experiment"]["experiment_id"]


def _post(mlflow: str, what: str, body: dict) -> dict:
    asked = {"json": body, "headers": credentials(), "timeout": EXPORT_S}
    return httpx.post(f"{mlflow}/api/2.0/mlflow/{what}", **asked).raise_for_status().json()


# --- one request ------------------------------------------------------------------------------


def caller(headers: Mapping[str, str]) -> SpanContext | None:
    """The span in a W3C `traceparent` header; None without one, or where it can not be read."""
    if "traceparent" not in headers:
        return None
    from opentelemetry.trace import get_current_span
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found = get_current_span(TraceContextTextMapPropagator().extract(headers)).get_span_context()
    return found if found.is_valid else None


def digits(response: str) -> str:
    """The 32 hexadecimal digits of a response id. They are the id of its trace (in MLflow, behind `tr-`)."""
    return response.removeprefix("chatcmpl-")


# --- the spans --------------------------------------------------------------------------------


def spans(trace: Trace) -> list[ReadableSpan]:
    """The request's span and, as far as it came, those of retrieval, prompt and generation within it.

    Times are the request's own. Attributes have the names of OpenTelemetry's conventions for generative AI where there
    is one, and MLflow's (`mlflow.span...`) for what its pages show.
    """
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import Event, ReadableSpan
    from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
    from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

    exchange, row, ids = trace.exchange, trace.exchange.row, RandomIdGenerator()
    arrived = trace.ended - row.total_s
    trace_id = trace.caller.trace_id if trace.caller else int(digits(row.response), 16)
    resource = Resource({"service.name": "perennial"})

    def context() -> SpanContext:
        return SpanContext(trace_id, ids.generate_span_id(), is_remote=False, trace_flags=TraceFlags(1))

    def at(seconds: float) -> int:
        return int((arrived + seconds) * 1e9)

    def span(name: str, parent: SpanContext | None, start: float, end: float, attributes: dict, **more) -> ReadableSpan:
        timed = {"start_time": at(start), "end_time": at(end)}
        kept = {key: value for key, value in attributes.items() if value is not None}
        return ReadableSpan(name, context(), parent, resource, kept, **timed, **more)

    status = Status(StatusCode.OK) if row.status == 200 else Status(StatusCode.ERROR, row.error)
    root = span("answer", trace.caller, 0.0, row.total_s, _about(exchange), kind=SpanKind.SERVER, status=status)
    made, within, searched = [root], root.get_span_context(), row.queue_s
    if row.retrieval_s is not None:
        searched += row.retrieval_s
        made.append(span("retrieval", within, row.queue_s, searched, _retrieval(exchange)))
    if exchange.submitted_s is not None:
        prompt, written = _shown_prompt(exchange), row.total_s
        made.append(span("prompt", within, searched, exchange.submitted_s, _prompt(exchange, prompt)))
        if row.engine_s is not None:
            written = exchange.submitted_s + row.engine_s
        first = [Event("first token", timestamp=at(row.first_token_s))] if row.first_token_s is not None else []
        about = _generation(exchange, prompt)
        made.append(span("generation", within, exchange.submitted_s, written, about, events=first))
    return made


def _about(exchange: Exchange) -> dict:
    row = exchange.row
    reply = {"choices": [{"message": {"role": "assistant", "content": _shown_answer(exchange)}}]}
    return {
        "mlflow.spanType": "CHAIN",
        "mlflow.spanInputs": _json({"messages": [{"role": "user", "content": row.question}]}),
        "mlflow.spanOutputs": _json(reply | {"cited": row.cited, "abstained": row.abstained}),
        "gen_ai.response.id": row.response,
        "http.response.status_code": row.status,
        "perennial.grounding": row.grounding,
        "perennial.flags": row.flags,
        "perennial.reuse": row.reuse,
        **{f"mlflow.traceTag.{name}": getattr(row, name) for name in ("release", "arm", "source", "response")},
    }


def _retrieval(exchange: Exchange) -> dict:
    found = [
        {
            "id": hit.chunk.id,
            "page_content": _open(hit.chunk).text,
            "metadata": {"doc_uri": hit.chunk.document, "section": hit.chunk.section, "score": float(hit.score)},
        }
        for hit in exchange.hits
    ]
    return {
        "mlflow.spanType": "RETRIEVER",
        "mlflow.spanInputs": _json({"query": exchange.row.question}),
        "mlflow.spanOutputs": _json(found),
    }


def _prompt(exchange: Exchange, prompt: str) -> dict:
    inputs = {"prompt": exchange.prompt.sha256, "passages": len(exchange.hits)}
    return {
        "mlflow.spanType": "PARSER",
        "mlflow.spanInputs": _json(inputs | {"earlier_turns": len(exchange.chat.history)}),
        "mlflow.spanOutputs": _json(prompt),
    }


def _generation(exchange: Exchange, prompt: str) -> dict:
    row, decoding, model = exchange.row, exchange.decoding, exchange.release.model
    asked = [{"role": "user", "parts": [{"type": "text", "content": prompt}]}]
    said = [{"role": "assistant", "parts": [{"type": "text", "content": _shown_answer(exchange)}]}]
    reason = exchange.answer.generation.finish_reason if exchange.answer else None
    return {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": model.engine,
        "gen_ai.request.model": row.assistant,
        "gen_ai.request.max_tokens": decoding.max_new_tokens,
        "gen_ai.request.temperature": decoding.temperature,
        "gen_ai.response.finish_reasons": [reason] if reason else None,
        "gen_ai.usage.input_tokens": row.prompt_tokens,
        "gen_ai.usage.output_tokens": row.completion_tokens,
        "gen_ai.input.messages": _json(asked),
        "gen_ai.output.messages": _json(said),
        "perennial.model": model.sha256,
        "perennial.cost": row.cost,
    }


def _shown_prompt(exchange: Exchange) -> str:
    """The prompt as it may be read by whoever reads traces: `build_prompt` once more, of what may be shown."""
    history = exchange.chat.history
    if exchange.release.guard.redact_log:
        history = [turn | {"content": redact(turn["content"]).text} for turn in history]
    if _confided(exchange):
        history = [turn | {"content": HIDDEN} if turn["role"] == "assistant" else turn for turn in history]
    passages = [_open(hit.chunk) for hit in exchange.hits]
    return rag.build_prompt(exchange.prompt, exchange.row.question, passages, history)


def _shown_answer(exchange: Exchange) -> str:
    return HIDDEN if exchange.row.answer and _confided(exchange) else exchange.row.answer


def _confided(exchange: Exchange) -> bool:
    """Whether answers in it, earlier ones too, may hold what only some may read. Which passages an earlier one was
    written from is not known here, so one to a reader with rights of their own counts."""
    allowed = exchange.allowed
    earlier = bool(exchange.chat.history) and bool(allowed.labels or allowed.tenant)
    return earlier or any(_closed(hit.chunk) for hit in exchange.hits)


def _closed(chunk: Chunk) -> bool:
    return bool(chunk.access or chunk.tenant)


def _open(chunk: Chunk) -> Chunk:
    """The chunk, without its text where only some may read it."""
    return replace(chunk, text=HIDDEN) if _closed(chunk) else chunk


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)
