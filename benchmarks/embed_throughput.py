"""Passages embedded a second, against Sentence-Transformers' encode() with its defaults, same model and threads."""

import time

from benchmarks.machine import data, home

AIM = "at least 2x, nDCG@10 within 0.5%"
ROUNDS = 3


def met(value: dict) -> bool:
    return value["ratio"] >= 2 and value["ndcg"][0] >= value["ndcg"][1] * 0.995


def measure() -> dict:
    """Both sides in turn on the same passages, medians; nDCG@10 of exact search for the questions of the paragraphs."""
    import numpy as np
    from sentence_transformers import SentenceTransformer

    with home():
        from data import chunking, formats
        from data.embedding import load
        from data.records import ChunkSettings
        from serving.engine.models import embedder_folder

        embedder = load(embedder_folder())
        theirs = SentenceTransformer(str(embedder_folder()), device=embedder.device)
        theirs.max_seq_length = 256  # ours reads as much of a passage
        wiki = formats.read(data("squadshifts_new_wiki.json.gz"))
        documents = [*wiki.documents, *formats.read(data("docs_pydantic_v2.13.0.tar.gz")).documents]
        chunks = [c for document in documents for c in chunking.split(document, ChunkSettings(), embedder.count)]
        texts = [chunking.passage(chunk.title, chunk.section, chunk.text) for chunk in chunks]
        places = {(chunk.document, chunk.section): at for at, chunk in enumerate(chunks)}
        asked = [example for example in wiki.examples if (example.document, example.section) in places][:2000]
        sides = {"ours": embedder.embed_passages, "theirs": lambda t: theirs.encode(t, normalize_embeddings=True)}
        for embed in sides.values():
            embed(texts[:64])
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        rows = {}
        for _ in range(ROUNDS):
            for name, embed in sides.items():
                start = time.monotonic()
                rows[name] = embed(texts)
                seconds[name].append(time.monotonic() - start)
        ndcg = []
        for name, embed in sides.items():
            scores = embed([example.question for example in asked]) @ rows[name].T
            gold = scores[range(len(asked)), [places[example.document, example.section] for example in asked]]
            ranks = 1 + (scores > gold[:, None]).sum(axis=1)
            ndcg.append(round(float(np.where(ranks <= 10, 1 / np.log2(ranks + 1), 0).mean()), 4))
    rates = {name: round(len(texts) / float(np.median(times)), 1) for name, times in seconds.items()}
    value = {"per_s": rates, "ratio": round(rates["ours"] / rates["theirs"], 2), "ndcg": ndcg}
    return {"value": value, "n": len(texts), "against": "SentenceTransformer.encode defaults", "limit": None}
