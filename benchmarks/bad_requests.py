"""Malformed calls, resource bombs and a steady good client beside them: what is answered, how fast, at what cost."""

import asyncio
import json
import random
import socket
import statistics
import threading
import time

import httpx
import psutil

from benchmarks.front_door import bodies, ready, serve
from benchmarks.load import Plan, send, summary
from benchmarks.machine import free_ports, home, percentile

AIM = "OpenAI-shaped errors, never a 500; bombs refused within 100 ms; good clients and memory unharmed"
MALFORMED, SLOW_CLIENTS = 150, 20


def met(value: dict) -> bool:
    sound = value["malformed_wrong"] == value["bombs_wrong"] == value["good_failed"] == 0
    return sound and value["bomb_ms_p99"] <= 100 and value["memory_ratio"] <= 1.1


def measure() -> dict:
    """150 fuzzed calls and 60 bombs, one after another, then 20 clients that send slowly or do not read, while one good
    client asks five times a second. Every refusal must be a 4xx in OpenAI's shape; a bomb's time is from sending it to
    the answer."""
    with home() as folder:
        port = int(next(iter(free_ports().values())))
        process = serve("ours", str(port), folder)
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        try:
            ready(url)
            asyncio.run(_many(url, bodies(500)))  # its buffers are as large as they get
            server = psutil.Process(process.pid)
            before = server.memory_info().rss
            quiet, _, _ = send(url, Plan(bodies(100), rate=5))
            kept: list = []
            steady = threading.Thread(target=lambda: kept.extend(send(url, Plan(bodies(200), rate=5))[0]))
            steady.start()
            with httpx.Client(timeout=10) as client:
                wrong = [told for told in (asked(client, url, body) for body in malformed()) if told]
                bombed = [timed(client, url, body) for body in bombs()]
            held = [slow(port, number) for number in range(SLOW_CLIENTS)]
            steady.join()
            for connection in held:
                connection.close()
            after = server.memory_info().rss
        finally:
            process.terminate()
            process.wait()
    for told in [*wrong, *(told for told, _ in bombed if told)]:
        print(told)
    usual, beside = summary(quiet, 1.0), summary(kept, 1.0)
    value = {
        "malformed": MALFORMED,
        "malformed_wrong": len(wrong),
        "bombs": len(bombed),
        "bombs_wrong": sum(bool(told) for told, _ in bombed),
        "bomb_ms_p99": round(percentile([ms for _, ms in bombed], 0.99), 1),
        "bomb_ms_median": round(statistics.median(ms for _, ms in bombed), 1),
        "good_failed": beside["failed"],
        "good_ms_p99": [usual["total_ms_p99"], beside["total_ms_p99"]],
        "memory_ratio": round(after / before, 2),
    }
    return {"value": value, "n": MALFORMED + len(bombed), "against": "the same good client alone", "limit": None}


async def _many(url: str, sent: list[dict]) -> None:
    async with httpx.AsyncClient(timeout=60) as client:
        for first in range(0, len(sent), 20):
            await asyncio.gather(*(client.post(url, json=body) for body in sent[first : first + 20]))


def asked(client: httpx.Client, url: str, body: bytes) -> str:
    """'' where the call is refused as it should be, else what came back."""
    try:
        reply = client.post(url, content=body, headers={"content-type": "application/json"})
    except httpx.HTTPError as error:
        return f"{body[:80]!r}: {type(error).__name__}"
    try:
        told = reply.json()["error"]
        shaped = {"message", "type", "param", "code"} <= set(told) and told["message"]
    except (ValueError, KeyError, TypeError):
        shaped = False
    return "" if 400 <= reply.status_code < 500 and shaped else f"{body[:80]!r}: {reply.status_code} {reply.text[:120]}"


def timed(client: httpx.Client, url: str, body: bytes) -> tuple[str, float]:
    start = time.perf_counter()
    told = asked(client, url, body)
    return told, 1000 * (time.perf_counter() - start)


