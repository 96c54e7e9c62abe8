"""What our code costs in front of an engine that answers at once: time added at 50 requests/s, and saturation.

`python -m benchmarks.front_door ours|bare PORT` serves one side.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import httpx

from benchmarks.load import Plan, send, summary
from benchmarks.machine import ROOT, free_ports, home

AIM = "p99 added at most 15 ms; saturation at least 3x LiteLLM's"
RATE, SECONDS, ROUNDS, SATURATING, CLIENTS = 50.0, 20, 3, 2000, 32
WORDS = ("The", " Standard", " plan", " keeps", " it", " for", " 30", " days", ".")


def met(value: dict) -> bool:
    limit = value["litellm_requests_s"]
    return value["p99_added_ms"] <= 15 and limit is not None and value["ours_requests_s"] >= 3 * limit


def measure() -> dict:
    """Rounds in turn: 20 s of 50 streamed requests a second at each side, then 2,000 as fast as 32 clients can.

    Ours: the endpoint's app with router, keys, guard, screens, citations and request log; retrieval and engine answer
    at once. Bare: an ASGI app that streams the same pieces. LiteLLM's proxy in front of the bare app runs where
    LITELLM names its executable (an environment of its own).
    """
    with home() as folder:
        ports = list(free_ports().values())
        sides = {"bare": serve("bare", ports[0], folder), "ours": serve("ours", ports[1], folder)}
        urls = {"bare": ports[0], "ours": ports[1]}
        try:
            if os.environ.get("LITELLM"):
                sides["litellm"] = litellm(os.environ["LITELLM"], ports[2], ports[0], folder)
                urls["litellm"] = ports[2]
            urls = {side: f"http://127.0.0.1:{port}/v1/chat/completions" for side, port in urls.items()}
            for url in urls.values():
                ready(url)
            paced: dict[str, list] = {side: [] for side in urls}
            full: dict[str, list] = {side: [] for side in urls}
            for _ in range(ROUNDS):
                for side, url in urls.items():
                    replies, seconds, _ = send(url, Plan(bodies(int(RATE * SECONDS)), rate=RATE))
                    paced[side].append(summary(replies, seconds))
                    replies, seconds, _ = send(url, Plan(bodies(SATURATING), clients=CLIENTS))
                    good = sum(reply.status == 200 and reply.whole for reply in replies)
                    full[side].append((good / seconds, len(replies) - good))
                    print(side, paced[side][-1], full[side][-1], file=sys.stderr, flush=True)
        finally:
            for process in sides.values():
                process.terminate()
                process.wait()

    def middle(side: str, name: str) -> float:
        return statistics.median(one[name] for one in paced[side])

    def saturation(side: str) -> float | None:
        return round(statistics.median(rate for rate, _ in full[side]), 1) if side in full else None

    value = {
        "p99_added_ms": round(middle("ours", "total_ms_p99") - middle("bare", "total_ms_p99"), 1),
        "p50_added_ms": round(middle("ours", "total_ms_p50") - middle("bare", "total_ms_p50"), 1),
        "ours_requests_s": saturation("ours"),
        "bare_requests_s": saturation("bare"),
        "litellm_requests_s": saturation("litellm"),
        "failed": sum(one["failed"] for side in paced for one in paced[side]),
    }
    return {"value": value, "n": ROUNDS * int(RATE * SECONDS), "against": "a bare ASGI app", "limit": "the bare app"}


def bodies(count: int) -> list[dict]:
    return [
        {"model": "mock", "messages": [{"role": "user", "content": f"How long is file {n} kept?"}], "stream": True}
        for n in range(count)
    ]


def ready(url: str) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            if httpx.post(url, json=bodies(1)[0] | {"stream": False}, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        if time.monotonic() > deadline:
            raise TimeoutError(f"{url} does not answer")
        time.sleep(0.5)


def serve(side: str, port: str, folder: Path) -> subprocess.Popen:
    log = (folder / f"{side}.log").open("w")
    return subprocess.Popen([sys.executable, "-m", "benchmarks.front_door", side, port], cwd=ROOT, stderr=log)


def litellm(executable: str, port: str, bare: str, folder: Path) -> subprocess.Popen:
    """LiteLLM's proxy with one model: the bare app."""
    config = folder / "litellm.yaml"
    upstream = {"model": "openai/mock", "api_base": f"http://127.0.0.1:{bare}/v1", "api_key": "none"}
    config.write_text(json.dumps({"model_list": [{"model_name": "mock", "litellm_params": upstream}]}))
    command = [executable, "--config", str(config), "--host", "127.0.0.1", "--port", port]
    log = (folder / "litellm.log").open("w")
    return subprocess.Popen(command, stdout=log, stderr=log)


