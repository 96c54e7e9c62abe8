"""Questions with answers into training examples and golden questions of a snapshot."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa

from data import formats, snapshots
from data.feedback import Said
from data.records import Example, GoldenQuestion, Quarantined, Section, Snapshot, Sources, as_json, digest
from data.reviews import Ruling
from tasks import agreement, synthesis, votes
from tasks.agreement import OUTDATED, Chosen
from tasks.golden import Corpus, age, apply, bind, hold_out, leaks, ruled, to_golden, unit
from tasks.guards import Guards


@dataclass(frozen=True)
class Sorted:
    """The documents of the snapshot in the making: its folder and its table of documents."""

    folder: Path
    documents: pa.Table

    def aliases(self) -> dict[str, str]:
        rows = self.documents.select(["document", "dropped"]).to_pylist()
        return {row["document"]: row["dropped"] for row in rows if row["dropped"]}

    def ids(self) -> set[str]:
        rows = self.documents.select(["document", "reason"]).to_pylist()
        return {row["document"] for row in rows if not row["reason"]}


@dataclass(frozen=True)
class Found:
    """Rows of the tables from examples to quarantine, how many examples were golden or nearly, what feedback added."""

    tables: dict[str, list[dict]]
    leaked: int
    chosen: Chosen


def sort_out(
    sources: Sources,
    made: Sorted,
    previous: Snapshot | None,
    redacted: Callable[[Example], Example],
    said: Sequence[Said] = (),
    guards: Guards = Guards(),
    rulings: Sequence[Ruling] = (),
    live: Snapshot | None = None,
) -> Found:
    """The examples of the sources bound to sections, held out as golden, or left out with the reason.

    Golden are those of the team as `rulings` leave them, then the edits that a reviewer chose for it, then, where these
    are too few for a gate and there is no golden file, questions made from the documents. What else people said joins
    last, when it is settled what is golden: it can never become part of that.
    """
    picked, said = [one for one in said if one.golden], [one for one in said if not one.golden]
    given = [
        Example.of({name: row[name] for name in ("question", "answers", "document", "section")})
        for row in snapshots.stream(made.folder, "given")
    ]
    quarantined: list[Quarantined] = []
    if sources.examples and sources.examples != sources.documents:
        more, refused = formats.read_examples(sources.examples)
        given += map(redacted, more)
        quarantined += refused
    before = snapshots.golden(previous) if previous else []
    asked = None
    if sources.golden:
        asked, refused = formats.read_examples(sources.golden)
        asked = [redacted(example) for example in asked]
        quarantined += refused
    named = {example.document for example in (*given, *(asked or ()))} | {q.document or None for q in before}
    named |= _named([*said, *picked], made)
    corpus, old = _corpus(made, named), _old(previous, named - {None})
    training, refused = _bound(given, corpus, sources.examples or sources.documents)
    quarantined += refused
    if asked is None:
        known = snapshots.known_documents(previous) if previous else set()
        asked = hold_out(training, corpus, before, known)
    waiting = snapshots.reviews(previous) if previous else []
    kept, aged, refused, discarded = _golden(asked, corpus, before, old, waiting, sources, rulings)
    quarantined += refused
    kept, more, refused = _picked(picked, kept, corpus, previous, before, old, waiting, rulings)
    aged, quarantined = aged + more, quarantined + refused
    if not sources.golden:
        # Held out by design: golden, neither leaked nor left out.
        held = {question.id for question in kept}
        training = [example for example in training if example.id not in held]
        if sum(question.votes for question in kept) < synthesis.ENOUGH:
            kept += _generated(training, said, kept, made, corpus, live, before, old)
    kept.sort(key=lambda question: question.id)
    outdated = _outdated(corpus, old, snapshots.left_out(previous) if previous else [])
    out = [_left(example, discarded[example.id]) for example in training if example.id in discarded]
    training = [example for example in training if example.id not in discarded]
    trained, more_out, leaked = _trained(training, kept, corpus, outdated)
    out += more_out
    chosen = agreement.choose(said, corpus, kept, trained, guards, outdated)
    out += [_left(example, OUTDATED) for example in chosen.outdated]
    joined = [("given", example) for example in trained] + [("feedback", example) for example in chosen.examples]
    tables = agreement.tables(chosen) | {
        "examples": [as_json(example) | {"origin": origin} for origin, example in joined],
        "golden": [as_json(question) for question in kept],
        "quarantine": [as_json(row) | {"source": snapshots.NO_FILE} for row in quarantined],
        "left_out": out,
        "reviews": aged,
    }
    return Found(tables, leaked, chosen)


def _named(said: Sequence[Said], made: Sorted) -> set[str | None]:
    """The documents that feedback is about; None, for all, where a reviewer's answer may stand in any."""
    aliases, ids = made.aliases(), made.ids()
    shown = {aliases.get(place.document, place.document) for one in said for place in one.places}
    return (shown & ids) | {None for one in said if one.reviewed}


