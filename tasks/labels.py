"""Answers that a person has judged: what quality is measured on first, and what a retraining would learn from."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from data import reviews as queue
from data.feedback import KIND
from data.ledger import Ledger
from data.records import Record, Release
from data.tables import reviews, trainings
from tasks import votes


@dataclass(frozen=True)
class Label(Record):
    """A reviewed piece of feedback. `right` is the answer that should have been given, '' where nobody wrote one.

    `review` counts reviews in the order in which they were settled, 0 for a label that was asked for; `at` in epoch
    seconds; `release` is what gave the answer.
    """

    seq: int
    review: int
    question: str
    wrong: bool
    right: str
    release: str | None = None
    at: float = 0.0


def labels(book: Ledger, assistant: str) -> list[Label]:
    """The reviewed feedback of an assistant, oldest review first; discarded feedback says nothing."""
    query = sa.select(reviews).where(reviews.c.assistant == assistant, reviews.c.kind == KIND)
    settled = book.rows(query.where(reviews.c.verdict.in_(("accepted", "corrected"))).order_by(reviews.c.settled_at))
    said = {row["seq"]: row for row in book.feedback(assistant)}
    found = []
    for number, review in enumerate(settled, start=1):
        row = said.get(int(review["subject"]))
        if row is None or not row["question"]:
            continue
        wrong = review["verdict"] == "corrected" or bool(row["edit"]) or row["rating"] == -1
        right = review["answer"] or row["edit"] or ("" if wrong else row["answer"])
        about = (wrong, right or "", row["release"], review["settled_at"])
        found.append(Label(row["seq"], number, row["question"], *about))
    return found


def collected(book: Ledger, assistant: str) -> list[Label]:
    """The labels that were asked for (tasks/collect), oldest first; numbered as data.reviews.said numbers them.

    To be learnt from and replayed. They are no sample of what is asked, so no rate of right answers is read off them.
    """
    return [
        Label(one.seq, 0, one.question, one.rating < 0, votes.endorsed(one) or "", release)
        for one, release in queue.said(book, assistant)
        if not one.withdrawn
    ]


def untrained(book: Ledger, live: Release, found: list[Label]) -> tuple[int, int]:
    """Labelled examples and preference pairs that the live model has not learnt from yet."""
    query = sa.select(trainings.c.feedback).where(trainings.c.model == live.model.sha256)
    known = {seq for row in book.rows(query) for seq in row["feedback"]}
    fresh = [label for label in found if label.right and label.seq not in known]
    return len(fresh), sum(label.wrong for label in fresh)
