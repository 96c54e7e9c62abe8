"""An upstream on a real port: OpenAI's streamed chat completions by hand, well and badly behaved."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SPLIT = 7
"""Bytes in a packet: events and characters arrive in parts."""


@dataclass(frozen=True)
class Reply:
    """What one request gets. `status` from 400 on: an error with `message` and `code`. Else `pieces`, every `pause_s`,
    then the finish reason and usage; `stops_after` so many pieces it falls silent, `cut_after` so many it hangs up.
    """

    pieces: tuple[str, ...] = ("Two", " days", ".")
    finish: str = "stop"
    usage: tuple[int, int] | None = (42, 3)
    calls: tuple[dict, ...] = ()
    status: int = 200
    message: str = "busy"
    code: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    pause_s: float = 0.0
    stops_after: int | None = None
    cut_after: int | None = None
    raw: bytes = b""


@dataclass
class Upstream:
    """Where it listens, what it was asked, with which headers, and whether a client hung up on it."""

    url: str
    reply: Callable[[dict], Reply]
    asked: list[dict] = field(default_factory=list)
    headers: list[dict] = field(default_factory=list)
    hung_up: threading.Event = field(default_factory=threading.Event)

    @property
    def name(self) -> str:
        return f"{self.url}#tiny"


def in_turn(*replies: Reply) -> Callable[[dict], Reply]:
    """One after the other, the last one for ever."""
    left = list(replies)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


@contextmanager
def serve(reply: Callable[[dict], Reply]) -> Iterator[Upstream]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            upstream.asked.append(body)
            upstream.headers.append({name.lower(): value for name, value in self.headers.items()})
            given = upstream.reply(body)
            self.send_response(given.status)
            for name, value in given.headers.items():
                self.send_header(name, value)
            self.end_headers()
            try:
                self.answer(body, given)
            except OSError:
                upstream.hung_up.set()

        def answer(self, body: dict, given: Reply) -> None:
            if given.status >= 400:
                self.wfile.write(json.dumps({"error": {"message": given.message, "code": given.code}}).encode())
                return
            assert body["stream"] and self.path == "/v1/chat/completions"
            self.wfile.write(given.raw)
            for at, piece in enumerate(given.pieces):
                if at == given.cut_after:
                    return
                if at == given.stops_after:
                    self.connection.recv(1)  # returns when the other side goes
                    raise OSError
                self.event({"content": piece})
                time.sleep(given.pause_s)
            for at, call in enumerate(given.calls):  # name first, arguments in two parts, as OpenAI sends them
                made = call["function"]
                half = len(made["arguments"]) // 2
                self.event({"tool_calls": [{"index": at} | call | {"function": made | {"arguments": ""}}]})
                for part in (made["arguments"][:half], made["arguments"][half:]):
                    self.event({"tool_calls": [{"index": at, "function": {"arguments": part}}]})
            self.event({}, given.finish)
            if given.usage and body.get("stream_options", {}).get("include_usage"):
                read, wrote = given.usage
                self.send({"choices": [], "usage": {"prompt_tokens": read, "completion_tokens": wrote}})
            self.wfile.write(b"data: [DONE]\n\n")

        def event(self, delta: dict, finish: str | None = None) -> None:
            self.send({"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})

        def send(self, data: dict) -> None:
            line = f"data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()
            for start in range(0, len(line), SPLIT):
                self.wfile.write(line[start : start + SPLIT])
                self.wfile.flush()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    upstream = Upstream(f"http://127.0.0.1:{server.server_port}/v1", reply)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield upstream
    finally:
        server.shutdown()
        server.server_close()
