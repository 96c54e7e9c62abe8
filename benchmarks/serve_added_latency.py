"""What the endpoint adds to the first token of one client, over retrieval and engine in one process."""

import statistics
import time

from benchmarks.load import Plan, send
from benchmarks.machine import chat_url, machine, sample_questions, untuned
from benchmarks.serve_throughput import Bare

AIM = "at most 20 ms at the median"
WARM, QUESTIONS = 10, 60


def met(value: dict) -> bool:
    return value["added_ms"] <= 20


def measure() -> dict:
    """Each question is asked once of each side, in turn, cold on both; the engine writes at most 16 tokens."""
    from data.records import Decoding

    with machine():
        release = untuned()
        bare = Bare(release)
        through, alone = [], []
        for question in sample_questions(WARM + QUESTIONS):
            body = {
                "model": release.assistant,
                "messages": [{"role": "user", "content": question}],
                "max_tokens": 16,
                "temperature": 0,
                "stream": True,
            }
            (reply,), _, _ = send(chat_url(), Plan([body]))
            through.append(1000 * reply.first_s)
            start = time.perf_counter()
            pieces = bare.engine.stream(bare.prompt(question), Decoding(max_new_tokens=16))
            next(pieces)
            alone.append(1000 * (time.perf_counter() - start))
            for _ in pieces:
                pass
        bare.engine.close()
    through, alone = through[WARM:], alone[WARM:]
    value = {
        "added_ms": round(statistics.median(a - b for a, b in zip(through, alone, strict=True)), 1),
        "stack_first_ms": round(statistics.median(through), 1),
        "bare_first_ms": round(statistics.median(alone), 1),
    }
    return {"value": value, "n": QUESTIONS, "against": "retrieval + engine.stream in one process", "limit": "0"}
