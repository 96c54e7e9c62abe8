"""Did retrieval find the chunk that answers? By chunk id, so it needs no reading. None where no gold chunk is known."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

from tasks.metrics.answers import finish
from tasks.metrics.item import Item


def hit_rate(item: Item) -> float | None:
    """1 if any chunk shown to the model is a gold chunk."""
    return hit_at(item, len(item.answer.hits))


def hit_at(item: Item, k: int) -> float | None:
    """1 if any of the first `k` chunks is a gold chunk."""
    if not item.gold_chunks:
        return None
    return float(any(hit.chunk.id in item.gold_chunks for hit in item.answer.hits[:k]))


def reciprocal_rank(item: Item) -> float | None:
    """1 / rank of the first gold chunk among the hits, 0 if none is there."""
    if not item.gold_chunks:
        return None
    return next((1 / rank for rank, hit in enumerate(item.answer.hits, 1) if hit.chunk.id in item.gold_chunks), 0.0)


def ndcg_at(item: Item, k: int) -> float | None:
    """Discounted gain of the gold chunks among the first `k`, as a share of the best order's (Järvelin & Kekäläinen
    2002, ACM TOIS 20(4), with gains 0 and 1 and logarithms of base 2)."""
    if not item.gold_chunks:
        return None
    hits = item.answer.hits[:k]
    gain = sum(1 / math.log2(rank + 1) for rank, hit in enumerate(hits, 1) if hit.chunk.id in item.gold_chunks)
    best = sum(1 / math.log2(rank + 1) for rank in range(1, min(k, len(item.gold_chunks)) + 1))
    return gain / best


def recall_at(item: Item, k: int) -> float | None:
    """Share of the gold chunks that are among the first `k`."""
    if not item.gold_chunks:
        return None
    return len(item.gold_chunks & {hit.chunk.id for hit in item.answer.hits[:k]}) / len(item.gold_chunks)


def document_recall_at(item: Item, k: int) -> float | None:
    """1 if any of the first `k` chunks, whichever it is, comes from the document that the question is bound to."""
    if not item.gold_chunks:
        return None
    return float(any(hit.chunk.document == item.golden.document for hit in item.answer.hits[:k]))


DEPTHS = (1, 3, 5, 10)
RANKED: dict[str, Callable[[Item], float | None]] = {
    **{f"hit@{k}": partial(hit_at, k=k) for k in DEPTHS},
    "mrr": reciprocal_rank,
    "ndcg@10": partial(ndcg_at, k=10),
    **{f"chunk recall@{k}": partial(recall_at, k=k) for k in DEPTHS},
    **{f"document recall@{k}": partial(document_recall_at, k=k) for k in DEPTHS},
}
"""What a ranking of ten hits is measured by, whether or not they are all shown to the model."""


def context_recall(item: Item) -> float | None:
    """Share of the gold chunks that were retrieved, by Ragas' IDBasedContextRecall."""
    return _by_id(item, "recall")


def context_precision(item: Item) -> float | None:
    """Share of the retrieved chunks that are gold, by Ragas' IDBasedContextPrecision; nothing retrieved is 0."""
    return _by_id(item, "precision")


@cache
def _ragas():
    # From the submodules: the same names taken from `ragas.metrics` warn, and the new home does not have them yet.
    from ragas.dataset_schema import SingleTurnSample
    from ragas.metrics._context_precision import IDBasedContextPrecision
    from ragas.metrics._context_recall import IDBasedContextRecall

    return {"recall": IDBasedContextRecall(), "precision": IDBasedContextPrecision()}, SingleTurnSample


def _by_id(item: Item, which: str) -> float | None:
    if not item.gold_chunks:
        return None
    if not item.answer.hits:
        return 0.0
    metrics, sample = _ragas()
    retrieved = [hit.chunk.id for hit in item.answer.hits]
    row = sample(retrieved_context_ids=retrieved, reference_context_ids=sorted(item.gold_chunks))
    return float(finish(metrics[which]._single_turn_ascore(row, None)))
