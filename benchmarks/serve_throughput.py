"""Tokens a second of the whole stack with 32 clients, against the engine alone on the same prompts."""

import statistics
import sys
import time

from benchmarks.load import Plan, send, summary
from benchmarks.machine import chat_url, machine, sample_questions, untuned

AIM = "at least .8 of the bare engine"
CLIENTS, ROUNDS, REQUESTS = 32, 3, 96


def met(value: dict) -> bool:
    return value["share"] >= 0.8 and value["failed"] == 0


def measure() -> dict:
    """Rounds in turn: 96 streamed answers of 64 tokens through the endpoint (retrieval, log, router, proxy), then the
    same prompts given to the same engine in one process, 32 at a time; medians over three rounds of other questions.
    """
    questions = sample_questions(ROUNDS * REQUESTS)
    with machine():
        release = untuned()
        bare = Bare(release)
        rounds = []
        for turn in range(ROUNDS):
            asked = questions[turn * REQUESTS : (turn + 1) * REQUESTS]
            bodies = [
                {
                    "model": release.assistant,
                    "messages": [{"role": "user", "content": question}],
                    "max_tokens": 64,
                    "temperature": 0,
                    "stream": True,
                    "stream_options": {"include_usage": True},
                }
                for question in asked
            ]
            replies, seconds, client = send(chat_url(), Plan(bodies, clients=CLIENTS))
            through = summary(replies, seconds) | {"client_cpu_s": round(client, 1), "seconds": round(seconds, 1)}
            alone = bare.tokens_s(asked)
            print(through, alone, file=sys.stderr, flush=True)
            rounds.append((through, alone))
        bare.engine.close()
    whole = statistics.median(through["tokens_s"] for through, _ in rounds)
    alone = statistics.median(tokens for _, tokens in rounds)
    value = {
        "share": round(whole / alone, 2),
        "stack_tokens_s": whole,
        "engine_tokens_s": round(alone, 1),
        "failed": sum(through["failed"] for through, _ in rounds),
        "first_ms_p50": statistics.median(through["first_ms_p50"] for through, _ in rounds),
        "client_cpu_share": round(sum(t["client_cpu_s"] for t, _ in rounds) / sum(t["seconds"] for t, _ in rounds), 2),
    }
    return {"value": value, "n": ROUNDS * REQUESTS, "against": "engine.generate, the same prompts", "limit": "1.0"}


class Bare:
    """The engine of a release in this process, with the prompts that the endpoint would build."""

    def __init__(self, release):
        from data.embedding import load
        from data.store import open_index
        from serving.engine import open_engine
        from serving.engine.models import embedder_folder

        self.release, self.engine = release, open_engine(release.model)
        self.index, self.embedder = open_index(release.index), load(embedder_folder())

    def prompt(self, question: str) -> str:
        from serving import rag

        hits = rag.retrieve(self.index, self.embedder, question, self.release.retrieval)
        return rag.build_prompt(self.release.prompt, question, [hit.chunk for hit in hits])

    def tokens_s(self, questions: list[str]) -> float:
        """Completion tokens a second, CLIENTS at a time as one client each would send them."""
        from concurrent.futures import ThreadPoolExecutor

        from data.records import Decoding

        prompts, decoding = [self.prompt(question) for question in questions], Decoding(max_new_tokens=64)
        start = time.perf_counter()
        with ThreadPoolExecutor(CLIENTS) as pool:
            written = list(pool.map(lambda prompt: self.engine.generate([prompt], decoding)[0], prompts))
        return sum(generation.completion_tokens for generation in written) / (time.perf_counter() - start)
