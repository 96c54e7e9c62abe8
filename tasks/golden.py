"""Golden questions: bound to the section that answers them, held out, kept out of training, aged with their source."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace

from data.records import Document, Example, GoldenQuestion, Section, digest
from data.reviews import Ruling

SHARE = 0.2
FEWEST_UNITS = 15
ENOUGH_UNITS = 60
MOST_QUESTIONS = 400
MOST_PER_SECTION = 3
# With fewer documents than this, 15 of them cannot be held out, and questions are split by section.
SPLIT_BY_DOCUMENT = 30
# Similarity 0 to 100 of two questions (words in any order) from which they count as the same.
NEAR_DUPLICATE = 88


class Corpus:
    """Documents by id, with the look-ups that binding needs. `aliases` maps left-out copies to what was kept.

    `total`: how many documents there are, where only those that questions name are given.
    """

    def __init__(self, documents: Sequence[Document], aliases: Mapping[str, str], total: int):
        self.documents = {document.id: document for document in documents}
        self.aliases = dict(aliases)
        self.by_document = total >= SPLIT_BY_DOCUMENT
        self._sections = {(s.document, s.heading): s for document in documents for s in document.sections}
        self._plain = {key: _plain(section.text) for key, section in self._sections.items()}

    def document(self, name: str) -> Document | None:
        return self.documents.get(self.aliases.get(name, name))

    def section(self, document: str | None, heading: str | None) -> Section | None:
        return self._sections.get((document, heading))

    def hash(self, document: str, heading: str | None) -> str | None:
        """The hash of a section, of the whole document when `heading` is None, None when it is not there."""
        if heading is not None:
            section = self._sections.get((document, heading))
            return section.hash if section else None
        found = self.documents.get(document)
        return digest([section.hash for section in found.sections]) if found else None

    def bound_text(self, question: GoldenQuestion) -> str:
        """The text a question is bound to, '' when it is gone."""
        if question.section is not None:
            section = self.section(question.document, question.section)
            return section.text if section else ""
        document = self.documents.get(question.document)
        return "\n\n".join(section.text for section in document.sections) if document else ""

    def holding(self, span: str, document: str | None = None) -> list[tuple[Section, int]]:
        """(section, times) of each section, of one document or of all, in which `span` occurs as whole words."""
        wanted = _plain(span)
        if document is None:
            keys = [key for key, text in self._plain.items() if wanted in text]
        else:
            found = self.documents.get(document)
            keys = [(document, section.heading) for section in found.sections] if found else []
        counted = ((key, times(wanted, self._plain[key])) for key in keys)
        return [(self._sections[key], number) for key, number in counted if number]

    def holds(self, document: str | None, heading: str | None, example: Example) -> bool:
        """Whether one of the example's answers occurs in the section (in the document when `heading` is None)."""
        if document is None:
            return False
        held = {section.heading for answer in example.answers for section, _ in self.holding(answer, document)}
        return bool(held) if heading is None else heading in held

    def lost(self, example: Example, old: Corpus) -> bool:
        """Whether the section held an answer of the example in the `old` corpus and holds none any more."""
        place = (example.document, example.section)
        if not example.answers or example.document is None or old.hash(*place) in (None, self.hash(*place)):
            return False
        return old.holds(*place, example) and not self.holds(*place, example)


def bind(example: Example, corpus: Corpus) -> Example:
    """The example with its document and the heading of the section that answers it, None where that is not certain.

    Without a section it is the one that holds the first answer; without a document too, the one in all documents.
    A heading matches in full, or by its last part. Raises LookupError, saying what is not there.
    """
    answer = example.answers[0] if example.answers else None
    if example.document is None:
        held = corpus.holding(answer) if answer else []
        place = (held[0][0].document, held[0][0].heading) if len(held) == 1 else (None, None)
        return replace(example, document=place[0], section=place[1])
    document = corpus.document(example.document)
    if document is None:
        raise LookupError(f"no document {example.document!r} among the documents")
    if example.section is not None:
        wanted = example.section.casefold()
        headings = [section.heading for section in document.sections]
        for form in (str.casefold, lambda heading: heading.casefold().split(" > ")[-1]):
            if len(same := [heading for heading in headings if form(heading) == wanted]) == 1:
                return replace(example, document=document.id, section=same[0])
    held = corpus.holding(answer, document.id) if answer else []
    if len(held) != 1 and example.section is not None:
        raise LookupError(f"no section {example.section!r} in {example.document!r}")
    return replace(example, document=document.id, section=held[0][0].heading if len(held) == 1 else None)