def ours():
    """The endpoint's app over a ledger with one live release; its engine and its search answer at once."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np

    from data.ledger import Ledger, migrate
    from data.records import Chunk, Hit, IndexVersion, Model, Release, Sources
    from data.requests import RequestLog
    from serving.app import Parts, create_app
    from serving.router import Router
    from settings import settings

    migrate(settings().ledger)
    book = Ledger(settings().ledger)
    index = IndexVersion("mock", "uri", "t", 1, "sum", "emb", "chunk", 1, 1, "snap")
    release = Release("mock", Model("a" * 64, "m.gguf", "openvino", "b"), index)
    book.register(Sources("mock", "docs"), {})
    if book.assistant("mock")["live_release"] is None:
        book.add_release(release, "bootstrap", None, {})
        from data.records import Decision

        book.decide_gate("mock", Decision("bootstrap", "for a benchmark", release.id))
        book.decide("mock", "smoke", release.id, "answered", "", {})
        book.decide("mock", "canary", release.id, "held", "", {})
        book.promote("mock", release.id, 0)
    chunk = Chunk("c1", "plans.md", "Plans", "Trash", "h", "The Standard plan keeps it for 30 days.")
    found = (Hit(chunk, 1.0, 0.8),), np.ones(384, np.float32)

    async def generate(model, prompt, decoding):
        for n, word in enumerate(WORDS, start=1):
            reason = "stop" if n == len(WORDS) else ""
            yield {"text": word, "tokens": n, "finish_reason": reason, "prompt_tokens": 300}

    router = Router(book)
    router.start()
    parts = Parts(
        router,
        generate,
        lambda *asked: found,
        lambda *asked: [chunk],
        RequestLog(settings().requests),
        book.add_feedback,
        book,
    )
    return create_app(parts, settings(), "token", ThreadPoolExecutor(2))


async def bare(scope, receive, send_) -> None:
    """An ASGI app that reads the body and streams the same pieces, or gives them at once."""
    if scope["type"] != "http":
        return
    body = b""
    while (message := await receive()).get("body") or message.get("more_body"):
        body += message["body"]
        if not message.get("more_body"):
            break
    streamed = json.loads(body).get("stream")
    kind = b"text/event-stream" if streamed else b"application/json"
    await send_({"type": "http.response.start", "status": 200, "headers": [(b"content-type", kind)]})
    about = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 0, "model": "mock"}
    if streamed:
        for n, word in enumerate(WORDS):
            reason = "stop" if n == len(WORDS) - 1 else None
            choice = {"index": 0, "delta": {"role": "assistant", "content": word}, "finish_reason": reason}
            line = b"data: " + json.dumps(about | {"choices": [choice]}).encode() + b"\n\n"
            await send_({"type": "http.response.body", "body": line, "more_body": True})
        await send_({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return
    message = {"role": "assistant", "content": "".join(WORDS)}
    usage = {"prompt_tokens": 300, "completion_tokens": len(WORDS), "total_tokens": 300 + len(WORDS)}
    whole = {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}
    about["object"] = "chat.completion"
    await send_({"type": "http.response.body", "body": json.dumps(about | whole).encode()})


if __name__ == "__main__":
    import uvicorn

    app = ours() if sys.argv[1] == "ours" else bare
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="warning")