def malformed() -> list[bytes]:
    """Calls that each break one thing: JSON, types, ranges, unknown values, roles, encodings."""
    rng = random.Random(7)
    good = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}
    junk = [None, True, 7, -1, 3.5, "x", [], {}, [1], {"a": 1}, [[]], "\x00"]
    fields = {
        "model": [None, 7, [], {}, "unknown", "", "x" * 10_000],
        "messages": [None, 7, "x", [], {}, [1], [None], [[]], [{}], [{"role": "user"}], [{"content": "x"}]],
        "stream": [7, "yes", [], {}],
        "stream_options": [7, "x", {"include_usage": "yes"}],
        "temperature": [-1, 3, "hot", [], {}, 1e9],
        "top_p": [0, -1, 2, "x", []],
        "max_tokens": [0, -5, 1.5, "many", [], {}],
        "max_completion_tokens": [0, -5, 1.5, "many"],
        "stop": [7, {}, [7], [""], ["x" * 101]],
        "seed": ["x", 1.5, [], 2**64],
        "n": [0, 2, -1, "x", 10**6],
        "logprobs": [True, "x", 5],
        "top_logprobs": [5, "x"],
        "logit_bias": [{"5": 100}, "x"],
        "frequency_penalty": [1, "x"],
        "presence_penalty": [2, "x"],
        "modalities": [["audio"], "x"],
        "response_format": [7, "json", {"type": "xml"}, {"type": "json_schema"}],
        "user": [7, [], "u" * 1000],
        "documents": ["x", 7, [7], []],
        "filters": [7, "x", {"colour": "red"}, {"languages": ["english"]}, {"modified_after": "yesterday"}],
        "retrieval": ["maybe", 7, True],
    }  # fmt: skip
    calls = [json.dumps(good | {name: value}).encode() for name, values in fields.items() for value in values]
    broken = [
        b"",
        b"{",
        b"[]",
        b"7",
        b"null",
        b'"x"',
        b"\xff\xfe",
        b"{'model': 'mock'}",
        b"{}",
        b"NaN",
        b'{"model": NaN}',
    ]
    broken += [json.dumps(good).encode()[:-cut] for cut in (1, 5, 20)]
    broken += [
        json.dumps(good | {"messages": [{"role": role, "content": "x"}]}).encode() for role in ("god", "", "User")
    ]
    broken += [
        json.dumps(good | {"messages": [{"role": "user", "content": value}]}).encode() for value in (7, [], {}, [7])
    ]
    while len(calls) + len(broken) < MALFORMED:
        message = {"role": "user", "content": "Hello"} | {rng.choice(["role", "content"]): rng.choice(junk[2:5])}
        broken.append(json.dumps(good | {"messages": [message], "seed": rng.randrange(9)}).encode())
    return (broken + calls)[:MALFORMED]


def bombs() -> list[bytes]:
    """Calls that ask for too much: sizes, counts, depth, digits, schemas."""
    good = {"model": "mock", "messages": [{"role": "user", "content": "Hello"}]}

    def schema(made: object) -> dict:
        return good | {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": made}}}

    deep: dict = {"type": "string"}
    for _ in range(200):
        deep = {"type": "array", "items": deep}
    wide = {"type": "object", "properties": {f"p{n}": {"type": "string"} for n in range(20_000)}}
    text = json.dumps(good)
    made = [json.dumps(good | {"n": 10**exponent}).encode() for exponent in (2, 4, 6, 9)]
    made += [json.dumps(good | {"messages": good["messages"] * count}).encode() for count in (10**4, 3 * 10**4)]
    sizes = (500_000, 900_000, 2_000_000, 5_000_000)
    made += [json.dumps(good | {"messages": [{"role": "user", "content": "x " * size}]}).encode() for size in sizes]
    made += [json.dumps(good | {"messages": [{"role": "user", "content": "\n" * size}]}).encode() for size in sizes]
    made += [
        text[:-1].encode() + b', "x": ' + b"[" * depth + b"]" * depth + b"}"
        for depth in (10**3, 10**4, 10**5, 4 * 10**5)
    ]
    made += [
        text[:-1].encode() + b', "x": ' + b'{"a":' * depth + b"1" + b"}" * depth + b"}"
        for depth in (10**3, 10**4, 10**5)
    ]
    made += [
        text[:-1].encode() + f', "{name}": '.encode() + b"9" * digits + b"}"
        for name in ("seed", "max_tokens")
        for digits in (50, 5_000, 500_000)
    ]
    made += [json.dumps(schema(deep)).encode(), json.dumps(schema(wide)).encode()]
    made += [json.dumps(schema({"type": "string", "pattern": "(a+)+" * count})).encode() for count in (1, 50, 5_000)]
    made += [json.dumps(schema({"$ref": "#"})).encode(), json.dumps(schema({"enum": ["x" * 50] * 20_000})).encode()]
    made += [json.dumps(good | {"stop": ["x" * 99] * count}).encode() for count in (5, 100, 9_000)]
    made += [json.dumps(good | {"documents": ["d" * 999] * count}).encode() for count in (101, 900)]
    made += [json.dumps(good | {"user": "u" * size}).encode() for size in (10_000, 900_000)]
    while len(made) < 60:
        made.append(json.dumps(good | {"n": 1000 + len(made)}).encode())
    return made[:60]


def slow(port: int, number: int) -> socket.socket:
    """A client that stops in the middle of its body, or asks for a stream and never reads it."""
    connection = socket.create_connection(("127.0.0.1", port))
    body = json.dumps({"model": "mock", "messages": [{"role": "user", "content": "Hello"}], "stream": True}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    connection.sendall(head + (body if number % 2 else body[:20]))
    return connection
