"""Votes on answers: what users and reviewers agree on, the examples and preferences that follow, how often votes err.

A text is an answer to one question: the system's, an edit, or a reviewer's. An edit speaks for itself and against the
answer that was shown; a rating for or against that answer. A user's last vote on a text counts, and of each user one.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

from data.feedback import Said
from data.records import Example, Preference
from serving import rag
from serving.rerank import NEGATIONS
from tasks.golden import Corpus, bind

Key = tuple[str, ...]
Topic = Callable[[Said, str | None, str | None], tuple[str, ...]]
"""A row, and the document and section of an item that it calls for -> the topic of that item."""
PRIOR = (0.1, 10)
"""Flip rate, and how many compared votes it counts for, until votes can be compared."""
MOST_FLIPS = 0.45


@dataclass
class Text:
    """One answer to one question, and who speaks for and against it: owner of a key -> their last row."""

    question: Key
    key: Key
    text: str
    written: bool = False
    asserted: dict[str, Said] = field(default_factory=dict)
    denied: dict[str, Said] = field(default_factory=dict)
    accepted: list[Said] = field(default_factory=list)
    rejected: list[Said] = field(default_factory=list)
    place: tuple[str, str] | None = None
    rivals: set[str] = field(default_factory=set)
    overruled: bool = False

    @property
    def margin(self) -> int:
        """By how many users those for it outnumber those against it, or for a rival of it."""
        return len(self.asserted) - len((self.denied.keys() | self.rivals) - self.asserted.keys())

    def good(self, users: int) -> bool:
        """Whether it may be a chosen answer: `users` more are for it and a passage holds it, or a reviewer says so."""
        if self.accepted or self.rejected or self.overruled:
            return bool(self.accepted) and not self.rejected and not self.overruled
        return self.place is not None and self.margin >= users

    def bad(self, users: int) -> bool:
        if self.accepted or self.rejected:
            return bool(self.rejected) and not self.accepted
        return len(self.denied) - len(self.asserted) >= users


@dataclass(frozen=True)
class Item:
    """An example or preference that votes call for, and the sections shown to who said so.

    `users`: those without whom it would not be there.
    """

    record: Example | Preference
    seqs: tuple[int, ...]
    users: frozenset[str]
    topic: tuple[str, ...]
    reviewed: bool
    shown: tuple[tuple[str, str], ...] = ()

    @property
    def kind(self) -> str:
        return "preference" if isinstance(self.record, Preference) else "example"

    @property
    def text(self) -> str:
        """What it takes for the answer."""
        return self.record.chosen if isinstance(self.record, Preference) else self.record.answers[0]

    @property
    def answers(self) -> tuple[Example, ...]:
        """The answer as an example, bound to its section, or to each one that was shown where no section has it."""
        own = (self.record.document, self.record.section)
        places = self.shown if self.record.document is None else (own,)
        return tuple(Example(self.record.question, (self.text,), *place) for place in places)


def key(text: str) -> Key:
    """What makes two texts the same: their words in order, without articles and the like.

    >>> key("It is 21 days.") == key("21 days") != key("21 nights")
    True
    """
    return tuple(rag.words(text)) or tuple(rag.WORD.findall(text.lower()))


def compatible(one: Key, other: Key) -> bool:
    """Whether the words of one stand in a row in the other: a shorter form of it, no contradiction."""
    short, long = (f" {' '.join(words)} " for words in sorted((one, other), key=len))
    return short in long


def supports(passage: str, text: str) -> bool:
    """Whether a passage says `text`: the words of each sentence stand there in a row, or all of them in one sentence
    that denies nothing more than `text` does.

    >>> supports("Files may not be deleted by guests.", "Guests may delete files")
    False
    >>> supports("Files are not kept for more than 21 days.", "21 days")
    True
    """
    sentences = [sentence for line in passage.splitlines() for sentence in rag.SENTENCE.split(line)]

    def held(part: str) -> bool:
        if (share := rag.support(part, passage)) < 0.99:
            return False
        inside = (one for one in sentences if rag.support(part, one) >= 0.99)
        return share == 1.0 or any(not _negations(one) - _negations(part) for one in inside)

    parts = [part for part in rag.SENTENCE.split(text) if rag.words(part)]
    return bool(parts) and all(map(held, parts))


def _negations(text: str) -> frozenset[str]:
    return NEGATIONS & set(rag.words(text))


def count(rows: Iterable[Said], corpus: Corpus) -> dict[Key, dict[Key, Text]]:
    """All texts of each question with their votes. Reviewed rows are the reviewer's word, the others their owner's."""
    asked: dict[Key, dict[Key, Text]] = defaultdict(dict)
    rows = sorted(rows, key=lambda one: one.seq)
    for one in rows:
        texts = asked[key(one.question)]

        def text(written: str, by_hand: bool, one: Said = one, texts: dict[Key, Text] = texts) -> Text:
            found = texts.setdefault(key(written), Text(key(one.question), key(written), written))
            found.written |= by_hand
            if found.place is None:
                found.place = place(written, one, corpus)
            return found

        said_for, said_against = endorsed(one), denied(one)
        if said_for is not None:
            found = text(said_for, said_for != one.answer)
            if one.reviewed:
                found.accepted.append(one)
            else:
                found.denied.pop(one.owner, None)
                found.asserted[one.owner] = one
        if said_against is not None:
            found = text(said_against, False)
            if one.reviewed:
                found.rejected.append(one)
            else:
                found.asserted.pop(one.owner, None)
                found.denied[one.owner] = one
    for texts in asked.values():
        decided = max((one for one in texts.values() if one.accepted and not one.rejected), key=_newest, default=None)
        standing = [one for one in texts.values() if one.place is not None and one.asserted]
        for one in texts.values():
            rivals = [other for other in standing if not compatible(one.key, other.key)]
            one.rivals = {user for other in rivals for user in other.asserted}
            one.overruled = decided is not None and not compatible(one.key, decided.key)
    return asked


def _newest(one: Text) -> int:
    """Reviewers may contradict each other because the documents changed in between: the newest feedback counts."""
    return max(row.seq for row in one.accepted)


def endorsed(one: Said) -> str | None:
    """The text a row speaks for."""
    if one.verdict == "corrected":
        return one.correction
    if one.edit:
        return one.edit
    return one.answer if one.rating == 1 and one.answer else None


def denied(one: Said) -> str | None:
    """The text a row speaks against: what was shown, if it says otherwise."""
    text = endorsed(one)
    if not one.answer or (text is not None and key(text) == key(one.answer)):
        return None
    return one.answer if text is not None or one.rating == -1 else None


def place(text: str, one: Said, corpus: Corpus) -> tuple[str, str] | None:
    """The section shown for this answer that supports the text, as the documents are now."""
    for document, heading in _shown(one, corpus):
        section = corpus.section(document, heading)
        if section is not None and supports(section.text, text):
            return document, heading
    return None


def items(asked: dict[Key, dict[Key, Text]], users: int, topic: Topic, corpus: Corpus) -> list[Item]:
    """The examples (of edits and corrections) and the preferences that follow."""
    made = []
    for texts in asked.values():
        good = sorted((one for one in texts.values() if one.good(users)), key=_best_first)
        if written := next((one for one in good if one.written), None):
            first = _rows(written)[0]
            example = _bound(first, written, corpus)
            about = topic(first, example.document, example.section)
            shown = _shown(first, corpus)
            made.append(Item(example, _seqs(written), _due(written, users), about, bool(written.accepted), shown))
        for worse in (one for one in texts.values() if good and one is not good[0] and one.bad(users)):
            best, first = good[0], _rows(good[0])[0]
            at = _bound(first, best, corpus)
            against = sorted(worse.rejected or worse.denied.values(), key=lambda one: one.seq)
            seqs = tuple(sorted({*_seqs(best), *(one.seq for one in against)}))
            pair = Preference(against[0].question, best.text, worse.text, at.document, at.section, seqs)
            due = _due(best, users) | _due(worse, users, against=True)
            about = topic(first, at.document, at.section)
            made.append(Item(pair, seqs, due, about, bool(best.accepted and worse.rejected), _shown(first, corpus)))
    return made


def _best_first(one: Text) -> tuple:
    return (not one.accepted, -one.margin, not one.written, min(row.seq for row in _rows(one)))


def _rows(one: Text) -> list[Said]:
    """The rows that make a text good."""
    return sorted(one.accepted or one.asserted.values(), key=lambda row: row.seq)


def _seqs(one: Text) -> tuple[int, ...]:
    return tuple(row.seq for row in _rows(one))


def _bound(first: Said, one: Text, corpus: Corpus) -> Example:
    example = Example(first.question, (one.text,))
    return replace(example, document=one.place[0], section=one.place[1]) if one.place else bind(example, corpus)


def _shown(one: Said, corpus: Corpus) -> tuple[tuple[str, str], ...]:
    return tuple((corpus.aliases.get(place.document, place.document), place.section) for place in one.places)


def _due(one: Text, users: int, against: bool = False) -> frozenset[str]:
    """The users without each of whom a text would not be good (`against`: not bad); none where a reviewer decided."""
    if one.rejected if against else one.accepted:
        return frozenset()
    these, margin = (one.denied, len(one.denied) - len(one.asserted)) if against else (one.asserted, one.margin)
    return frozenset(these) if margin <= users else frozenset()


def opposed(asked: dict[Key, dict[Key, Text]], users: int) -> tuple[Counter[str], Counter[str]]:
    """By user: votes on texts that a reviewer decided on or the others agree on by `users`, and those against that."""
    compared, against = Counter(), Counter()
    for one in (text for texts in asked.values() for text in texts.values()):
        decided = bool(one.accepted) - bool(one.rejected)
        balance = len(one.asserted) - len(one.denied)
        for mine, voters in ((1, one.asserted), (-1, one.denied)):
            others = decided * users or balance - mine
            if abs(others) >= users:
                compared.update(voters.keys())
                against.update(voters.keys() if others * mine < 0 else ())
    return compared, against


def flip_rate(asked: dict[Key, dict[Key, Text]]) -> float:
    """How often a vote says the opposite of what it should, 0 to MOST_FLIPS in steps of .05, from a prior of .1.

    Against reviewers: the share of votes that contradict them. Without: two independent votes on one text differ with
    d = 2e(1-e), so e = (1 - sqrt(1-2d)) / 2. For cDPO (Mitchell 2023) and rDPO (Chowdhury et al. 2024), whose flip rate
    is a pair's: a pair on which users agree is wrong more rarely, so this is the careful side.
    """
    errors, compared = PRIOR[0] * PRIOR[1], float(PRIOR[1])
    differing = pairs = repeated = 0
    for one in (text for texts in asked.values() for text in texts.values()):
        pro, con = len(one.asserted), len(one.denied)
        if bool(one.accepted) != bool(one.rejected):
            errors, compared = errors + (con if one.accepted else pro), compared + pro + con
        elif pro + con > 1:
            differing, pairs = differing + pro * con, pairs + math.comb(pro + con, 2)
            repeated += pro + con
    if pairs:
        rate = (1 - math.sqrt(max(0.0, 1 - 2 * differing / pairs))) / 2
        errors, compared = errors + rate * repeated, compared + repeated
    return min(MOST_FLIPS, round(round(errors / compared / 0.05) * 0.05, 2))
