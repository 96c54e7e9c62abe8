"""Three releases of Pydantic's documentation in turn: what changed is embedded, and nothing else."""

import shutil
import time

from benchmarks.machine import data, home

AIM = "changed sections recall and precision 1.00; identical vector top 10, hybrid overlap at least .99"
RELEASES = ("2.5.0", "2.9.0", "2.13.0")
QUESTIONS = 300


def met(value: dict) -> bool:
    exact = all(step["recall"] == step["precision"] == 1.0 for step in value["steps"])
    return exact and value["vector_top10_same"] == 1.0 and value["hybrid_overlap"] >= 0.99


def measure() -> dict:
    """Re-indexing beside a full rebuild of the same release; seconds, changed sections found, and the same searches.

    The truth is the difference of the two archives' sections; found is what the re-index wrote or
    embedded anew. Searches ask 300 sentences of the documents of both last indexes.
    """
    import numpy as np

    from data.records import Retrieval

    with home() as folder:
        from data.embedding import load
        from data.store import open_index
        from serving.engine.models import embedder_folder
        from tasks.arm import sentences
        from tasks.index import build_index

        embedder = load(embedder_folder())
        embedder.embed(["warm"] * 64)
        steps, before, grown = [], None, None
        for release in RELEASES:
            source = folder / "docs.tar.gz"
            shutil.copyfile(data(f"docs_pydantic_v{release}.tar.gz"), source)
            grown, seconds = index_of("grown", source, build_index)
            rebuilt, full = index_of(f"rebuilt-{release}", source, build_index)
            now = {chunk.id for chunk in open_index(rebuilt).chunks()}
            if before is not None:
                found = open_index(grown).ids() - before
                right = len(found & (now - before))
                step = {"to": release, "chunks": grown.chunks, "changed": len(now - before), "embedded": grown.embedded}
                step["recall"] = right / max(1, len(now - before))
                step["precision"] = right / max(1, len(found), grown.embedded)
                steps.append(step | {"seconds": round(seconds, 2), "rebuild_s": round(full, 2)})
            before = now
        grown, rebuilt = open_index(grown), open_index(rebuilt)
        asked = [sentences(chunk)[0] for chunk in sorted(rebuilt.chunks(), key=lambda chunk: chunk.id)[:QUESTIONS]]
        overlap: dict[float, list[float]] = {1.0: [], 0.5: []}
        for question, vector in zip(asked, embedder.embed(asked), strict=True):
            for weight, shares in overlap.items():
                one, other = (
                    [hit.chunk.id for hit in index.search(question, vector, Retrieval(10, 30, weight))]
                    for index in (grown, rebuilt)
                )
                shares.append(float(one == other) if weight == 1.0 else len({*one} & {*other}) / len(other))
    value = {
        "steps": steps,
        "vector_top10_same": round(float(np.mean(overlap[1.0])), 4),
        "hybrid_overlap": round(float(np.mean(overlap[0.5])), 4),
    }
    return {"value": value, "n": len(asked), "against": "full rebuild of the same release", "limit": None}


def index_of(assistant: str, source, build_index) -> tuple:
    """Index version of the archive at `source`, and the seconds to read, split, embed and write it."""
    from data.records import Sources
    from tasks import prepare

    start = time.monotonic()
    version = build_index(prepare.prepare(Sources(assistant, documents=str(source)), None))
    return version, time.monotonic() - start
