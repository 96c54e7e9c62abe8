"""Files on disk after 1,000 single-document updates, and what a search then takes, against a fresh index."""

import time
from pathlib import Path

from benchmarks import corpus
from benchmarks.machine import home

AIM = "at most 2x the size of a fresh index, no slower"
DOCUMENTS, UPDATES, KEPT = 2_000, 1_000, 8


def met(value: dict) -> bool:
    return value["size_ratio"] <= 2 and value["search_ms"][0] <= 1.1 * value["search_ms"][1]


def measure() -> dict:
    """An index of 2,000 documents, one edited at a time, each version swept with the last eight pinned as releases
    pin them; then the same documents indexed afresh. Searches of both in turn, median."""
    import numpy as np

    with home() as folder:
        from data import chunking, store
        from data.embedding import load
        from data.formats import read
        from data.records import ChunkSettings
        from serving.engine.models import embedder_folder

        embedder, docs = load(embedder_folder()), folder / "docs"
        corpus.write(docs, range(DOCUMENTS))
        known = {document.id: document for document in read(str(docs)).documents}
        settings = ChunkSettings()

        def build(assistant: str):
            return store.write(
                assistant,
                ((document, section) for document in known.values() for section in document.sections),
                lambda document, section: chunking.split_section(document, section, settings, embedder.count),
                embedder.embed_passages,
                embedder.sha256,
                chunking.chunker_hash(settings),
                "snap",
            )

        versions, seconds = [build("updated")], []
        for update in range(UPDATES):
            number = update % DOCUMENTS
            corpus.write(folder / "edits", range(number, number + 1), edition=update + 1)
            path = folder / "edits" / f"{number // 100:04}" / f"d{number}.md"
            edited = read(str(path)).documents[0]
            name = f"{number // 100:04}/d{number}.md"
            known[name] = _as(edited, name)
            start = time.monotonic()
            versions.append(build("updated"))
            store.sweep(versions[-1], versions[-KEPT:])
            seconds.append(time.monotonic() - start)
        fresh = build("fresh")
        for version in versions[-KEPT:]:
            store.open_index(version).verify()
        sizes = [_size(folder / "lancedb" / f"{version.table}.lance") for version in (versions[-1], fresh)]
        asked = corpus.sentences()[:100]
        took: list[list[float]] = [[], []]
        for question, vector in zip(asked, embedder.embed(asked), strict=True):
            for side, version in enumerate((versions[-1], fresh)):
                start = time.perf_counter()
                store.open_index(version).search(question, vector)
                took[side].append(1000 * (time.perf_counter() - start))
    value = {
        "size_ratio": round(sizes[0] / sizes[1], 2),
        "size_mb": [round(size / 1e6, 1) for size in sizes],
        "search_ms": [round(float(np.median(side)), 2) for side in took],
        "update_s": [round(float(np.median(seconds[:100])), 3), round(float(np.median(seconds[-100:])), 3)],
    }
    return {"value": value, "n": UPDATES, "against": "the same documents indexed afresh", "limit": None}


def _as(document, name: str):
    from dataclasses import replace

    sections = tuple(replace(section, document=name) for section in document.sections)
    return replace(document, id=name, sections=sections)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
