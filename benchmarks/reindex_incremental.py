"""One percent of 10,000 documents edited: prepare and index again, against a full rebuild."""

import shutil
import time

from benchmarks import corpus
from benchmarks.machine import home

AIM = "at least 50x faster than a full rebuild at 1% of 10,000 documents"
DOCUMENTS, CHANGED, ROUNDS = 10_000, 100, 3


def met(value: dict) -> bool:
    return value["ratio"] >= 50


def measure() -> dict:
    """Seconds of the full build, and of re-indexing after each of three edits of 1% of the documents (median)."""
    with home() as folder:
        from data.records import Sources
        from tasks.index import build_index
        from tasks.prepare import prepare

        sources, docs = Sources("many", str(folder / "docs")), folder / "docs"
        corpus.write(docs, range(DOCUMENTS), sections=3)

        def build(previous) -> tuple:
            start = time.monotonic()
            snapshot = prepare(sources, previous)
            read = time.monotonic()
            version = build_index(snapshot)
            return snapshot, version, read - start, time.monotonic() - read

        snapshot, version, *full = build(None)
        rounds = []
        for edition in range(1, ROUNDS + 1):
            corpus.write(docs, range(edition, DOCUMENTS, DOCUMENTS // CHANGED), sections=3, edition=edition)
            snapshot, version, *took = build(snapshot)
            rounds.append((sum(took), *took, version.embedded))
        middle = sorted(rounds)[ROUNDS // 2]
        shutil.rmtree(docs)
    value = {
        "full_s": round(sum(full), 1),
        "incremental_s": round(middle[0], 2),
        "prepare_s": round(middle[1], 2),
        "index_s": round(middle[2], 2),
        "embedded": middle[3],
        "chunks": version.chunks,
        "ratio": round(sum(full) / middle[0], 1),
    }
    return {"value": value, "n": ROUNDS, "against": "full prepare and index", "limit": f"{DOCUMENTS // CHANGED}x"}
