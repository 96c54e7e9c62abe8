"""Golden questions made from the documents' own words, where a team gave none: question, answer span, section.

Rules, no model: a table cell, a `key: value` line, a definition, an amount in a sentence. Kept are only those that
their source really answers. They are marked `generated`: easier than what people ask, good for comparing two releases.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

from data.records import Example, GoldenQuestion, Section, digest
from tasks.golden import ENOUGH_UNITS, Corpus, clusters, leaks, split_sentences, times, to_golden, unit

ENOUGH = 60
"""Voting questions of people from which nothing is generated: what a gate needs."""
MOST = 2 * ENOUGH_UNITS
MOST_PER_SECTION = 2
# Of a larger corpus this many documents are asked about and searched.
MOST_DOCUMENTS = 2000
# The section must be among this many that are found for its question, as many as a model is shown.
SHOWN = 3
MOST_WORDS_ASKED, MOST_WORDS_ANSWERED = 32, 12


@dataclass(frozen=True)
class Asked:
    """A question that the rules made, its answer, and the sentence, line or row that holds it."""

    question: str
    span: str
    sentence: str
    section: Section


def generate(
    corpus: Corpus,
    most: int = MOST,
    apart: Collection[tuple[str, ...]] = (),
    asked: Sequence[str] = (),
    steady: Callable[[Section], bool] = lambda section: True,
) -> list[GoldenQuestion]:
    """At most `most` questions on sections of `corpus`, two a section, the same ones each time.

    `apart`: units that nothing is asked about, since they are trained on; `asked`: questions that none may resemble;
    `steady`: whether a section may be asked about. A section that changed just now may not: the release that knows it
    would be better only for being newer.
    """
    sections = [section for document in corpus.documents.values() for section in document.sections]
    made = [
        one
        for section in sections
        if steady(section) and unit(section.document, section.heading, corpus) not in apart
        for one in _of_section(section, corpus.documents[section.document].language)
        if _once(one, corpus) and reads(one)
    ]
    made = found_first(made, sections)
    near = leaks([one.question for one in made], asked)
    made = [one for number, one in enumerate(made) if number not in near]
    made.sort(key=lambda one: digest("generated", one.question, one.section.document))
    first = clusters([one.question for one in made])
    made = [one for number, one in enumerate(made) if first[number] == number]
    return [_golden(one, corpus) for one in _in_turn(made, corpus)[:most]]


def _golden(one: Asked, corpus: Corpus) -> GoldenQuestion:
    example = Example(one.question, (one.span,), one.section.document, one.section.heading)
    return to_golden(example, corpus, "generated")


def _in_turn(made: Sequence[Asked], corpus: Corpus) -> list[Asked]:
    """One question of each unit before the second of any, at most MOST_PER_SECTION of a section."""
    per_section: Counter[tuple[str, str]] = Counter()
    turns: Counter[tuple[str, ...]] = Counter()
    placed = []
    for one in made:
        place = (one.section.document, one.section.heading)
        per_section[place] += 1
        if per_section[place] <= MOST_PER_SECTION:
            mine = unit(*place, corpus)
            turns[mine] += 1
            placed.append((turns[mine], one))
    return [one for _, one in sorted(placed, key=lambda pair: pair[0])]


# --- what must hold of a question -------------------------------------------------------------


def _once(one: Asked, corpus: Corpus) -> bool:
    """Whether the answer stands in one place of its document, and not in the question."""
    held = corpus.holding(one.span, one.section.document)
    return len(held) == 1 and held[0][1] == 1 and not times(one.span, one.question)


def reads(one: Asked) -> bool:
    """Whether a reader that picks the sentence with the most words of the question finds the answer, without a tie."""
    asked = _bag(one.question)
    shared = {part: len(asked & _bag(f"{header} {part}")) for part, header in _parts(one.section.text)}
    best = max(shared.values(), default=0)
    return [part for part, number in shared.items() if number == best] == [one.sentence]


def found_first(made: Sequence[Asked], sections: Sequence[Section]) -> list[Asked]:
    """Those whose own section is among the first that a search by words (TF-IDF, cosine) finds in all sections."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    if not made:
        return []
    weigh = TfidfVectorizer(sublinear_tf=True, token_pattern=r"(?u)\b\w+\b")
    texts = weigh.fit_transform(f"{s.title} {s.heading} {s.text}" for s in sections)
    place = {(section.document, section.heading): number for number, section in enumerate(sections)}
    kept: list[Asked] = []
    for start in range(0, len(made), 1024):
        some = made[start : start + 1024]
        scores = (weigh.transform(one.question for one in some) @ texts.T).toarray()
        own = np.array([place[one.section.document, one.section.heading] for one in some])
        better = (scores > scores[np.arange(len(some)), own][:, None]).sum(axis=1)
        kept += [one for one, ahead in zip(some, better, strict=True) if ahead < SHOWN]
    return kept


