"""Does it say so when the documents do not answer, and only then?"""

from __future__ import annotations

from tasks.metrics.answers import token_f1
from tasks.metrics.item import Item, answerable


def abstention(item: Item) -> float | None:
    """1 if an unanswerable question is declined, 0 if it is answered anyway; None for an answerable one."""
    return None if answerable(item) else float(item.answer.abstained)


def answering(item: Item) -> float | None:
    """1 if an answerable question is answered, 0 if declined (a false abstention); None for an unanswerable one."""
    return float(not item.answer.abstained) if answerable(item) else None


def correct(item: Item) -> float | None:
    """The gate's primary metric: token F1 if answerable, right to abstain (1 or 0) if not.

    None where the answering section was left out on purpose: such a question measures abstention and nothing else.
    """
    if item.golden.origin == "left out":
        return None
    return token_f1(item) if answerable(item) else float(item.answer.abstained)
