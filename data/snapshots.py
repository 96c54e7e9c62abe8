"""A snapshot on disk: Parquet tables under a COMPLETE marker, written in streams and read in streams.

`documents` and `sections` hold everything that was read, so that the next snapshot can take over what did not change;
what the filters took out is marked there, and `documents()` leaves it out.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Collection, Iterable, Iterator
from itertools import groupby
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from data import cleaning
from data.records import (
    Document,
    Example,
    GoldenQuestion,
    Preference,
    Quarantined,
    Section,
    Snapshot,
    as_json,
    digest,
    file_sha256,
)

# Part of every snapshot id: raise it when the same sources would give another snapshot.
VERSION = "snapshot-5"
ROWS_IN_MEMORY = 4096
# The `source` of quarantine rows that belong to no source file; it sorts behind every file name.
NO_FILE = "\uffff"
NEWEST_KEPT = 4


def _schema(texts: str, *others: tuple[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*((name, pa.string()) for name in texts.split()), *others])


_ANSWERS = ("answers", pa.list_(pa.string()))
SCHEMAS = {
    "files": _schema("name identity modified"),
    "documents": _schema(
        "file document title modified language access tenant hash content figures unfit redacted dropped reason",
        ("signature", pa.binary()),
        ("lines", pa.list_(pa.int64())),
        ("sections", pa.int32()),
    ),
    "sections": _schema("file document heading text", ("page", pa.int32())),
    "given": _schema("source question document section", _ANSWERS),
    "quarantine": _schema("source file place reason"),
    "furniture": _schema("", ("line", pa.int64())),
    "examples": _schema("question document section origin", _ANSWERS),
    "preferences": _schema("id question chosen rejected document section", ("feedback", pa.list_(pa.int64()))),
    "feedback": _schema("kind item", ("seq", pa.int64())),
    "feedback_left_out": _schema("guard reason", ("seq", pa.int64())),
    "golden": _schema("id question document section section_hash state origin", _ANSWERS),
    "left_out": _schema("id question document section reason", _ANSWERS),
    "reviews": _schema("id question document section origin old new seen", _ANSWERS),
}
"""Columns of each table. `dropped` names the document kept instead ('' none), `reason` says why one is left out;
`origin` is 'given' or 'feedback'; `feedback` says which row went into which example or preference."""


class Writer:
    """Writes the tables of one snapshot beside its place; `close` moves them in as one, the COMPLETE marker last."""

    def __init__(self, folder: Path):
        """`folder`: where the snapshots of an assistant lie."""
        self.folder, self.part = folder, folder / f".part-{os.getpid()}"
        shutil.rmtree(self.part, ignore_errors=True)
        self.part.mkdir(parents=True)
        self._open: dict[str, pq.ParquetWriter] = {}
        self._waiting: dict[str, list[dict]] = {name: [] for name in SCHEMAS}

    def add(self, name: str, rows: Iterable[dict]) -> None:
        waiting = self._waiting[name]
        waiting.extend(rows)
        if len(waiting) >= ROWS_IN_MEMORY:
            self._flush(name)

    def table(self, name: str, table: pa.Table) -> None:
        """A whole table at once, in place of rows."""
        pq.write_table(table, self.part / f"{name}.parquet")

    def close(self, snapshot_id: str, made_by: dict, **counts) -> Snapshot:
        """The snapshot `snapshot_id`. `made_by` is what a later one must be made by as well to take rows over."""
        folder = self.folder / snapshot_id
        snapshot = Snapshot(id=snapshot_id, uri=str(folder), **counts)
        hashes = {file.name: file_sha256(file) for file in sorted(self.part.glob("*.parquet"))}
        marker = {"snapshot": as_json(snapshot), "sha256": hashes, "made_by": made_by}
        replace_text(self.part / "COMPLETE", json.dumps(marker))
        shutil.rmtree(folder, ignore_errors=True)  # only ever an incomplete or damaged one, see `complete`
        self.part.rename(folder)
        return snapshot

    def finish(self, *names: str) -> None:
        """Those tables as closed files, to be read; nothing can be added to them any more."""
        for name in names:
            self._flush(name)
            self._open.pop(name).close()

    def discard(self) -> None:
        shutil.rmtree(self.part, ignore_errors=True)

    def _flush(self, name: str) -> None:
        if name not in self._open:
            self._open[name] = pq.ParquetWriter(self.part / f"{name}.parquet", SCHEMAS[name], compression="zstd")
        rows, self._waiting[name] = self._waiting[name], []
        self._open[name].write_table(pa.Table.from_pylist(rows, schema=SCHEMAS[name]))


def complete(folder: Path) -> Snapshot | None:
    """The snapshot in a folder when its marker is there and every file has its recorded sha256, else None."""
    marker = folder / "COMPLETE"
    if not marker.is_file():
        return None
    done = json.loads(marker.read_text())
    for name, sha in done["sha256"].items():
        if not (folder / name).is_file() or file_sha256(folder / name) != sha:
            return None
    return Snapshot.of(done["snapshot"] | {"uri": str(folder)})


def made_by(snapshot: Snapshot) -> dict:
    """What the snapshot was made by; empty for one of another version of this code."""
    marker = Path(snapshot.uri) / "COMPLETE"
    return json.loads(marker.read_text()).get("made_by", {}) if marker.is_file() else {}


def table(snapshot: Snapshot, name: str, columns: list[str] | None = None) -> pa.Table:
    """One table. Raises FileNotFoundError for a snapshot that is not complete."""
    return pq.read_table(_whole(snapshot) / f"{name}.parquet", columns=columns)


def rows(snapshot: Snapshot, name: str) -> list[dict]:
    return table(snapshot, name).to_pylist()


def stream(folder: Path, name: str) -> Iterator[dict]:
    """The rows of a table, in its order, a few thousand in memory at a time."""
    with pq.ParquetFile(folder / f"{name}.parquet") as file:
        for batch in file.iter_batches(batch_size=ROWS_IN_MEMORY):
            yield from batch.to_pylist()


def by_file(folder: Path, name: str, column: str) -> Iterator[tuple[str, list[dict]]]:
    """(file, its rows) in the order of the table."""
    return ((file, list(some)) for file, some in groupby(stream(folder, name), key=lambda row: row[column]))


def documents(snapshot: Snapshot, only: Collection[str] | None = None) -> Iterator[Document]:
    """The documents as they are indexed: copies, unfit ones and furniture left out; `only` those with these ids."""
    return documents_in(_whole(snapshot), only)


def documents_in(folder: Path, only: Collection[str] | None = None) -> Iterator[Document]:
    columns = ["file", "document", "title", "modified", "language", "access", "tenant", "reason"]
    kept = {
        (row["file"], row["document"]): row
        for row in pq.read_table(folder / "documents.parquet", columns=columns).to_pylist()
        if not row["reason"] and (only is None or row["document"] in only)
    }
    furniture = frozenset(pq.read_table(folder / "furniture.parquet")["line"].to_pylist())
    for place, some in groupby(stream(folder, "sections"), key=lambda row: (row["file"], row["document"])):
        if (row := kept.pop(place, None)) is None:
            continue
        title = row["title"]
        sections = tuple(Section(place[1], title, r["heading"], r["text"], r["page"]) for r in some)
        about = (row["modified"], row["language"], row["access"], row["tenant"])
        document = Document(place[1], title, sections, *about)
        yield cleaning.without_boilerplate(document, furniture) if furniture else document


def sections(snapshot: Snapshot) -> Iterator[Section]:
    """All sections of `documents`, in reading order."""
    return (section for document in documents(snapshot) for section in document.sections)


def known_documents(snapshot: Snapshot) -> set[str]:
    """Ids of all documents that were read, those that a filter left out included."""
    return set(table(snapshot, "sections", ["document"])["document"].unique().to_pylist())


def filtered(snapshot: Snapshot) -> list[dict]:
    """What the filters left out: file, document, dropped (what is kept instead, ''), reason."""
    found = table(snapshot, "documents", ["file", "document", "dropped", "reason"]).to_pylist()
    return [row for row in found if row["reason"]]


def redacted(snapshot: Snapshot) -> dict[str, int]:
    """Kind of personal data -> how many were replaced in the documents."""
    total: dict[str, int] = {}
    for text in table(snapshot, "documents", ["redacted"])["redacted"].to_pylist():
        for kind, count in json.loads(text or "{}").items():
            total[kind] = total.get(kind, 0) + count
    return total


def fingerprint(snapshot: Snapshot) -> str:
    """The same for two snapshots exactly when their documents are the same."""
    found = table(snapshot, "documents", ["document", "hash", "reason"]).to_pylist()
    kept = [(row["document"], row["hash"]) for row in found if not row["reason"]]
    return digest(kept, sorted(table(snapshot, "furniture")["line"].to_pylist()))


def sweep(folder: Path, keep: Collection[str]) -> None:
    """Removes the snapshots of an assistant that are not to be kept, but never the newest few, and what was cut off."""
    there = sorted(folder.glob("snap-*"), key=lambda path: path.stat().st_mtime)
    for path in [*there[:-NEWEST_KEPT], *folder.glob(".part-*")]:
        if path.name not in keep and not (path.name.startswith(".") and _young(path)):
            shutil.rmtree(path, ignore_errors=True)
    for memo in (folder / "inputs").glob("*"):
        if not (folder / memo.read_text()).exists():
            memo.unlink(missing_ok=True)


def _young(path: Path) -> bool:
    return path.exists() and time.time() - path.stat().st_mtime < 86_400


def examples(snapshot: Snapshot) -> list[Example]:
    """Training examples: none is golden, a near-duplicate of a golden question, or about a held-out document.

    Those that were made from feedback are among them; `feedback` says which, and from what.
    """
    return [Example.of({k: v for k, v in row.items() if k != "origin"}) for row in rows(snapshot, "examples")]


def preferences(snapshot: Snapshot) -> list[Preference]:
    """Pairs of answers of which people prefer one; `snapshot.flip_rate` says how often a vote is wrong."""
    return [Preference.of({k: v for k, v in row.items() if k != "id"}) for row in rows(snapshot, "preferences")]


def feedback(snapshot: Snapshot) -> list[dict]:
    """Which feedback went into what: seq, kind ('example' or 'preference'), item (the id of it)."""
    return rows(snapshot, "feedback")


def feedback_numbers(snapshot: Snapshot) -> list[int]:
    """The feedback that went into anything, each row's number once, in order."""
    return sorted({row["seq"] for row in feedback(snapshot)})


