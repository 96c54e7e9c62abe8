"""Does the answer stand on what was retrieved, and do its citations point at it?

An abstention claims nothing, so nothing in it is unsupported; whether it was right to abstain is another metric.
"""

from __future__ import annotations

from tasks.metrics.answers import normalise
from tasks.metrics.item import Item


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