def _corpus(made: Sorted, named: set[str | None]) -> Corpus:
    """The documents that examples name; all of them when one names none, or one that is gone and may be found again."""
    aliases, ids = made.aliases(), made.ids()
    wanted = {aliases.get(name, name) for name in named if name}
    everything = None in named or not wanted <= ids
    texts = snapshots.documents_in(made.folder, None if everything else wanted)
    return Corpus(list(texts), aliases, len(ids))


def _old(previous: Snapshot | None, named: set[str]) -> Corpus:
    """The same documents as they were before; none for a snapshot of another version of this code."""
    if previous is None or not snapshots.made_by(previous):
        return Corpus([], {}, 0)
    return Corpus(list(snapshots.documents(previous, named)), {}, previous.documents)


def _bound(given: Iterable[Example], corpus: Corpus, source: str) -> tuple[list[Example], list[Quarantined]]:
    """Examples with the section that answers them, and those that name something that is not there."""
    kept: dict[str, Example] = {}
    refused = []
    for example in given:
        try:
            bound = bind(example, corpus)
        except LookupError as error:
            refused.append(_refused(source, example, str(error.args[0])))
            continue
        if kept.setdefault(bound.id, bound).answers != bound.answers:
            refused.append(_refused(source, example, "the same question again with other answers; keep one"))
    return list(kept.values()), refused


def _golden(
    asked: Iterable[Example],
    corpus: Corpus,
    before: Sequence[GoldenQuestion],
    old: Corpus,
    waiting: Sequence[dict],
    sources: Sources,
    rulings: Sequence[Ruling],
) -> tuple[list[GoldenQuestion], list[dict], list[Quarantined], dict[str, str]]:
    """(golden questions bound and aged, review rows of those set aside, those that could not be bound, id of each that
    a reviewer discarded -> what says so)."""
    by_id = {question.id: question for question in before}
    by_text = {question.question: question for question in before}
    old_texts = {row["id"]: row["old"] for row in waiting}
    kept: dict[str, GoldenQuestion] = {}
    aged, refused, discarded = [], [], {}
    for example in asked:
        prior = by_id.get(example.id) or (by_text.get(example.question) if example.document is None else None)
        ruling = ruled(prior.id if prior else example.id, example.answers, rulings)
        if ruling is not None:
            question, old_text = apply(ruling, corpus), ruling.text
            if question is None:
                discarded[example.id] = f"discarded as a golden question by {ruling.by}"
                continue
        elif prior is not None and prior.answers == example.answers:
            old_text = old_texts.get(prior.id) or old.bound_text(prior)
            question = age(prior, old_text, corpus)
        else:
            try:
                question, old_text = to_golden(bind(example, corpus), corpus), ""
            except LookupError as error:
                refused.append(_refused(sources.golden or sources.documents, example, str(error.args[0])))
                continue
        if not question.votes and question.id not in kept:
            aged.append(_aged(question, old_text, corpus))
        kept.setdefault(question.id, question)
    return list(kept.values()), aged, refused, discarded


def _aged(question: GoldenQuestion, old_text: str, corpus: Corpus) -> dict:
    """The review row of a question that is set aside."""
    row = {name: as_json(question)[name] for name in ("id", "question", "answers", "document", "section", "origin")}
    seen = corpus.hash(question.document, question.section) or ""
    return row | {"old": old_text, "new": corpus.bound_text(question), "seen": seen}


def _picked(
    picked: Sequence[Said],
    kept: Sequence[GoldenQuestion],
    corpus: Corpus,
    previous: Snapshot | None,
    before: Sequence[GoldenQuestion],
    old: Corpus,
    waiting: Sequence[dict],
    rulings: Sequence[Ruling],
) -> tuple[list[GoldenQuestion], list[dict], list[Quarantined]]:
    """`kept` with the edits that a reviewer chose to be golden; review rows of those set aside; those refused.

    Refused is what was trained on, what is golden already, and what no shown section can be bound to.
    """
    chosen = [_as_example(one, corpus) for one in picked if one.reviewed and not one.withdrawn and one.question]
    questions = [one.question for one in chosen]
    trained = leaks(questions, [example.question for example in snapshots.examples(previous)] if previous else [])
    known = leaks(questions, [question.question for question in kept])
    refused, asked = [], []
    for number, example in enumerate(chosen):
        if example.document is None:
            refused.append(_refused("feedback", example, "no section holds its answer, and none was shown for it"))
        elif number in trained or number in known:
            why = "was trained on" if number in trained else "is golden already"
            refused.append(_refused("feedback", example, f"{trained.get(number) or known[number]!r} {why}"))
        else:
            asked.append(example)
    more, aged, unbound, _ = _golden(asked, corpus, before, old, waiting, Sources("", "feedback"), rulings)
    return [*kept, *(replace(question, origin="feedback") for question in more)], aged, refused + unbound


