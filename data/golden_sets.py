"""Golden sets by content hash, in the ledger: which questions a decision was taken on, and how worn a set is."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import sqlalchemy as sa

from data.ledger import Ledger
from data.records import GoldenQuestion, digest
from data.tables import decisions, golden_sets, releases

REPLACED = 0.2
"""Share of today's questions that must be new since a decision for it to wear the set no more."""
TUNED = ("tuned", "reprompt")
"""Kinds of release that were chosen by looking at earlier scores; an index-only refresh was not."""


def members(questions: Iterable[GoldenQuestion]) -> list[str]:
    """What is asked and which answers are right, by hash; where the answer stands is no part of it."""
    return sorted({digest(one.question, one.answers)[:16] for one in questions if one.votes})


def golden_hash(questions: Iterable[GoldenQuestion]) -> str:
    """Content hash of the questions that vote: evaluations, decisions and reports carry it."""
    return "golden-" + digest(members(questions))[:20]


def record(ledger: Ledger, assistant: str, questions: Collection[GoldenQuestion]) -> str:
    """Remember a set under its hash, which is returned. Recording it twice changes nothing."""
    sha = golden_hash(questions)
    mine = (golden_sets.c.assistant == assistant, golden_sets.c.sha == sha)
    with ledger.write() as c:
        if not c.execute(sa.select(golden_sets.c.sha).where(*mine)).first():
            synthetic = sum(one.synthetic for one in questions if one.votes)
            row = {"assistant": assistant, "sha": sha, "questions": members(questions), "synthetic": synthetic}
            c.execute(golden_sets.insert().values(**row, at=time.time()))
    return sha


def tuned_decisions(ledger: Ledger, assistant: str, questions: Collection[GoldenQuestion], but: str = "") -> int:
    """How many tuned candidates, `but` one, these questions have judged: on this set, or on one of which less than a
    fifth of them is new. Questions that only left, or that were bound again, replace nothing. A decision on no recorded
    set, of before there were any, wears none.
    """
    now = set(members(questions))
    sets = {
        row["sha"]: set(row["questions"])
        for row in ledger.rows(sa.select(golden_sets).where(golden_sets.c.assistant == assistant))
    }
    judged = ledger.rows(
        sa.select(decisions.c.release, decisions.c.body)
        .join(releases, releases.c.id == decisions.c.release)
        .where(decisions.c.assistant == assistant, decisions.c.kind == "gate", releases.c.kind.in_(TUNED))
    )
    worn = {sha for sha, known in sets.items() if len(now - known) < REPLACED * max(1, len(now))}
    return len({row["release"] for row in judged if row["body"].get("golden") in worn} - {but})
