"""Where the answering paragraph comes among all paragraphs of SQuADShifts new-wiki, hybrid, by words and by vectors."""

import random

from benchmarks.machine import data, home

AIM = "hit@5 at least .94, MRR at least .84"
ARMS = {"hybrid": None, "words": 0.0, "vectors": 1.0}  # the weight of the vectors; None is the default
DEPTH = 10


def met(value: dict) -> bool:
    return value["hybrid"]["hit@5"][0] >= 0.94 and value["hybrid"]["mrr"][0] >= 0.84


def measure(questions: int = 3000) -> dict:
    """All paragraphs as one corpus; each figure with its 95% interval by article; MRR within the first 10."""
    with home():
        from data import formats
        from data.embedding import load
        from data.records import Retrieval, Snapshot, Sources
        from data.store import open_index
        from serving.engine.models import embedder_folder
        from tasks import prepare
        from tasks.index import build_index

        source = data("squadshifts_new_wiki.json.gz")
        snapshot: Snapshot = prepare.prepare(Sources("wiki", documents=source, examples=source), None)
        index = open_index(build_index(snapshot))
        asked = [example for example in formats.read(source).examples if example.answers]
        asked = random.Random(0).sample(asked, min(questions, len(asked)))
        vectors = load(embedder_folder()).embed([example.question for example in asked])
        value = {}
        for arm, weight in ARMS.items():
            chosen = Retrieval(top_k=DEPTH) if weight is None else Retrieval(top_k=DEPTH, vector_weight=weight)
            ranks = [
                rank(index.search(example.question, vector, chosen), example)
                for example, vector in zip(asked, vectors, strict=True)
            ]
            value[arm] = figures(ranks, [example.document for example in asked])
    return {"value": value, "n": len(asked), "against": "BM25 alone, vectors alone", "limit": 1.0}


def rank(hits, example) -> int | None:
    """Place of the answering paragraph among the paragraphs found, from 1."""
    places = list(dict.fromkeys((hit.chunk.document, hit.chunk.section) for hit in hits))
    wanted = (example.document, example.section)
    return places.index(wanted) + 1 if wanted in places else None


def figures(ranks: list[int | None], articles: list[str]) -> dict[str, list[float]]:
    """[mean, low, high] of hit@1, hit@5, hit@10 and MRR."""
    import numpy as np

    from tasks.intervals import clustered_error

    scores = {f"hit@{k}": [float(r is not None and r <= k) for r in ranks] for k in (1, 5, 10)}
    scores["mrr"] = [1 / r if r else 0.0 for r in ranks]
    found = {}
    for name, values in scores.items():
        mean, half = float(np.mean(values)), 1.96 * clustered_error(np.asarray(values), articles)
        found[name] = [round(mean, 4), round(mean - half, 4), round(mean + half, 4)]
    return found