def _as_example(one: Said, corpus: Corpus) -> Example:
    """What a reviewer accepted, with the first section shown that holds it, else the one that does, else the first."""
    example = Example(one.question, (votes.endorsed(one) or "",))
    places = [(place.document, place.section) for place in one.places if corpus.hash(place.document, place.section)]
    for place in places:
        if corpus.holds(*place, example):
            return replace(example, document=place[0], section=place[1])
    bound = bind(example, corpus)
    if bound.document is None and places:
        return replace(example, document=places[0][0], section=places[0][1])
    return bound


def _generated(
    training: Sequence[Example],
    said: Sequence[Said],
    kept: Sequence[GoldenQuestion],
    made: Sorted,
    corpus: Corpus,
    live: Snapshot | None,
    before: Sequence[GoldenQuestion],
    old: Corpus,
) -> list[GoldenQuestion]:
    """Questions made from the documents: those there were whose source still says it, then new ones on other sources
    than those of examples and feedback, from sections that are `live`: of an edited one the champion knows no answer.
    """
    apart = {unit(e.document, e.section, corpus) for e in (*training, *kept) if e.document}
    apart |= {unit(place.document, place.section, corpus) for one in said for place in one.places}
    now = [age(question, old.bound_text(question), corpus) for question in before if question.synthetic]
    stay = [q for q in now if q.votes and unit(q.document, q.section, corpus) not in apart]
    room = synthesis.MOST - len(stay)
    if room <= 0:
        return stay
    sample = set(sorted(made.ids(), key=digest)[: synthesis.MOST_DOCUMENTS])
    texts = Corpus(list(snapshots.documents_in(made.folder, sample)), made.aliases(), len(made.ids()))
    held = snapshots.documents(live, sample) if live else ()
    known = {section.hash for document in held for section in document.sections}

    def steady(section: Section) -> bool:
        return live is None or section.hash in known

    asked = [e.question for e in (*training, *kept, *stay)]
    apart |= {unit(question.document, question.section, corpus) for question in stay}
    return stay + synthesis.generate(texts, room, apart, asked, steady)


def _outdated(corpus: Corpus, old: Corpus, before: Sequence[dict]) -> Callable[[Example], bool]:
    """Whether an example's answer is gone from the section it was bound to: now, or before (rows left out then)."""
    gone = {(row["id"], tuple(row["answers"])) for row in before if row["reason"].startswith("outdated")}

    def outdated(example: Example) -> bool:
        return corpus.lost(example, old) or (
            (example.id, example.answers) in gone and not corpus.holds(example.document, example.section, example)
        )

    return outdated


def _trained(
    training: Sequence[Example],
    kept: Sequence[GoldenQuestion],
    corpus: Corpus,
    outdated: Callable[[Example], bool],
) -> tuple[list[Example], list[dict], int]:
    """(examples to train on, rows of the others with the reason, how many of those were golden or nearly)."""
    held = {unit(question.document, question.section, corpus) for question in kept if question.document}
    ids = {question.id for question in kept}
    near = leaks([example.question for example in training], [question.question for question in kept])
    trained, out, leaked = [], [], 0
    for number, example in enumerate(training):
        if example.id in ids or number in near:
            reason = f"near-duplicate of a golden question: {near.get(number, example.question)}"
            leaked += 1
        elif example.document and unit(example.document, example.section, corpus) in held:
            reason = "about a source that golden questions are about"
        elif outdated(example):
            reason = OUTDATED
        else:
            trained.append(example)
            continue
        out.append(_left(example, reason))
    return trained, out, leaked


def _left(example: Example, reason: str) -> dict:
    return as_json(example) | {"id": example.id, "reason": reason}


def _refused(source: str, example: Example, reason: str) -> Quarantined:
    return Quarantined(source, f"question {example.question[:80]!r}", reason)
