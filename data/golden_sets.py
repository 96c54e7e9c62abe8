"""Golden sets by content hash, in the ledger: what a decision was taken on, how worn a set is, what of it is sealed.

The sealed part is looked at by the gate's verdict alone: nobody is shown its questions answered, and nothing that
chooses between models, prompts or settings scores them. The verdict's intervals are over all questions, so who sets
them against the means of the open ones learns how the sealed part did as a whole, and of no question how it did.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable

import sqlalchemy as sa

from data.ledger import Ledger
from data.records import GoldenQuestion, digest
from data.tables import decisions, golden_sets, releases

REPLACED = 0.2
"""Share of today's questions that must be new since a decision for it to wear the set no more."""
SEALED = 0.2
"""Share of the documents whose golden questions are sealed."""
DOCUMENTS = 15
"""With fewer documents than this, questions are clustered and sealed by section."""
TUNED = ("tuned", "reprompt")
"""Kinds of release that were chosen by looking at earlier scores; an index-only refresh was not."""


def members(questions: Iterable[GoldenQuestion]) -> list[str]:
    """What is asked and which answers are right, by hash; where the answer stands is no part of it."""
    return sorted({digest(one.question, one.answers)[:16] for one in questions if one.votes})


def golden_hash(questions: Iterable[GoldenQuestion]) -> str:
    """Content hash of the questions that vote: evaluations, decisions and reports carry it."""
    return "golden-" + digest(members(questions))[:20]


def by_section(questions: Iterable[GoldenQuestion]) -> bool:
    """Whether the documents of the questions are too few to count as clusters, so that their sections do."""
    return len({one.document for one in questions}) < DOCUMENTS


def sealed(questions: Collection[GoldenQuestion]) -> frozenset[str]:
    """Ids of the sealed ones among these questions, which are a whole golden set: those set aside say with the others
    whether there are documents enough, so that what is sealed does not change when some of them age.

    All of a document or none, by the hash of its name: what is sealed stays sealed whatever joins or leaves the set,
    and could as well be any other part of it (`tasks.intervals.apart_by_chance` counts on that).
    """
    sections = by_section(questions)

    def unit(one: GoldenQuestion) -> tuple:
        return (one.document, one.section) if sections else (one.document,)

    return frozenset(one.id for one in questions if int(digest("sealed", *unit(one))[:8], 16) < SEALED * 2**32)


def open_part(questions: Collection[GoldenQuestion]) -> list[GoldenQuestion]:
    """The questions of a whole golden set that may be looked at, answered and chosen by."""
    apart = sealed(questions)
    return [one for one in questions if one.id not in apart]


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
