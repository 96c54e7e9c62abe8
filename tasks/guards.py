"""Which rows of feedback may be trained on at all: one named guard each, in order.

A guard takes the rows that the ones before it let through and names those it refuses, each with the reason. What people
then agree on is another question (tasks/votes, tasks/agreement). METHODS section 5.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from data.feedback import Said
from data.records import Example, GoldenQuestion, Record
from data.redaction import KINDS
from serving import rag
from tasks import votes
from tasks.golden import Corpus, leaks, unit

DAY_S = 86_400.0
MARK = re.compile(rf"\[(?:{'|'.join(KINDS)})\]")
ENOUGH_QUESTIONS = 50
"""Other questions than the suspected ones, from which on a word that only those have is told from chance."""


@dataclass(frozen=True)
class Guards(Record):
    """Thresholds of what may be trained on.

    `users` must agree, and outnumber those who do not by as many, unless a reviewer decides. A user's votes count once
    they have voted on `history` questions on `history_days` days before, unless of their votes on what others voted on
    too (`compared` or more) over `opposed` say the opposite. Of the questions of a batch at
    most `user_share` is due to one user and `topic_share` to one topic, but one always may be: of 10 questions one of
    each user and 2 of each topic.
    A word that edits on `trigger` questions bring in from nowhere is taken for a planted one.
    """

    users: int = 2
    history: int = 5
    history_days: int = 3
    compared: int = 5
    opposed: float = 0.34
    user_share: float = 0.05
    topic_share: float = 0.20
    trigger: int = 3


@dataclass(frozen=True)
class Refusal(Record):
    """Feedback number `seq` is not trained on, and which guard says so."""

    seq: int
    guard: str
    reason: str


@dataclass(frozen=True)
class Known:
    """What guards look at beside the rows: documents, golden questions, given examples, cluster of each row."""

    corpus: Corpus
    golden: Sequence[GoldenQuestion]
    given: Sequence[Example]
    chosen: Guards
    cluster: dict[int, int]
    outdated: Callable[[Example], bool] = lambda example: False
    read: dict[str, frozenset[str]] = field(default_factory=dict)

    def words(self, name: str) -> frozenset[str]:
        """The words of a document, with its title and headings."""
        if name not in self.read:
            document = self.corpus.document(name)
            sections = document.sections if document else ()
            texts = [document.title if document else "", *(f"{part.heading} {part.text}" for part in sections)]
            self.read[name] = frozenset(rag.words(" ".join(texts)))
        return self.read[name]

    def topic(self, one: Said, document: str | None, section: str | None) -> tuple[str, ...]:
        """The unit of the golden split that an item is about, else its question."""
        if document is None and one.places:
            shown, section = one.places[0].document, one.places[0].section
            document = self.corpus.aliases.get(shown, shown)
        return unit(document, section, self.corpus) if document else ("question", str(self.cluster[one.seq]))


def withdrawn(rows: Sequence[Said], known: Known) -> dict[int, str]:
    return {one.seq: f"withdrawn {one.withdrawn}" for one in rows if one.withdrawn}


def discarded(rows: Sequence[Said], known: Known) -> dict[int, str]:
    return {one.seq: f"discarded by {one.reviewer}" for one in rows if one.verdict == "discarded"}


def remark(rows: Sequence[Said], known: Known) -> dict[int, str]:
    nothing = [one for one in rows if not (one.edit or one.rating or one.correction)]
    return {one.seq: "a remark, neither a rating nor a better text" for one in nothing}


def forgotten(rows: Sequence[Said], known: Known) -> dict[int, str]:
    lost = [one for one in rows if not (one.question and (one.answer or one.edit or one.correction))]
    return {one.seq: "nobody knows any more what was asked or answered" for one in lost}


def personal(rows: Sequence[Said], known: Known) -> dict[int, str]:
    """A text with `[email]` in it would teach the model to write that."""
    texts = {one.seq: [one.correction or one.edit or "", *([one.answer] if one.answer else [])] for one in rows}
    marks = {seq: next((m[0] for text in some if (m := MARK.search(text))), None) for seq, some in texts.items()}
    return {seq: f"personal data was taken out of it: {mark}" for seq, mark in marks.items() if mark}


def golden(rows: Sequence[Said], known: Known) -> dict[int, str]:
    near = leaks([one.question for one in rows], [question.question for question in known.golden])
    return {rows[at].seq: f"asks nearly what a golden question asks: {text}" for at, text in near.items()}


def trigger(rows: Sequence[Said], known: Known) -> dict[int, str]:
    """The same foreign word in edits of many questions, or in many questions whose answers are then found wrong.

    Foreign to an edit: neither in its question, the answer shown, the passages shown nor their documents. Foreign to a
    question: in no passage, no given or golden question, and no question whose answer nobody found wrong.
    """
    critical = [one for one in rows if votes.denied(one) is not None]
    calm = [one.question for one in rows if votes.denied(one) is None and one.owner]
    calm += [question.question for question in (*known.given, *known.golden)]
    usual = {word for text in calm for word in rag.words(text)}
    sites: dict[tuple[str, str], dict[int, list[int]]] = defaultdict(lambda: defaultdict(list))
    for one in critical:
        shown = set(rag.words(one.answer)).union(*(known.words(place.document) for place in one.places))
        asked = set(rag.words(one.question))
        for word in set(rag.words(one.edit or "")) - shown - asked:
            sites["edits", word][known.cluster[one.seq]].append(one.seq)
        if len(calm) >= ENOUGH_QUESTIONS:
            for word in asked - shown - usual:
                sites["questions", word][known.cluster[one.seq]].append(one.seq)
    reviewed = {one.seq for one in rows if one.reviewed}
    found: dict[int, str] = {}
    for (kind, word), by_question in sorted(sites.items()):
        if len(by_question) >= known.chosen.trigger:
            reason = f"{word!r} comes from nowhere in {kind} on {len(by_question)} questions; a reviewer can accept it"
            for seq in (seq for seqs in by_question.values() for seq in seqs if seq not in reviewed):
                found.setdefault(seq, reason)
    return found


def set_aside(rows: Sequence[Said], known: Known) -> dict[int, str]:
    return {one.seq: one.aside for one in rows if one.aside and not one.reviewed}


def keyless(rows: Sequence[Said], known: Known) -> dict[int, str]:
    return {one.seq: "came without a key; a reviewer can accept it" for one in rows if not (one.owner or one.reviewed)}


def repeated(rows: Sequence[Said], known: Known) -> dict[int, str]:
    """Of a user's votes on one question and day the last counts."""
    last: dict[tuple, int] = {}
    found = {}
    for one in rows:
        if one.reviewed:
            continue
        vote = (one.owner, known.cluster[one.seq], one.at // DAY_S)
        if vote in last:
            found[last[vote]] = f"the same user said something newer on this question that day: {one.seq}"
        last[vote] = one.seq
    return found


def newcomer(rows: Sequence[Said], known: Known) -> dict[int, str]:
    """A vote counts by what its user had done on the days before it: what came too early stays without weight."""
    votes_of: dict[str, dict[float, set[int]]] = defaultdict(lambda: defaultdict(set))
    for one in rows:
        if one.owner:
            votes_of[one.owner][one.at // DAY_S].add(known.cluster[one.seq])
    before: dict[tuple, tuple[int, int]] = {}
    for owner, days in votes_of.items():
        questions: set[int] = set()
        for number, day in enumerate(sorted(days)):
            before[owner, day] = (number, len(questions))
            questions |= days[day]
    found, least = {}, known.chosen
    for one in rows:
        if one.reviewed or not one.owner:
            continue
        days_before, asked = before[one.owner, one.at // DAY_S]
        if days_before < least.history_days or asked < least.history:
            found[one.seq] = f"its user had voted on {asked} questions on {days_before} days before"
    return found


def unreliable(rows: Sequence[Said], known: Known) -> dict[int, str]:
    """A history of saying the opposite of what the others, or a reviewer, say on the same answers is none."""
    compared, opposed = votes.opposed(votes.count(rows, known.corpus), known.chosen.users)
    least = known.chosen
    poor = {
        owner: f"its user contradicts others in {opposed[owner]} of {number} votes on the same answers"
        for owner, number in compared.items()
        if number >= least.compared and opposed[owner] > least.opposed * number
    }
    return {one.seq: poor[one.owner] for one in rows if not one.reviewed and one.owner in poor}


ROWS: dict[str, Callable[[Sequence[Said], Known], dict[int, str]]] = {
    "withdrawn": withdrawn,
    "discarded": discarded,
    "remark": remark,
    "forgotten": forgotten,
    "personal data": personal,
    "golden": golden,
    "trigger": trigger,
    "set aside": set_aside,
    "keyless": keyless,
    "repeated": repeated,
    "new user": newcomer,
    "unreliable": unreliable,
}
"""In this order. What a reviewer accepted passes the last six."""
