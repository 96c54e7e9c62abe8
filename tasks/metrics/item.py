"""What a metric sees: one golden question, its answer, and the chunks that hold the right answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from data.records import Answer, GoldenQuestion

if TYPE_CHECKING:
    from data.embedding import Embedder

Vectors = Mapping[str, np.ndarray]
"""Unit vectors by text, made in one batch for all items: see `vectors`."""


def vectors(texts: Iterable[str], embedder: Embedder) -> Vectors:
    """The unit vector of each text; the same to the last bit whatever other texts come with it."""
    wanted = sorted({text for text in texts if text.strip()})
    return dict(zip(wanted, embedder.embed_passages(wanted), strict=True)) if wanted else {}


@dataclass(frozen=True)
class Item:
    """One answered question.

    `answer` is None when the engine produced none. `gold_chunks` are the ids, in the index that answered, of the
    chunks of the section (else the document) the question is bound to; empty: unanswerable, or not in this index.
    Without `vectors` what needs them is unmeasured.
    """

    question: str
    answer: Answer | None
    golden: GoldenQuestion
    gold_chunks: frozenset[str] = field(default_factory=frozenset)
    vectors: Vectors = field(default_factory=dict)


def answerable(item: Item) -> bool:
    """Whether the documents answer the question: it has at least one accepted answer."""
    return bool(item.golden.answers)
