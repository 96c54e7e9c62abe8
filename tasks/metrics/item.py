"""What a metric sees: one golden question, its answer, and the chunks that hold the right answer."""

from __future__ import annotations

from dataclasses import dataclass, field

from data.records import Answer, GoldenQuestion


@dataclass(frozen=True)
class Item:
    """One answered question.

    `answer` is None when the engine produced none. `gold_chunks` are the ids, in the index that answered, of the
    chunks of the section (else the document) the question is bound to; empty: unanswerable, or not in this index.
    """

    question: str
    answer: Answer | None
    golden: GoldenQuestion
    gold_chunks: frozenset[str] = field(default_factory=frozenset)


def answerable(item: Item) -> bool:
    """Whether the documents answer the question: it has at least one accepted answer."""
    return bool(item.golden.answers)
