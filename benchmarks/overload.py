"""Ten times the load for five minutes: who is let in, how long they wait, what the others are told, and after it."""

import sys
import time

import psutil

from benchmarks.load import Plan, send, summary
from benchmarks.machine import chat_url, machine, percentile, sample_questions, untuned

AIM = "the rest gets 429 or 503 with Retry-After; p99 of the accepted at most doubles; recovers in 10 s"
CLIENTS, USUAL, MINUTES = 16, 160, 5


def met(value: dict) -> bool:
    polite = value["other_statuses"] == 0 and value["without_retry_after"] == 0
    return polite and value["p99_ratio"] <= 2 and value["recovered_s"] <= 10 and value["memory_ratio"] <= 1.1


def measure() -> dict:
    """The usual load is 16 clients that each wait for an answer of at most 16 tokens; ten times as many requests a
    second are then sent whatever comes back. Memory is of all processes of the endpoint and its model."""
    with machine():
        release = untuned()
        questions = sample_questions(360)

        def bodies(count: int, first: int) -> list[dict]:
            asked = (questions[n % len(questions)] for n in range(first, first + count))
            body = {"model": release.assistant, "max_tokens": 16, "stream": True}
            return [body | {"messages": [{"role": "user", "content": question}]} for question in asked]

        replies, seconds, _ = send(chat_url(), Plan(bodies(USUAL, 0), clients=CLIENTS))
        usual, rate = summary(replies, seconds), len(replies) / seconds
        print(usual, round(rate, 2), file=sys.stderr, flush=True)
        before = memory()
        count = int(10 * rate * 60 * MINUTES)
        replies, seconds, _ = send(chat_url(), Plan(bodies(count, USUAL), rate=10 * rate))
        ended = time.monotonic()
        accepted = [1000 * reply.total_s for reply in replies if reply.status == 200 and reply.whole]
        told = [reply for reply in replies if reply.status in (429, 503)]
        after = memory()
        usual_ms = usual["total_ms_p50"]
        while True:
            (reply,), _, _ = send(chat_url(), Plan(bodies(1, 7)))
            if reply.status == 200 and 1000 * reply.total_s <= usual_ms:
                break
        recovered = time.monotonic() - ended
    value = {
        "p99_ratio": round(percentile(accepted, 0.99) / usual["total_ms_p99"], 2),
        "usual_ms": [usual_ms, usual["total_ms_p99"]],
        "accepted_ms": [round(percentile(accepted, 0.5), 1), round(percentile(accepted, 0.99), 1)],
        "requests_s": [round(rate, 2), round(10 * rate, 2)],
        "answered_s": round(len(accepted) / seconds, 2),
        "sent": len(replies),
        "accepted": len(accepted),
        "told_to_come_back": len(told),
        "without_retry_after": sum(not reply.retry_after for reply in told),
        "other_statuses": len(replies) - len(told) - len(accepted),
        "memory_ratio": round(after / before, 2),
        "recovered_s": round(recovered, 1),
    }
    return {"value": value, "n": len(replies), "against": "the usual load", "limit": None}


def memory() -> int:
    """Bytes held by the endpoint, the models and Serve's proxy of this user."""
    found = (p for p in psutil.process_iter(["cmdline", "memory_info"]) if p.info["cmdline"])
    ours = (p for p in found if any(word in p.info["cmdline"][0] for word in ("ray::ServeReplica", "ray::ProxyActor")))
    return sum(p.info["memory_info"].rss for p in ours)
