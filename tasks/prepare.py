"""Sources into a snapshot: documents, training examples, golden questions and quarantine, by content hash."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from data import formats
from data.records import (
    Document,
    Example,
    GoldenQuestion,
    Quarantined,
    Section,
    Snapshot,
    Sources,
    as_json,
    digest,
    file_sha256,
)
from settings import settings
from tasks.golden import Corpus, age, bind, hold_out, leaks, to_golden, unit

# Part of every snapshot id: raise it when the same sources would give another snapshot.
VERSION = "snapshot-1"
TABLES = ("sections", "examples", "golden", "quarantine", "left_out", "reviews")


@dataclass
class Contents:
    """The tables of a snapshot before they are written, as lists of rows."""

    sections: list[dict]
    examples: list[dict]
    golden: list[dict]
    quarantine: list[dict]
    left_out: list[dict]
    reviews: list[dict]


def prepare(sources: Sources, previous: Snapshot | None = None) -> Snapshot:
    """Reads the sources and returns their snapshot; the same sources and `previous` again are a read.

    `previous` is the snapshot of the release that is live: golden questions keep their binding and age against it, a
    held-out set stays held out, and training examples whose answer was edited away are left out. The id is a hash of
    content, so sources that changed nothing give the snapshot there already is. Raises FileNotFoundError for a path
    with nothing at it, ValueError when no document could be read.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", sources.assistant):
        raise ValueError(f"assistant {sources.assistant!r}: use letters, digits, '-', '_' and '.', at most 63")
    folder = settings().snapshots / sources.assistant
    memo = folder / "inputs" / inputs_key(sources, previous)
    if memo.is_file() and (done := _complete(folder / memo.read_text())):
        return done
    contents, duplicates, leaked = _contents(sources, previous)
    snapshot_id = "snap-" + digest(VERSION, sources.assistant, vars(contents), duplicates, leaked)[:20]
    snapshot = _complete(folder / snapshot_id) or _write(folder / snapshot_id, sources, contents, duplicates, leaked)
    memo.parent.mkdir(parents=True, exist_ok=True)
    _replace_text(memo, snapshot_id)
    return snapshot


def inputs_key(sources: Sources, previous: Snapshot | None) -> str:
    """Hash of the names and bytes of every source file, of the previous snapshot and of this code's version."""
    listed = []
    for path in (sources.documents, sources.examples, sources.golden):
        for name, file in formats.files(path) if path else []:
            try:
                listed.append((path, name, file_sha256(file)))
            except OSError as error:
                listed.append((path, name, str(error)))
    return digest(VERSION, sources.assistant, listed, previous.id if previous else None)[:32]


def sections(snapshot: Snapshot) -> list[Section]:
    """All sections, documents in order of id, sections in reading order."""
    return [Section.of(row) for row in _rows(snapshot, "sections")]


def documents(snapshot: Snapshot) -> list[Document]:
    """All documents, in order of id."""
    return _documents(sections(snapshot))


def examples(snapshot: Snapshot) -> list[Example]:
    """Training examples: none is golden, a near-duplicate of a golden question, or about a held-out document."""
    return [Example.of(row) for row in _rows(snapshot, "examples")]


def golden(snapshot: Snapshot) -> list[GoldenQuestion]:
    """Golden questions, those that are set aside (`votes` is false) included."""
    return [GoldenQuestion.of(row) for row in _rows(snapshot, "golden")]


def quarantine(snapshot: Snapshot) -> list[Quarantined]:
    """What could not be used: file, place, reason."""
    return [Quarantined.of(row) for row in _rows(snapshot, "quarantine")]


def left_out(snapshot: Snapshot) -> list[dict]:
    """Examples that are readable but not trained on: id, question, answers, document, section, reason."""
    return _rows(snapshot, "left_out")


def reviews(snapshot: Snapshot) -> list[dict]:
    """Golden questions set aside for a person: id, question, answers, document, section, old and new text."""
    return _rows(snapshot, "reviews")


def _contents(sources: Sources, previous: Snapshot | None) -> tuple[Contents, int, int]:
    """(the tables, exact duplicates among the documents, examples that were golden or nearly)."""
    found = formats.read(sources.documents)
    if not found.documents:
        reasons = "; ".join(f"{row.file}: {row.reason}" for row in found.quarantined[:3])
        raise ValueError(f"no document could be read under {sources.documents!r} ({reasons}); nothing was changed")
    corpus = Corpus(found.documents, found.aliases)
    quarantined = list(found.quarantined)
    given = list(found.examples)
    if sources.examples and sources.examples != sources.documents:
        more, refused = formats.read_examples(sources.examples)
        given += more
        quarantined += refused
    training, refused = _bound(given, corpus, sources.examples or sources.documents)
    quarantined += refused

    before = golden(previous) if previous else []
    if sources.golden:
        asked, refused = formats.read_examples(sources.golden)
        quarantined += refused
    else:
        known = set() if previous is None else {section.document for section in sections(previous)}
        asked = hold_out(training, corpus, before, known)
    old = Corpus(documents(previous), {}) if previous else Corpus([], {})
    kept, aged, refused = _golden(asked, corpus, before, old, reviews(previous) if previous else [], sources)
    quarantined += refused

    if not sources.golden:
        # Held out by design: golden, neither leaked nor left out.
        held = {question.id for question in kept}
        training = [example for example in training if example.id not in held]
    trained, out, leaked = _trained(training, kept, corpus, old, left_out(previous) if previous else [])
    contents = Contents(
        sections=[as_json(section) for document in found.documents for section in document.sections],
        examples=[as_json(example) for example in trained],
        golden=[as_json(question) for question in kept],
        quarantine=[as_json(row) for row in quarantined],
        left_out=out,
        reviews=aged,
    )
    return contents, found.duplicates, leaked


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
) -> tuple[list[GoldenQuestion], list[dict], list[Quarantined]]:
    """(golden questions bound and aged, review rows of those set aside, those that could not be bound)."""
    by_id = {question.id: question for question in before}
    by_text = {question.question: question for question in before}
    old_texts = {row["id"]: row["old"] for row in waiting}
    kept: dict[str, GoldenQuestion] = {}
    aged, refused = [], []
    for example in asked:
        prior = by_id.get(example.id) or (by_text.get(example.question) if example.document is None else None)
        if prior is not None and prior.answers == example.answers:
            old_text = old_texts.get(prior.id) or old.bound_text(prior)
            question = age(prior, old_text, corpus)
            if not question.votes and question.id not in kept:
                row = {name: as_json(question)[name] for name in ("id", "question", "answers", "document", "section")}
                aged.append(row | {"old": old_text, "new": corpus.bound_text(question)})
        else:
            try:
                question = to_golden(bind(example, corpus), corpus)
            except LookupError as error:
                refused.append(_refused(sources.golden or sources.documents, example, str(error.args[0])))
                continue
        kept.setdefault(question.id, question)
    return sorted(kept.values(), key=lambda question: question.id), aged, refused


