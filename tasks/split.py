"""Split tests: what users made of two releases, one voice each, and what follows from it.

An answer's score is what a person made of it: a reviewed label or accepted edit, else the rating of whoever asked. That
alone can make a winner. Live quality (grounding, abstention where the documents hold the answer) is measured on every
answer, but no person said it: it can only end a test without a proof for b.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from data import feedback, quarantine
from data.ledger import Ledger
from data.records import Record
from data.requests import RequestLog, asker
from data.splits import Split
from data.tables import keys, reviews
from serving.keys import ADMIN
from tasks import betting
from tasks.betting import Difference
from tasks.evidence import DiagnosisSettings
from tasks.labels import labels
from tasks.streams import relevant

LABEL, RATING, LIVE = "label", "rating", "live quality"
FAILURES, ANSWERS = 3, 20
"""Fewest failed requests of b, among fewest requests, that count as more than bad luck."""


@dataclass(frozen=True)
class Plan(Record):
    """What a split test is made for: proving b better by `difference` where a is right with `p0`, with `power`.

    `alpha`: the chance to name a winner of two equal arms, however often it is looked at. A user counts once, with the
    mean of all that is known `hours` after their first score. After `days` it ends, proof or not.
    """

    p0: float = 0.80
    difference: float = 0.10
    power: float = 0.80
    alpha: float = 0.05
    hours: float = 24.0
    days: float = 14.0

    def blocks(self, share: float) -> int:
        """Blocks of users after which it ends without a winner (see betting.planned)."""
        return betting.planned(self.p0, self.difference, share, self.power, self.alpha)

    def users(self, share: float) -> dict[str, int]:
        """Users with a score in each arm that are planned for."""
        return {arm: size * self.blocks(share) for arm, size in zip("ab", betting.block(share), strict=True)}


@dataclass(frozen=True)
class Score(Record):
    """One answer's score, 0 to 1 and higher is better, by whom it was asked, and since when it is known."""

    arm: str
    asker: str
    response: str
    kind: str
    value: float
    at: float


@dataclass(frozen=True)
class Compared(Record):
    """Both comparisons of a test, the scores they rest on by kind, and b's failed requests of how many.

    `planned`: users of each arm after which it ends. `nobody`: answers given to nobody in particular, which do not
    count.
    """

    judged: Difference
    live: Difference
    scores: dict
    planned: dict
    requests: int = 0
    failed: int = 0
    nobody: int = 0

    def says(self) -> str:
        """The comparison of people's judgements in a sentence."""
        used, found = self.judged.users, self.judged
        points = f"{100 * found.estimate:+.1f} points ({100 * found.lower:+.1f} to {100 * found.upper:+.1f})"
        counts = ", ".join(f"{count} by {kind}" for kind, count in self.scores.items()) or "no answer scored yet"
        goal = f"of {self.planned['a']} and {self.planned['b']} planned"
        return f"b is at {points} on {used['a']} and {used['b']} users {goal}; {counts}"


def compare(book: Ledger, log: RequestLog, split: Split, now: float) -> Compared:
    """What is known by `now` (epoch seconds) about the arms of a test."""
    plan, rows = Plan.of(split.plan), asked(book, log, split)
    counting = answered(rows)
    judged, live = list(said(book, split, counting)), list(live_quality(counting))
    of_b = [row for row in rows if row["arm"] == "b"]
    return Compared(
        judged=compared(judged, split, plan, now),
        live=compared(live, split, plan, now),
        scores=dict(Counter(score.kind for score in (*judged, *live))),
        planned=plan.users(split.share),
        requests=len(of_b),
        failed=sum(row["status"] == 500 for row in of_b),  # 503 and 504 are about capacity, not about the release
        nobody=sum(row["status"] == 200 and not row["asker"] for row in rows),
    )


def compared(scores: Iterable[Score], split: Split, plan: Plan, now: float) -> Difference:
    return betting.compare(units(scores, plan.hours, now), split.share, plan.alpha)


def units(scores: Iterable[Score], hours: float, now: float) -> list[tuple[str, float]]:
    """Arm and value of each user, in the order in which they were complete: `hours` after the user's first score.

    The value is the mean over the user's answers of what was known by then, of one answer a label before a rating and
    a later one before an earlier one. What comes after is left out, so that no value changes once it was looked at.
    """
    voices: dict[tuple[str, str], list[Score]] = defaultdict(list)
    for score in scores:
        voices[score.arm, score.asker].append(score)
    complete = []
    for (arm, _), own in voices.items():
        closed = min(score.at for score in own) + 3600 * hours
        if closed <= now:
            ordered = sorted((score for score in own if score.at <= closed), key=lambda s: (s.kind == LABEL, s.at))
            values = {score.response: score.value for score in ordered}
            complete.append((closed, arm, sum(values.values()) / len(values)))
    complete.sort(key=lambda unit: unit[0])
    return [(arm, value) for _, arm, value in complete]


