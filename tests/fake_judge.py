"""A judge's endpoint on a real port: OpenAI's chat completions by hand, with replies a test chooses."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from tasks.bill import Bill
from tasks.judge import Judge

Reply = Callable[[dict], "str | int | float | bytes"]


@dataclass
class Endpoint:
    """What was asked, and where. `reply` gives a content, a status from 400 on, the seconds it keeps silent,
    or a whole body in bytes."""

    url: str
    reply: Reply
    asked: list[dict] = field(default_factory=list)

    def judge(self, folder: Path, budget: float = 5.0, timeout_s: float = 10.0) -> Judge:
        """A new run of a judge at this endpoint: a million tokens cost 1 to read and 2 to write."""
        return Judge(self.url, "tiny", "key", timeout_s, Bill(budget, 1.0, 2.0), folder / "verdicts.db")


@contextmanager
def serve(reply: Reply) -> Iterator[Endpoint]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            endpoint.asked.append(body)
            said = endpoint.reply(body)
            if isinstance(said, float):
                time.sleep(said)
            status = said if isinstance(said, int) else 200
            content = said if isinstance(said, str) else ""
            choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
            usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
            whole = {"id": "1", "object": "chat.completion", "created": 1, "model": "tiny", "usage": usage}
            sent = json.dumps(whole | {"choices": [choice]} if status == 200 else {"error": {"message": "busy"}})
            if isinstance(said, bytes):
                sent = said.decode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(sent.encode())))
            self.end_headers()
            self.wfile.write(sent.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", reply)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        server.server_close()


def lexical(body: dict) -> str:
    """The verdict of a judge that reads: yes if an accepted answer stands in the answer."""
    shown = json.loads(body["messages"][-1]["content"])
    right = any(accepted.lower() in shown["answer"].lower() for accepted in shown["accepted_answers"])
    return json.dumps({"correct": "yes" if right else "no"})


def filled(schema: dict, defs: dict | None = None):
    """Some value of a JSON schema: the first choice, three items in a list, 1 for a number, a word for a text."""
    defs = defs or schema.get("$defs", {})
    if "$ref" in schema:
        return filled(defs[schema["$ref"].rsplit("/", 1)[1]], defs)
    if "anyOf" in schema:
        return filled(schema["anyOf"][0], defs)
    if "enum" in schema or "const" in schema:
        return schema.get("const", schema.get("enum", [None])[0])
    kind = schema.get("type")
    if kind == "object":
        return {name: filled(part, defs) for name, part in schema.get("properties", {}).items()}
    if kind == "array":
        return [filled(schema.get("items", {}), defs)] * 3
    return {"integer": 1, "number": 1.0, "boolean": True, "string": "Röntgen"}.get(kind)