def _trained(
    training: Sequence[Example], kept: Sequence[GoldenQuestion], corpus: Corpus, old: Corpus, before: Sequence[dict]
) -> tuple[list[Example], list[dict], int]:
    """(examples to train on, rows of the others with the reason, how many of those were golden or nearly)."""
    held = {unit(question.document, question.section, corpus) for question in kept if question.document}
    ids = {question.id for question in kept}
    near = leaks([example.question for example in training], [question.question for question in kept])
    outdated = {(row["id"], tuple(row["answers"])) for row in before if row["reason"].startswith("outdated")}
    trained, out, leaked = [], [], 0
    for number, example in enumerate(training):
        if example.id in ids or number in near:
            reason = f"near-duplicate of a golden question: {near.get(number, example.question)}"
            leaked += 1
        elif example.document and unit(example.document, example.section, corpus) in held:
            reason = "about a source that golden questions are about"
        elif corpus.lost(example, old) or (
            (example.id, example.answers) in outdated and not corpus.holds(example.document, example.section, example)
        ):
            reason = "outdated: its answer is no longer in the section it was bound to"
        else:
            trained.append(example)
            continue
        out.append(as_json(example) | {"id": example.id, "reason": reason})
    return trained, out, leaked


def _refused(source: str, example: Example, reason: str) -> Quarantined:
    return Quarantined(source, f"question {example.question[:80]!r}", reason)


def _documents(rows: Sequence[Section]) -> list[Document]:
    grouped: dict[str, list[Section]] = {}
    for section in rows:
        grouped.setdefault(section.document, []).append(section)
    return [Document(name, group[0].title, tuple(group)) for name, group in grouped.items()]


def _write(folder: Path, sources: Sources, contents: Contents, duplicates: int, leaked: int) -> Snapshot:
    """Writes the tables beside their place, the COMPLETE marker last, and moves the folder in as one."""
    import pyarrow.parquet as pq

    part = folder.with_name(f".{folder.name}-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in TABLES:
        pq.write_table(_table(name, getattr(contents, name)), part / f"{name}.parquet")
    snapshot = Snapshot(
        id=folder.name,
        uri=str(folder),
        assistant=sources.assistant,
        documents=len({row["document"] for row in contents.sections}),
        sections=len(contents.sections),
        examples=len(contents.examples),
        golden=len(contents.golden),
        aged=sum(row["state"] == "aged" for row in contents.golden),
        quarantined=len(contents.quarantine),
        duplicates=duplicates,
        leaked=leaked,
    )
    hashes = {f"{name}.parquet": file_sha256(part / f"{name}.parquet") for name in TABLES}
    _replace_text(part / "COMPLETE", json.dumps({"snapshot": as_json(snapshot), "sha256": hashes}))
    shutil.rmtree(folder, ignore_errors=True)  # only ever an incomplete or damaged one, see `prepare`
    part.rename(folder)
    return snapshot


def _table(name: str, rows: list[dict]):
    import pyarrow as pa

    columns = {
        "sections": ("document", "title", "heading", "text"),
        "examples": ("question", "answers", "document", "section"),
        "golden": ("id", "question", "answers", "document", "section", "section_hash", "state"),
        "quarantine": ("file", "place", "reason"),
        "left_out": ("id", "question", "answers", "document", "section", "reason"),
        "reviews": ("id", "question", "answers", "document", "section", "old", "new"),
    }[name]
    kinds = [(column, pa.list_(pa.string()) if column == "answers" else pa.string()) for column in columns]
    return pa.Table.from_pylist(rows, schema=pa.schema(kinds))


def _rows(snapshot: Snapshot, name: str) -> list[dict]:
    import pyarrow.parquet as pq

    folder = Path(snapshot.uri)
    if not (folder / "COMPLETE").is_file():
        raise FileNotFoundError(f"snapshot {snapshot.id} is not complete at {folder}; run prepare again")
    return pq.read_table(folder / f"{name}.parquet").to_pylist()


def _complete(folder: Path) -> Snapshot | None:
    """The snapshot in a folder when its marker is there and every file has its recorded sha256, else None."""
    marker = folder / "COMPLETE"
    if not marker.is_file():
        return None
    done = json.loads(marker.read_text())
    for name, sha in done["sha256"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha:
            return None
    return replace(Snapshot.of(done["snapshot"]), uri=str(folder))


def _replace_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees all of it or none."""
    part = path.with_name(f".{path.name}-{os.getpid()}")
    part.write_text(text)
    part.replace(path)
