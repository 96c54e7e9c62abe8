"""Metrics: one table, one function per row, scoring one answered question from 0 to 1, higher is better.

`METRICS` scores answers to golden questions, `SAFETY` answers to attacks.

A per-item score is a number, `None` (the metric does not apply to this question: no abstention score for an
answerable one), or NaN (it applies and could not be measured). Whether a metric applies depends on the golden
question alone, never on the answer, so two releases are always compared on the same questions.

No metric in this table needs a model: DeepEval and Ragas metrics that are plain arithmetic, and plain functions. To add
one: a function of an `Item` in the file of its subject, a row in `METRICS`, a test.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from tasks.metrics import abstention, answers, cost, form, grounding, retrieval
from tasks.metrics.item import Item, answerable, vectors
from tasks.metrics.safety import SAFETY, Attempt

if TYPE_CHECKING:
    from data.embedding import Embedder

__all__ = [
    "ADVISORY",
    "METRICS",
    "SAFETY",
    "Attempt",
    "Item",
    "Metric",
    "aggregate",
    "answerable",
    "embedded",
    "score",
    "vectors",
]

Metric = Callable[[Item], float | None] | Callable[[Attempt], float | None]

ADVISORY = ("judged_", "deepeval_", "ragas_")
"""How the names of a judge's scores begin (`tasks.metrics.judged`). They advise; no gate decides by them."""

METRICS: dict[str, Metric] = {
    "correct": abstention.correct,
    "exact_match": answers.exact_match,
    "token_f1": answers.token_f1,
    "rouge_l": answers.rouge_l,
    "bleu": answers.bleu,
    "chrf": answers.chrf,
    "similarity": answers.similarity,
    "semantic_similarity": answers.semantic_similarity,
    "must_include": answers.must_include,
    "json_valid": form.json_valid,
    "date_valid": form.date_valid,
    "length": form.length,
    "language": form.language,
    "hit_rate": retrieval.hit_rate,
    "reciprocal_rank": retrieval.reciprocal_rank,
    "context_recall": retrieval.context_recall,
    "context_precision": retrieval.context_precision,
    "grounding": grounding.grounding,
    "supported": grounding.supported,
    "quoted": grounding.quoted,
    "citation_resolves": grounding.citation_resolves,
    "citation_correct": grounding.citation_correct,
    "citation_precision": grounding.citation_precision,
    "citation_recall": grounding.citation_recall,
    "abstention": abstention.abstention,
    "answering": abstention.answering,
    "economy": cost.economy,
}


def embedded(items: Sequence[Item], embedder: Embedder) -> list[Item]:
    """The items with the vectors that their metrics need, made in one batch."""
    texts = [text for item in items if item.answer for text in (*answers.compared(item), *grounding.compared(item))]
    made = vectors(texts, embedder)
    return [replace(item, vectors=made) for item in items]


def score(
    items: Sequence[Item] | Sequence[Attempt], names: Sequence[str] = (), table: Mapping[str, Metric] = METRICS
) -> dict[str, list[float | None]]:
    """Scores of every item under every metric, in the order of `items`; `names` narrows the metrics.

    `table` is METRICS for items, SAFETY for attempts. A question without an answer (the engine failed) scores NaN
    everywhere.

    Raises:
        ValueError: for a name that is not in the table.
    """
    if unknown := [name for name in names if name not in table]:
        raise ValueError(f"no metric {unknown[0]!r}; there are {', '.join(table)}")
    chosen = {name: table[name] for name in names} if names else table
    return {
        name: [math.nan if item.answer is None else metric(item) for item in items] for name, metric in chosen.items()
    }


def aggregate(scores: dict[str, Sequence[float | None]]) -> dict[str, float]:
    """Mean of the measured scores of each metric; a metric measured on no question is left out.

    >>> aggregate({"correct": [1.0, 0.0, None, float("nan")], "abstention": [None, None, None, None]})
    {'correct': 0.5}
    """
    means = {}
    for name, values in scores.items():
        measured = [value for value in values if value is not None and not math.isnan(value)]
        if measured:
            means[name] = float(sum(measured) / len(measured))
    return means
