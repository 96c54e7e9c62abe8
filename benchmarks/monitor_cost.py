"""What watching costs: processor seconds of signals and diagnosis for 1,000 more requests, by the length of the log."""

import json
import random
import time

import numpy as np

from benchmarks.machine import SAMPLE, home

AIM = "at most 2 CPU seconds per 1,000 requests, however long the log, process start apart"
HISTORIES, MORE, LEARN = (1_000, 10_000, 100_000), 1_000, 4_000


def met(value: dict) -> bool:
    return all(row["cpu_s"] <= 2 for row in value.values())


def measure(rounds: int = 3) -> dict:
    """The sample's index, and logged requests drawn at random from its questions, so that nothing moves.

    For each length of the log: a run of `watch` and `diagnose` over 1,000 new requests less one over none, the median
    of `rounds`. Beside it the run over none, which a quiet monitor costs.
    """
    with home():
        from data.ledger import Ledger, migrate
        from data.requests import RequestLog
        from settings import settings
        from tasks import diagnose, watch
        from tasks.index import Staleness

        migrate(settings().ledger)
        book = Ledger(settings().ledger)
        release = put_live(book)

        def run() -> float:
            """CPU seconds of one run of the monitor over what is new."""
            start = time.process_time()
            evidence, states = watch.watch("handbook", Staleness())
            found = diagnose.diagnose(evidence)
            seconds = time.process_time() - start
            book.store_signals("handbook", states)
            assert found.kind == "nothing", found.reason
            return seconds

        log, written, value = RequestLog(settings().requests), 0, {}
        run()  # opens the index and asks it its probes, which is once for each index
        for history in HISTORIES:
            while written < history:
                written += fill(log, release, min(LEARN, history - written), written)
                if written <= LEARN:
                    run()
            skip(book, log)
            added, idle = [], []
            for _ in range(rounds):
                written += fill(log, release, MORE, written)
                added.append(run())
                idle.append(run())
            quiet = sorted(idle)[rounds // 2]
            value[f"{history:,}"] = {"cpu_s": round(sorted(added)[rounds // 2] - quiet, 2), "quiet_s": round(quiet, 3)}
    return {"value": value, "n": {"requests": MORE, "rounds": rounds}, "against": None, "limit": None}


def put_live(book) -> str:
    """The sample's index under a model that is never asked, live as the ledger sees it; the id of that release."""
    from data.records import Model, Release, Sources, as_json
    from tasks.index import build_index
    from tasks.prepare import prepare

    sources = Sources("handbook", str(SAMPLE / "documents"))
    snapshot = prepare(sources)
    release = Release("handbook", Model("a" * 64, "model.gguf", "openvino", "b" * 64), build_index(snapshot))
    book.register(sources, as_json(snapshot))
    book.add_release(release, "bootstrap", None, as_json(snapshot))
    for condition, verdict in (("gate", "bootstrap"), ("smoke", "answered"), ("canary", "held")):
        book.decide("handbook", condition, release.id, verdict, "", {})
    book.promote("handbook", release.id, 0)
    return release.id


def fill(log, release: str, rows: int, after: int) -> int:
    """Adds `rows` requests of a quiet week to the log, the first of them numbered `after`."""
    from data.requests import requests

    chance, draw = random.Random(after), np.random.default_rng(after)
    asked = [json.loads(line) for line in (SAMPLE / "examples.jsonl").read_text().splitlines()]
    at, made = time.time() - 86_400, []
    for number in range(after, after + rows):
        one = chance.choice(asked)
        made.append(
            {
                "response": f"r{number}", "at": at + number * 0.5, "assistant": "handbook", "release": release,
                "arm": "live", "source": "user", "user": f"u{chance.randrange(50)}", "question": one["question"],
                "answer": f"{one['answers'][0]} [1]", "abstained": chance.random() < 0.05, "chunks": ["c1", "c2", "c3"],
                "scores": sorted((chance.random() for _ in range(3)), reverse=True), "cited": ["c1"],
                "similarity": chance.uniform(0.4, 0.9), "grounding": chance.uniform(0.6, 1.0),
                "embedding": unit(draw).astype("<f2").tobytes(), "prompt_tokens": chance.randrange(200, 400),
                "completion_tokens": chance.randrange(9, 30), "queue_s": 0.01, "retrieval_s": 0.05, "engine_s": 0.5,
                "first_token_s": chance.uniform(0.1, 0.3), "total_s": chance.uniform(0.6, 1.2), "status": 200,
                "error": "", "key": "", "tenant": "", "cost": 0.0, "flags": [],
            }
        )  # fmt: skip
    with log.engine.begin() as connection:
        connection.execute(requests.insert(), made)
    return rows


def unit(draw) -> np.ndarray:
    """A random direction of the embedder's size."""
    vector = draw.standard_normal(384)
    return vector / np.linalg.norm(vector)


def skip(book, log) -> None:
    """The monitor has seen everything so far: its runs before would only have taken the time."""
    cursor = book.signal_states("handbook")["cursor"]
    book.store_signals("handbook", {"cursor": cursor | {"request": log.last_id("handbook")}})
