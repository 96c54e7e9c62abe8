"""Does the answer stand on what was retrieved, and do its citations point at it?

An abstention claims nothing, so nothing in it is unsupported; whether it was right to abstain is another metric.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from functools import cache

import numpy as np

from serving.rag import CITE_FROM, SENTENCE, support, words
from tasks.metrics.answers import finish, normalise
from tasks.metrics.item import Item, answerable

NEAREST = 2
"""Sentences of the passages that a sentence of the answer is compared with: those that share most of its words."""
APOSTROPHE = re.compile(r"(?<=\w)['’](?=\w)")


def grounding(item: Item) -> float | None:
    """Share of the answer's tokens that occur in the chunks shown to the model (title, heading or text).

    A lexical measure: it sees invented names and numbers, not a wrong reading of the right words.
    An abstention scores 1, an empty answer 0.
    """
    if item.answer.abstained:
        return 1.0
    said = normalise(item.answer.text).split()
    if not said:
        return 0.0
    shown: set[str] = set()
    for hit in item.answer.hits:
        shown.update(normalise(f"{hit.chunk.title} {hit.chunk.section} {hit.chunk.text}").split())
    return sum(token in shown for token in said) / len(said)


def citation_resolves(item: Item) -> float | None:
    """Share of the citations that name a chunk shown to the model; 1 when there is none to resolve."""
    cited = [citation.chunk for citation in item.answer.citations]
    shown = {hit.chunk.id for hit in item.answer.hits}
    return sum(chunk in shown for chunk in cited) / len(cited) if cited else 1.0


def citation_correct(item: Item) -> float | None:
    """1 if a cited chunk is a gold chunk; no citation scores 0. None where no gold chunk is known."""
    if not item.gold_chunks:
        return None
    return float(any(citation.chunk in item.gold_chunks for citation in item.answer.citations))


def supported(item: Item) -> float | None:
    """How well the answer stands on the chunks shown, a proxy without a judge: mean over its sentences of half the best
    lexical support in a chunk and half the best cosine to a sentence there. NaN without vectors.

    A sentence is embedded behind the question, because a short answer alone says nothing. It tells answers that people
    gave from a paragraph from ones that stand elsewhere (AUC .99), hardly from a wrong reading of that paragraph (.62;
    words alone .50): benchmarks/grounding_agreement.py. An abstention scores 1, an empty answer 0.
    """
    if item.answer.abstained or not item.answer.text.strip():
        return float(item.answer.abstained)
    scores = []
    for sentence in SENTENCE.split(item.answer.text):
        claim, nearest = claimed(item, sentence)
        lexical = max((support(sentence, hit.chunk.text) for hit in item.answer.hits), default=0.0)
        if nearest and not all(text in item.vectors for text in (claim, *nearest)):
            return math.nan
        close = max((float(item.vectors[claim] @ item.vectors[text]) for text in nearest), default=0.0)
        scores.append((lexical + min(1.0, max(0.0, close))) / 2)
    return float(np.mean(scores))


def claimed(item: Item, sentence: str) -> tuple[str, list[str]]:
    """A sentence of the answer as it is embedded, and the sentences of the passages that it is compared with."""
    claim = f"{item.question} {sentence}"
    asked = set(words(claim))
    shown = [text for hit in item.answer.hits for text in SENTENCE.split(hit.chunk.text) if text.strip()]
    return claim, sorted(dict.fromkeys(shown), key=lambda text: -len(asked & set(words(text))))[:NEAREST]


def compared(item: Item) -> Iterator[str]:
    """The texts whose vectors `supported` needs."""
    if not item.answer.abstained:
        for sentence in SENTENCE.split(item.answer.text):
            claim, nearest = claimed(item, sentence)
            yield from (claim, *nearest)


def quoted(item: Item) -> float | None:
    """Share of the answer's quotations of three words and more that stand in a chunk shown; 1 when it quotes nothing.

    By Ragas' QuotedSpansAlignment, without the apostrophes inside words, which it takes for quotes.
    """
    passages = [APOSTROPHE.sub("", hit.chunk.text) for hit in item.answer.hits]
    answer = APOSTROPHE.sub("", item.answer.text)
    return float(finish(_ragas().ascore(response=answer, retrieved_contexts=passages)).value)


def citation_precision(item: Item) -> float | None:
    """Share of the citations that are gold chunks; no citation scores 0. None where no gold chunk is known."""
    if not item.gold_chunks:
        return None
    cited = [citation.chunk for citation in item.answer.citations]
    return sum(chunk in item.gold_chunks for chunk in cited) / len(cited) if cited else 0.0


def citation_recall(item: Item) -> float | None:
    """Share of the answer's sentences that a cited chunk holds (ALCE's citation recall, Gao et al. 2023, with words for
    its judge); an abstention has none to support and scores 1, an empty answer 0. None for an unanswerable question."""
    if not answerable(item):
        return None
    if item.answer.abstained:
        return 1.0
    cited = {citation.chunk for citation in item.answer.citations}
    held = [hit.chunk.text for hit in item.answer.hits if hit.chunk.id in cited]
    sentences = SENTENCE.split(item.answer.text)
    return sum(any(support(sentence, text) >= CITE_FROM for text in held) for sentence in sentences) / len(sentences)


@cache
def _ragas():
    from ragas.metrics.collections import QuotedSpansAlignment

    return QuotedSpansAlignment()