def feedback_left_out(snapshot: Snapshot) -> list[dict]:
    """The other feedback there was when the snapshot was made: seq, guard, reason. No part of the snapshot's id."""
    return rows(snapshot, "feedback_left_out")


def golden(snapshot: Snapshot) -> list[GoldenQuestion]:
    """Golden questions, those that are set aside (`votes` is false) included."""
    return [GoldenQuestion.of(row) for row in rows(snapshot, "golden")]


def quarantine(snapshot: Snapshot) -> list[Quarantined]:
    """What could not be used: file, place, reason."""
    return [Quarantined(row["file"], row["place"], row["reason"]) for row in rows(snapshot, "quarantine")]


def left_out(snapshot: Snapshot) -> list[dict]:
    """Examples that are readable but not trained on: id, question, answers, document, section, reason."""
    return rows(snapshot, "left_out")


def reviews(snapshot: Snapshot) -> list[dict]:
    """Golden questions set aside for a person: id, question, answers, document, section, origin, old and new text.

    `seen` is the hash of the new text, '' where it is gone.
    """
    return rows(snapshot, "reviews")


def replace_text(path: Path, text: str) -> None:
    """Writes a small file so that a reader sees all of it or none."""
    part = path.with_name(f".{path.name}-{os.getpid()}")
    part.write_text(text)
    part.replace(path)


def _whole(snapshot: Snapshot) -> Path:
    folder = Path(snapshot.uri)
    if not (folder / "COMPLETE").is_file():
        raise FileNotFoundError(f"snapshot {snapshot.id} is not complete at {folder}; run prepare again")
    return folder
