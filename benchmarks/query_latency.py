"""A query over 100,000 chunks, top 10, warm: LanceDB's vector index against its flat search, and hybrid whole."""

import time

from benchmarks import corpus
from benchmarks.machine import home, percentile

AIM = "vector part p50 at most 1/3 of flat at recall@10 at least .99"
CHUNKS, QUESTIONS = 100_000, 200


def met(value: dict) -> bool:
    return value["vector_ms"][0] <= value["flat_ms"][0] / 3 and value["recall"] >= 0.99


def measure() -> dict:
    """p50 and p99 in ms of 200 questions, both sides in turn; recall of the exact ten nearest.

    The chunks are drawn from the sample's sentences, two at a time; the questions are other draws of half that length.
    """
    import random
    from dataclasses import replace

    import numpy as np

    with home():
        from data import store
        from data.embedding import load
        from data.records import Chunk, Document, Retrieval, Section, digest
        from serving.engine.models import embedder_folder

        embedder, every = load(embedder_folder()), corpus.sentences()
        draw = random.Random(0)

        def sections():
            for number in range(CHUNKS):
                text = " ".join(draw.choices(every, k=2))
                section = Section(f"d{number}", "", "", text)
                yield Document(section.document, "", (section,)), section

        def split(document, section):
            chunk_id = digest(document.id, "", "", section.text, 0)[:32]
            return [Chunk(chunk_id, document.id, "", "", section.hash, section.text)]

        pool = _pairs(every, embedder)
        version = store.write("many", sections(), split, pool, embedder.sha256, "pairs", "snap")
        index, asked = store.open_index(version), draw.choices(every, k=QUESTIONS)
        exact = store.Index(replace(version, nearest=None))
        vectors, times = embedder.embed(asked), {"vector": [], "flat": [], "hybrid": []}
        found = 0
        ten = Retrieval(top_k=10, candidates=10, vector_weight=1.0)
        for warm in (True, False):
            for question, vector in zip(asked[:20] if warm else asked, vectors, strict=False):
                near = {}
                for name, side, words, how in (
                    ("vector", index, "", ten),
                    ("flat", exact, "", ten),
                    ("hybrid", index, question, Retrieval(top_k=10)),
                ):
                    start = time.perf_counter()
                    near[name] = side.search(words, vector, how)
                    if not warm:
                        times[name].append(1000 * (time.perf_counter() - start))
                if not warm:
                    tenth = near["flat"][-1].similarity
                    found += sum(hit.similarity >= tenth - 1e-6 for hit in near["vector"])
    value = {f"{name}_ms": [round(percentile(ms, share), 1) for share in (0.5, 0.99)] for name, ms in times.items()}
    value |= {"recall": round(found / (10 * QUESTIONS), 4), "probes": version.nearest and version.nearest.probes}
    value["ratio"] = round(float(np.median(times["flat"]) / np.median(times["vector"])), 1)
    return {"value": value, "n": QUESTIONS, "against": "LanceDB flat search", "limit": None}


def _pairs(every: list[str], embedder):
    """Vectors of two sentences at a time, as the mean of both at length 1: 100,000 of them take seconds, not hours."""
    import numpy as np

    known = dict(zip(every, embedder.embed_passages(every), strict=True))

    def embed(texts: list[str]) -> np.ndarray:
        rows = []
        for text in texts:
            parts = [known[text]] if text in known else _parts(text, known)
            mean = np.mean(parts, axis=0) if parts else embedder.embed_passages([text])[0]
            rows.append(mean / np.linalg.norm(mean))
        return np.stack(rows).astype(np.float32)

    return embed


def _parts(text: str, known: dict) -> list:
    for end in range(1, len(text)):
        if text[end] == " " and text[:end] in known and text[end + 1 :] in known:
            return [known[text[:end]], known[text[end + 1 :]]]
    return []