def to_golden(example: Example, corpus: Corpus, origin: str = "given") -> GoldenQuestion:
    """A bound example as a golden question. Without a document it is bound to nothing, and never ages."""
    place = (example.document or "", example.section)
    bound = (*place, corpus.hash(*place) or "")
    return GoldenQuestion(example.id, example.question, example.answers, *bound, origin=origin)


def age(question: GoldenQuestion, old_text: str, corpus: Corpus) -> GoldenQuestion:
    """The question as it stands in `corpus`: unchanged, re-derived, or set aside ('aged'). `old_text` is its source.

    Re-derived when the sentence that held the first answer stands in exactly one place of the documents as they are
    now; the bare span is not enough, since a short answer ('30 days') also occurs where the fact has changed.
    """
    if not question.document:
        return question
    if corpus.hash(question.document, question.section) == question.section_hash:
        return replace(question, state="active") if question.state == "aged" else question
    if question.answers and old_text:
        sentences = {sentence for sentence in split_sentences(old_text) if times(question.answers[0], sentence)}
        inside = question.document if question.document in corpus.documents else None
        places = [place for sentence in sentences for place in corpus.holding(sentence, inside)]
        if len(sentences) == 1 and len(places) == 1 and places[0][1] == 1:
            section = places[0][0]
            place = {"document": section.document, "section": section.heading, "section_hash": section.hash}
            return replace(question, **place, state="rederived")
    return replace(question, state="aged")


def ruled(question: str, answers: tuple[str, ...], rulings: Sequence[Ruling]) -> Ruling | None:
    """The last ruling on the question with this id whose answers start from `answers`, None without one.

    Rulings follow one another: each replaces the answers that the one before it left. So one on answers that the team
    has changed in its own file since then counts no more.
    """
    last = None
    for ruling in rulings:
        if ruling.question.id == question and ruling.before == answers:
            last, answers = ruling, ruling.question.answers
    return last


def apply(ruling: Ruling, corpus: Corpus) -> GoldenQuestion | None:
    """The question as its reviewer left it, as it stands in `corpus` now; None where they discarded it.

    What changed after the reviewer looked ages it again. Where its source was gone already, it is bound to the one
    section that holds the corrected answer; without one it stays set aside.
    """
    if ruling.discarded:
        return None
    if ruling.text:
        return age(ruling.question, ruling.text, corpus)
    question = ruling.question
    held = corpus.holding(question.answers[0])
    if len(held) != 1:
        return replace(question, state="aged")
    section = held[0][0]
    return replace(question, document=section.document, section=section.heading, section_hash=section.hash)


def unit(document: str, section: str | None, corpus: Corpus) -> tuple[str, ...]:
    """What is never on both sides of the split: the document, or with few documents the section."""
    return (document,) if corpus.by_document else (document, section or "")


