"""Prepare and index of 50,000 documents against 5,000: time and memory, each in a process of its own."""

import json
import resource
import subprocess
import sys
import time

from benchmarks import corpus
from benchmarks.machine import ROOT, home

AIM = "at most 10.5x the time, memory flat (at most 1.25x)"
FEW, MANY = 5_000, 50_000


def met(value: dict) -> bool:
    return value["time_ratio"] <= 10.5 and value["memory_ratio"] <= 1.25


def measure() -> dict:
    """Both sizes, the small one first; documents of one section and about 30 words."""
    with home() as folder:
        sides = {}
        for size in (FEW, MANY):
            corpus.write(folder / str(size), range(size), lines=1)
            command = [sys.executable, "-m", "benchmarks.prepare_scaling", str(folder / str(size))]
            done = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
            sides[size] = json.loads(done.stdout.splitlines()[-1])
            print(json.dumps({size: sides[size]}), file=sys.stderr, flush=True)
    few, many = sides[FEW], sides[MANY]
    total = {size: side["prepare_s"] + side["index_s"] for size, side in sides.items()}
    value = {
        "few": few,
        "many": many,
        "time_ratio": round(total[MANY] / total[FEW], 2),
        "memory_ratio": round(many["peak_mb"] / few["peak_mb"], 2),
    }
    return {"value": value, "n": 1, "against": f"{FEW} documents", "limit": "10x"}


def build(documents: str) -> dict:
    """Seconds and the peak of memory (MB) of this process."""
    from settings import apply_environment

    apply_environment()
    from data.embedding import load
    from data.records import Sources
    from serving.engine.models import embedder_folder
    from tasks.index import build_index
    from tasks.prepare import prepare

    load(embedder_folder()).embed_passages(["warm"])
    start = time.monotonic()
    snapshot = prepare(Sources(f"n{documents.rsplit('/', 1)[-1]}", documents))
    read = time.monotonic()
    version = build_index(snapshot)
    seconds = {"prepare_s": round(read - start, 1), "index_s": round(time.monotonic() - read, 1)}
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return seconds | {"documents": snapshot.documents, "chunks": version.chunks, "peak_mb": peak}


if __name__ == "__main__":
    print(json.dumps(build(sys.argv[1])))