def _parts(text: str) -> Iterator[tuple[str, str]]:
    """(sentence, line or row, header of its table) of a section; a row is read with its header, which is no row."""
    header = ""
    for part in split_sentences(text):
        row = " | " in part
        if row and not header:
            header = part
        else:
            header = header if row else ""
            yield part, header


def _bag(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


# --- the rules --------------------------------------------------------------------------------


def _of_section(section: Section, language: str) -> Iterator[Asked]:
    english = language in ("", "en")
    for rule in RULES if english else NEUTRAL_RULES:
        for question, span, sentence in rule(section, english):
            if len(question.split()) <= MOST_WORDS_ASKED and 0 < len(span.split()) <= MOST_WORDS_ANSWERED:
                yield Asked(question, span, sentence, section)


Rule = Callable[[Section, bool], Iterator[tuple[str, str, str]]]


def cells(section: Section, english: bool) -> Iterator[tuple[str, str, str]]:
    """Every cell but the first of a row: 'Plans: what is the Storage of Team?'."""
    header: list[str] | None = None
    for line in section.text.split("\n"):
        row = [cell.strip() for cell in line.split(" | ")]
        if len(row) < 2:
            header = None
        elif header is None:
            header = row
        elif len(row) == len(header) and row[0]:
            for name, cell in zip(header[1:], row[1:], strict=True):
                if name and cell:
                    what = f"what is the {name} of {row[0]}" if english else f"{row[0]}, {name}"
                    yield f"{_place(section)}: {what}?", cell, line.strip()


_PAIR = re.compile(r"[-*•\s]*(?P<key>\w[\w /'-]{1,39}):\s+(?P<value>\S.*)")


def pairs(section: Section, english: bool) -> Iterator[tuple[str, str, str]]:
    """A line 'Storage: 50 GB': 'Plans, Team: what is the Storage?'."""
    for line in section.text.split("\n"):
        if (found := _PAIR.fullmatch(line.strip())) and " | " not in line:
            what = f"what is the {found['key']}" if english else found["key"]
            yield f"{_place(section)}: {what}?", found["value"].rstrip(".;, "), line.strip()


# A sentence that opens so leans on the one before it, and asks nothing by itself.
_LEANS = re.compile(
    r"(?:its?|this|these|that|those|they|their|there|then|s?he|his|her|we|our|your?|here|such|otherwise|instead|both|each"
    r"|one|some|also|but|and|or|so|if|when|while|until|after|before)\b",
    re.I,
)
_DEFINED = re.compile(
    r"(?P<what>(?:An? |The )?\w[\w' -]{1,50}?) (?P<is>is|are|means) (?P<span>(?:an?|the) [^.;:]{4,100})\."
)


def definitions(section: Section, english: bool) -> Iterator[tuple[str, str, str]]:
    """'A seat is a place for one member.': 'What is a seat?'."""
    for sentence in split_sentences(section.text):
        found = _DEFINED.fullmatch(sentence)
        if found and not _LEANS.match(sentence):
            what = re.sub(r"^(An?|The) ", lambda match: match[0].lower(), found["what"])
            asked = f"What does {what} mean?" if found["is"] == "means" else f"What {found['is']} {what}?"
            yield asked, found["span"], sentence


_NUMBER = r"(?:\d[\d.,]*|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|sixty|ninety)"
_AMOUNT = re.compile(rf"(?<![\w.,/#-]){_NUMBER} (?P<unit>percent|[KMGT]B|[a-z]{{2,}}s)(?![\w/-])")
_NAMED = re.compile(r"\b(?:version|section|chapter|step|page|port|figure|table|error|least|most|than|to) $", re.I)


def amounts(section: Section, english: bool) -> Iterator[tuple[str, str, str]]:
    """'Files stay for 30 days.': 'Files stay for how many days?'."""
    for sentence in split_sentences(section.text):
        if not sentence.endswith(".") or " | " in sentence or _LEANS.match(sentence):
            continue
        for found in _AMOUNT.finditer(sentence):
            before, after = sentence[: found.start()], sentence[found.end() :].removesuffix(".")
            if len(before.split()) >= 2 and not _NAMED.search(before):
                yield f"{before}how many {found['unit']}{after}?", found[0], sentence


RULES: tuple[Rule, ...] = (cells, pairs, definitions, amounts)
NEUTRAL_RULES: tuple[Rule, ...] = (cells, pairs)
"""For documents in other languages than English: the questions are the documents' words alone."""


def _place(section: Section) -> str:
    return ", ".join(dict.fromkeys(part for part in (section.title, *section.heading.split(" > ")) if part))