def hold_out(
    examples: Sequence[Example], corpus: Corpus, before: Sequence[GoldenQuestion], known: set[str]
) -> list[Example]:
    """Examples to be golden: at most 3 per section, of a fifth of the units (at least 15, never over half), by hash.

    Enough units for 400 questions and 60 clusters end the choice. With a held-out set `before`, that set stays (a
    question once trained on never becomes golden), and a fifth of the documents that were not `known` joins it.
    """
    units: dict[tuple[str, ...], list[Example]] = defaultdict(list)
    for example in sorted(examples, key=lambda example: digest("question", example.id)):
        if example.document is not None:
            units[unit(example.document, example.section, corpus)].append(example)
    ordered = sorted(units, key=lambda name: digest("unit", *name))
    stay = {question.id for question in before} & {example.id for example in examples}
    if stay:
        kept = [example for example in examples if example.id in stay]
        fresh = [
            name for name in ordered if name[0] not in known and int(digest("unit", *name)[:8], 16) < SHARE * 2**32
        ]
        return kept + [example for name in fresh for example in _few_per_section(units[name])]
    most = min(max(FEWEST_UNITS, round(SHARE * len(units))), len(units) // 2)
    chosen: list[Example] = []
    for number, name in enumerate(ordered[:most]):
        if number >= ENOUGH_UNITS and len(chosen) >= MOST_QUESTIONS:
            break
        chosen += _few_per_section(units[name])
    return sorted(chosen, key=lambda example: digest("question", example.id))[:MOST_QUESTIONS]


def leaks(training: Sequence[str], golden: Sequence[str]) -> dict[int, str]:
    """Position of each training question that is a golden one or nearly -> that golden question.

    Nearly: the same words in another order or form, rapidfuzz token_sort_ratio or ratio of at least 88 of 100,
    unless a number or code in them differs ('QB-217' and 'QB-271' are two questions).
    """
    import numpy as np
    from rapidfuzz import fuzz, process

    found: dict[int, str] = {}
    asked, held = [_words(text) for text in training], [_words(text) for text in golden]
    if not asked or not held:
        return found
    for start in range(0, len(asked), 4096):
        part = asked[start : start + 4096]
        same = np.zeros((len(part), len(held)), bool)
        for scorer in (fuzz.token_sort_ratio, fuzz.ratio):
            same |= process.cdist(part, held, scorer=scorer, score_cutoff=NEAR_DUPLICATE, dtype=np.uint8) > 0
        for row, column in np.argwhere(same):
            if _codes(part[row]) == _codes(held[column]):
                found.setdefault(start + int(row), golden[column])
    return found


def clusters(questions: Sequence[str]) -> list[int]:
    """For each question the position of the first in its cluster: those that are nearly the same as in `leaks`, also
    through others between them. For counting what is said on a question, not for telling which answer belongs to it.
    """
    import numpy as np
    from rapidfuzz import fuzz, process

    first: dict[str, int] = {}
    for position, question in enumerate(questions):
        first.setdefault(_words(question), position)
    texts = list(first)
    groups: dict[frozenset[str], list[int]] = defaultdict(list)
    for row, text in enumerate(texts):
        groups[_codes(text)].append(row)
    parent = list(range(len(texts)))

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = row = parent[parent[row]]
        return row

    for rows in groups.values():
        some = [texts[row] for row in rows]
        for start in range(0, len(some), 4096):
            part = some[start : start + 4096]
            same = np.zeros((len(part), len(some)), bool)
            for scorer in (fuzz.token_sort_ratio, fuzz.ratio):
                same |= process.cdist(part, some, scorer=scorer, score_cutoff=NEAR_DUPLICATE, dtype=np.uint8) > 0
            for one, other in np.argwhere(same):
                low, high = sorted((root(rows[start + int(one)]), root(rows[int(other)])))
                parent[high] = low
    place = {text: first[texts[root(row)]] for row, text in enumerate(texts)}
    return [place[_words(question)] for question in questions]


def _few_per_section(examples: Sequence[Example]) -> list[Example]:
    taken: dict[str | None, int] = defaultdict(int)
    few = []
    for example in examples:
        taken[example.section] += 1
        if taken[example.section] <= MOST_PER_SECTION:
            few.append(example)
    return few


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def times(span: str, text: str) -> int:
    """How often a span stands in a text as whole words, whatever the case and line breaks."""
    span, text = _plain(span), _plain(text)
    if not span or span not in text:
        return 0
    return len(re.findall(rf"(?<!\w){re.escape(span)}(?!\w)", text))


def split_sentences(text: str) -> list[str]:
    return [part.strip() for part in re.split(r"(?<=[.!?])\s+|\n", text) if part.strip()]


def _words(question: str) -> str:
    return " ".join(re.findall(r"[\w'-]+", question.casefold()))


def _codes(question: str) -> frozenset[str]:
    return frozenset(word for word in question.split() if any(letter.isdigit() for letter in word))
