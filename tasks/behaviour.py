"""Does an assistant answer alike where it should: in other words, with typing errors, passages in another order?

Informative, not a guardrail: a score is how far an answer agrees with the one to the question as it stands, right or
wrong. (Ribeiro et al. 2020, CheckList: invariance tests.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence

from data.records import Answer, Chunk, GoldenQuestion, Hit
from tasks.arm import Arm
from tasks.metrics.answers import f1

WORDINGS = {
    "how many": "what number of",
    "how much": "what amount of",
    "how long": "for how much time",
    "how often": "how many times",
    "when": "at what time",
    "where": "in what place",
    "who": "which person",
    "why": "for what reason",
    "get": "receive",
    "need": "require",
    "start": "begin",
    "show": "display",
    "use": "make use of",
    "allowed": "permitted",
    "buy": "purchase",
    "big": "large",
    "change": "alter",
}
_WORDING = re.compile(rf"\b({'|'.join(sorted(WORDINGS, key=len, reverse=True))})\b", re.IGNORECASE)
_LONG_WORD = re.compile(r"\b[a-z]{5,}\b")


def reworded(question: str) -> str:
    """The question in other words, by rules.

    >>> reworded("How many codes do I get?")
    'Could you tell me: what number of codes do I receive?'
    """
    return f"Could you tell me: {_WORDING.sub(lambda found: WORDINGS[found[0].lower()], question)}"


def mistyped(question: str) -> str:
    """The question with two letters swapped in every other long word in small letters: names and figures stay.

    >>> mistyped("After how many minutes does a session of Quillbox expire?")
    'After how many mintues does a session of Quillbox exipre?'
    """
    seen = 0

    def swap(found: re.Match) -> str:
        nonlocal seen
        seen += 1
        word, middle = found[0], len(found[0]) // 2
        if seen % 2 == 0:
            return word
        return word[: middle - 1] + word[middle] + word[middle - 1] + word[middle + 1 :]

    return _LONG_WORD.sub(swap, question)


def agreement(one: Answer, other: Answer) -> float:
    """Token F1 of two answers; two abstentions agree, an abstention and an answer do not."""
    if one.abstained or other.abstained:
        return float(one.abstained == other.abstained)
    return f1(one.text, other.text)


Form = Callable[[str, tuple[Hit, Hit]], tuple[str, tuple[Hit, Hit]]]
FORMS: dict[str, Form] = {
    "paraphrase_consistency": lambda question, hits: (reworded(question), hits),
    "typo_robustness": lambda question, hits: (mistyped(question), hits),
    "order_invariance": lambda question, hits: (question, hits[::-1]),
}


def behaviour(arm: Arm, golden: Sequence[GoldenQuestion], most: int) -> dict[str, list[float | None]]:
    """How far answers stay the same in each of FORMS, on the `most` answerable questions with the shortest passages;
    None for the others.

    Each is asked with its own passage and that of the next one, so retrieval plays no part and prompts are short.
    """
    from serving import rag

    own: dict[int, Chunk] = {}
    for at, question in enumerate(golden):
        if question.answers and (gold := arm.gold_chunks(question)):
            own[at] = min((arm.index.chunk(chunk) for chunk in gold), key=lambda chunk: (len(chunk.text), chunk.id))
    asked = sorted(own, key=lambda at: (len(own[at].text), golden[at].id))[:most]
    shown = {}
    for place, at in enumerate(asked):
        others = [own[other] for other in (*asked[place:], *asked[:place]) if own[other].id != own[at].id]
        if others:
            shown[at] = tuple(Hit(chunk, 1.0, math.nan) for chunk in (own[at], others[0]))

    def answers(form: Form) -> list[Answer]:
        forms = [form(golden[at].question, hits) for at, hits in shown.items()]
        return rag.answer_given([text for text, _ in forms], [hits for _, hits in forms], arm.brief, arm.engine)

    plain = answers(lambda question, hits: (question, hits))
    scored: dict[str, list[float | None]] = {name: [None] * len(golden) for name in FORMS}
    for name, form in FORMS.items():
        for at, one, other in zip(shown, plain, answers(form), strict=True):
            scored[name][at] = agreement(one, other)
    return scored