# --- scores -----------------------------------------------------------------------------------


def asked(book: Ledger, log: RequestLog, split: Split) -> list[dict]:
    """The users' requests on both arms, each with the owner of its key and the one voice that it is of."""
    owners = {row["id"]: row["owner"] for row in book.rows(sa.select(keys.c.id, keys.c.owner))}
    owners |= {ADMIN.id: ADMIN.owner}
    rows = log.compared(split.assistant, {"a": split.a, "b": split.b}, split.started)
    for row in rows:
        row["owner"] = owners.get(row["key"])
        row["asker"] = asker(row["owner"] or row["key"], row["user"])
    return rows


def answered(rows: Iterable[dict]) -> list[dict]:
    """The requests that count: answered, and somebody's in particular."""
    return [row for row in rows if row["status"] == 200 and row["asker"]]


def said(book: Ledger, split: Split, answers: Iterable[dict]) -> Iterable[Score]:
    """What people made of the answers: reviewers' labels, and the ratings of whoever asked.

    A rating by somebody else, one that is set aside, of a discarded feedback or withdrawn, does not count.
    """
    about = {row["response"]: row for row in answers}
    rows = {row["seq"]: row for row in book.feedback(split.assistant) if row["response"] in about}

    def score(row: dict, kind: str, value: float, at: float) -> Score:
        answer = about[row["response"]]
        return Score(answer["arm"], answer["asker"], answer["response"], kind, value, at)

    for label in labels(book, split.assistant):
        if label.seq in rows:
            yield score(rows[label.seq], LABEL, float(not label.wrong), label.at)
    mine = (reviews.c.assistant == split.assistant, reviews.c.kind == feedback.KIND, reviews.c.verdict == "discarded")
    out = {int(row["subject"]) for row in book.rows(sa.select(reviews.c.subject).where(*mine))}
    out |= feedback.withdrawn(book, split.assistant).keys()
    for row in quarantine.counted(book, split.assistant, rows.values()):
        answer = about[row["response"]]
        own = (row["owner"], row["user"]) == (answer["owner"], answer["user"])
        if row["rating"] and own and row["seq"] not in out:
            yield score(row, RATING, (row["rating"] + 1) / 2, row["at"])


def live_quality(answers: Iterable[dict]) -> Iterable[Score]:
    """Grounding of each answer, 0 where it abstains although a passage is about the question (METHODS, section 3)."""
    for row in answers:
        value = row["grounding"] if not row["abstained"] else 0.0 if relevant(row) else None
        if value is not None:
            yield Score(row["arm"], row["asker"], row["response"], LIVE, value, row["at"])


# --- what follows -----------------------------------------------------------------------------


def conclude(split: Split, found: Compared, now: float) -> tuple[str, str]:
    """The verdict on a running test (see data/splits; '' to go on) and why, as a sentence."""
    plan, says = Plan.of(split.plan), found.says()
    if found.requests >= ANSWERS and found.failed >= max(FAILURES, DiagnosisSettings.parse_failures * found.requests):
        return "refused", f"{found.failed} of {found.requests} requests to b failed"
    if found.judged.ahead:
        return found.judged.ahead, f"{found.judged.ahead} is better: {says}"
    if found.live.ahead == "a":
        points = f"{100 * found.live.estimate:+.1f} points"
        return "none", f"no proof for b, and live quality is surely worse ({points}): {says}"
    if all(found.judged.users[arm] >= users for arm, users in found.planned.items()):
        return "none", f"no difference proven with the users that were planned: {says}"
    if now - split.started >= 86_400 * plan.days:
        return "none", f"no difference proven in {plan.days:g} days: {says}"
    return "", says


def table(split: Split, found: Compared) -> str:
    """Both comparisons in Markdown: people's, which decides, and the live quality of all answers."""
    lines = [f"a is {split.a}, b is {split.b} ({split.share:.0%} of the users).", ""]
    lines += ["| scored by | b - a, points | bounds | users of a | users of b | better |", "|---|---|---|---|---|---|"]
    for name, one in (("people", found.judged), (LIVE, found.live)):
        points, bounds = f"{100 * one.estimate:+.1f}", f"{100 * one.lower:+.1f} to {100 * one.upper:+.1f}"
        row = (name, points, bounds, str(one.users["a"]), str(one.users["b"]), one.ahead or "neither")
        lines.append(f"| {' | '.join(row)} |")
    return "\n".join([*lines, "", f"{found.failed} of {found.requests} requests to b failed."])
