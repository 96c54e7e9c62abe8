"""Did retrieval find the chunk that answers? By chunk id, so it needs no reading. None where no gold chunk is known."""

from __future__ import annotations

from functools import cache

from tasks.metrics.answers import finish
from tasks.metrics.item import Item


def hit_rate(item: Item) -> float | None:
    """1 if any chunk shown to the model is a gold chunk."""
    if not item.gold_chunks:
        return None
    return float(any(hit.chunk.id in item.gold_chunks for hit in item.answer.hits))


def reciprocal_rank(item: Item) -> float | None:
    """1 / rank of the first gold chunk among the hits, 0 if none is there."""
    if not item.gold_chunks:
        return None
    return next((1 / rank for rank, hit in enumerate(item.answer.hits, 1) if hit.chunk.id in item.gold_chunks), 0.0)


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
