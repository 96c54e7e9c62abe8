"""What is read off every request and every piece of feedback, as streams of values in which 1 is bad.

A stream is a row of STREAMS: what it reads, how a value is bad, and whose change makes its reference void. Many values
are bad only when compared with what used to be (`above`, `below`, `outside` the reference's usual range, or `rare`
among its kinds), so a stream learns a reference first and says so; then an e-detector watches the share of bad ones.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from data.cleaning import language
from tasks.questions import words

RELEVANT = 0.45
"""Cosine of the best passage from which on a question counts as one the documents are about."""
FAR = 0.05
"""Share of the reference that lies beyond an edge of its usual range, or in kinds that count as rare."""

TEMPLATE = re.compile(r"<\|[^|<>]{1,40}\|>|</s>|\[/?INST\]|<</?SYS>>|^#{2,} ?(?:Question|Answer|System)|\ufffd", re.M)
OVERRIDE = re.compile(
    r"\b(?:ignore|disregard|forget|override)\b.{0,40}\b(?:instructions?|prompts?|rules?|above|previous)\b"
    r"|\b(?:system|developer) (?:prompt|message|mode)\b|\byou are now\b|\bact as (?:an?|if)\b|<\|?(?:system|im_start)",
    re.I | re.S,
)
LEAKED = re.compile(r"\[(?:secret|card|iban|national_id)\]")
MARK = re.compile(r"\[\d+\]")
INSULTS = frozenset(
    (
        "asshole",
        "bastard",
        "bitch",
        "cunt",
        "dick",
        "fuck",
        "fucking",
        "idiot",
        "moron",
        "retard",
        "shit",
        "slut",
        "whore",
    )
)


@dataclass(frozen=True)
class Stream:
    """One stream. `noun` completes "the share of ..."; `read` gives the value of one row, None where it says nothing.

    `source`: requests | feedback | labels. `bad`: how a value is bad: rate (it is in [0, 1] itself) | above | below |
    outside (beyond the reference's usual range) | rare. `of` is what the reference belongs to: answers (model, prompt
    and settings), retrieval (its settings and the embedder) or questions (nothing of ours changes them).
    """

    group: str
    noun: str
    read: Callable[[dict], float | str | None]
    bad: str = "rate"
    of: str = "answers"
    source: str = "requests"


# --- how a value is bad -----------------------------------------------------------------------


def usual(bad: str, reference: Sequence[float | str]) -> list:
    """What the reference says is usual: the edges of its range (None: open), or its kinds that are not rare."""
    if bad == "rare":
        return sorted(kind for kind, n in Counter(reference).items() if n >= FAR * len(reference))
    if bad == "rate":
        return []
    low, high = (float(np.quantile(reference, share, method="higher")) for share in (FAR, 1 - FAR))
    return {"above": [None, high], "below": [low, None], "outside": [low, high]}[bad]


def badness(bad: str, usual: list, value: float | str) -> float:
    """A value as 0 to 1, 1 being bad. What lies on an edge is usual, so `upper_rate` of the reference is exact."""
    if bad == "rate":
        return float(value)
    if bad == "rare":
        return float(value not in usual)
    low, high = usual
    return float((low is not None and value < low) or (high is not None and value > high))


# --- what the rows read -----------------------------------------------------------------------


def _answered(row: dict) -> bool:
    return row["status"] == 200 and not row["abstained"]


def _gap(row: dict) -> float | None:
    scores = row["scores"] or ()
    return scores[0] - scores[1] if len(scores) > 1 else None


def _unsupported(row: dict) -> float | None:
    return 1 - row["grounding"] if _answered(row) and row["grounding"] is not None else None


def relevant(row: dict) -> bool:
    """Whether a passage was near the question of a logged request, so that the documents seem to be about it."""
    return (row["similarity"] or 0.0) >= RELEVANT


def _declined(row: dict) -> float | None:
    return float(row["abstained"]) if row["status"] == 200 and relevant(row) else None


def repetition(text: str) -> float:
    """Share of the runs of four words that were there before: 0 for plain prose, near 1 for a stuck model."""
    said = words(text)
    runs = list(zip(*(said[start:] for start in range(4)), strict=False))
    return 1 - len(set(runs)) / len(runs) if runs else 0.0


def _other_language(row: dict) -> float | None:
    asked, said = language(row["question"]), language(MARK.sub("", row["answer"]))
    return float(asked != said) if asked and said else None


def _speed(row: dict) -> float | None:
    seconds = (row["total_s"] or 0.0) - (row["first_token_s"] or 0.0)
    return row["completion_tokens"] / seconds if row["status"] == 200 and row["completion_tokens"] > 8 else None


def _same_user(row: dict) -> float | None:
    return float(row["user"] == row["user_before"]) if row["user"] and row["user_before"] else None


def _insulting(text: str) -> float:
    return float(not INSULTS.isdisjoint(words(text)))


def _unmeasured(row: dict) -> float | None:
    if not _answered(row) or not _searched(row):
        return None
    return float(row["grounding"] is None or not row["embedding"])


def _searched(row: dict) -> bool:
    """Whether the documents were searched for it: a client may ask without (`retrieval: off`)."""
    return bool(row["embedding"] or row["chunks"])


def _marked(pattern: re.Pattern) -> Callable[[dict], float]:
    """Marks of the answer that neither the question nor a passage (see `watch.with_passages`) put there."""

    def read(row: dict) -> float:
        given = f"{row['question']}\n{row.get('passages', '')}"
        return float(any(mark[0] not in given for mark in pattern.finditer(row["answer"])))

    return read


def carries_marks(row: dict) -> bool:
    """Whether an answer has a mark in it, from wherever."""
    return any(pattern.search(row["answer"]) for pattern in (TEMPLATE, LEAKED))


def _when(condition: Callable[[dict], bool], value: Callable[[dict], float | str | None]):
    return lambda row: value(row) if condition(row) else None


def _ok(row: dict) -> bool:
    return row["status"] == 200


def _written(row: dict) -> bool:
    """Whether the engine wrote the answer, rather than an earlier one being given again."""
    return _ok(row) and not row["reuse_of"]


def _of(column: str):
    return lambda row: row[column]


STREAMS: dict[str, Stream] = {
    "question length": Stream(
        "queries", "questions of unusual length", lambda r: len(words(r["question"])), "outside", "questions"
    ),
    "question language": Stream(
        "queries", "questions in languages seldom asked before", lambda r: language(r["question"]), "rare", "questions"
    ),
    "top score": Stream(
        "retrieval", "questions whose best passage is far off", _of("similarity"), "below", "retrieval"
    ),
    "score gap": Stream("retrieval", "questions whose best passage barely stands out", _gap, "below", "retrieval"),
    "unanswerable": Stream(
        "retrieval",
        "questions the documents seem not to be about",
        _when(lambda r: _ok(r) and _searched(r), lambda r: float(not relevant(r))),
        of="retrieval",
    ),
    "grounding": Stream("answers", "words of answers that no passage holds", _unsupported),
    "abstention": Stream("answers", "answerable questions that were declined", _declined),
    "answer length": Stream(
        "answers", "answers of unusual length", _when(_answered, lambda r: len(words(r["answer"]))), "outside"
    ),
    "repetition": Stream(
        "answers", "words of answers that repeat themselves", _when(_answered, lambda r: repetition(r["answer"]))
    ),
    "format": Stream("answers", "answers with marks of a template", _when(_ok, _marked(TEMPLATE))),
    "answer language": Stream(
        "answers", "answers in another language than the question", _when(_answered, _other_language)
    ),
    "citations": Stream(
        "answers",
        "answers without a source",
        _when(lambda r: _answered(r) and _searched(r), lambda r: float(not r["cited"])),
    ),
    "ratings": Stream(
        "ratings", "thumbs down", lambda r: float(r["rating"] < 0) if r["rating"] else None, source="feedback"
    ),
    "edits": Stream(
        "ratings", "feedback that rewrites the answer", lambda r: float(bool(r["edit"])), source="feedback"
    ),
    "labels": Stream("ratings", "reviewed answers that were wrong", lambda r: float(r["wrong"]), source="labels"),
    "injection": Stream(
        "safety",
        "questions that try to override",
        lambda r: float(bool(OVERRIDE.search(r["question"]))),
        of="questions",
    ),
    "leaks": Stream("safety", "answers that held a secret", _when(_ok, _marked(LEAKED))),
    "toxic questions": Stream(
        "safety", "questions with a word of insult (a word list)", lambda r: _insulting(r["question"]), of="questions"
    ),
    "toxic answers": Stream(
        "safety", "answers with a word of insult (a word list)", _when(_ok, lambda r: _insulting(r["answer"]))
    ),
    "one user": Stream("safety", "requests by the user of the one before", _same_user, of="questions"),
    "errors": Stream("service", "requests that failed", lambda r: float(r["status"] >= 500)),
    "first token": Stream("service", "slow first tokens", _when(_ok, _of("first_token_s")), "above"),
    "latency": Stream("service", "slow answers", _when(_written, _of("total_s")), "above"),
    "speed": Stream("service", "answers written slowly", _speed, "below"),
    "cost": Stream(
        "service", "costly answers", _when(_written, lambda r: r["prompt_tokens"] + r["completion_tokens"]), "above"
    ),
    "unmeasured": Stream("instruments", "answers without a grounding or an embedding", _unmeasured),
}


BROKEN = {
    "format": "answers carry marks of a template",
    "leaks": "answers hold secrets",
    "unmeasured": "answers come without a grounding or an embedding",
}
"""Streams of what the system itself promises: in alarm they are broken constraints, not a matter of degree."""


def values(source: str, rows: Sequence[dict]) -> dict[str, list]:
    """The values of every stream of a source, oldest first; what says nothing is no event."""
    chosen = {name: stream for name, stream in STREAMS.items() if stream.source == source}
    read = {name: [stream.read(row) for row in rows] for name, stream in chosen.items()}
    return {name: [value for value in found if value is not None] for name, found in read.items()}
