"""Files into documents, questions and quarantine: listed, parsed in a guarded child, and nothing dropped in silence."""

from __future__ import annotations

from data.parsing import parse
from data.readers import Read
from data.records import Document, Example, Quarantined, digest
from data.sources import File, files, listed

__all__ = ["File", "files", "listed", "parse", "read", "read_examples"]


def read(path: str) -> Read:
    """Everything at `path`, as `listed` understands it, cleaned; exact duplicates of a document are left out.

    Ids are paths relative to the folder (to the fixed part of a glob), `path#row` inside a file of rows, the title in
    a SQuAD file, `archive/path` in an archive (`path` where a single archive is given). Hidden files are skipped.
    Raises as `listed` and `parse` do.
    """
    found = Read()
    for _, part in parse(listed(path)):
        found.documents += part.documents
        found.examples += part.examples
        found.quarantined += part.quarantined
    return _without_duplicates(found)


def read_examples(path: str) -> tuple[list[Example], list[Quarantined]]:
    """The questions under `path` (JSONL, CSV, Parquet with a `question` column, or SQuAD), and what was refused."""
    found = read(path)
    return found.examples, found.quarantined


def _without_duplicates(found: Read) -> Read:
    """One document per id and per content: a second file with the same id is quarantined, a copy becomes an alias."""
    kept: dict[str, Document] = {}
    by_content: dict[str, str] = {}
    for document in sorted(found.documents, key=lambda document: document.id):
        content = digest([(section.heading, section.text) for section in document.sections])
        if document.id in kept:
            if kept[document.id] != document:
                reason = f"a second document with the id {document.id!r}; rename one of them"
                found.quarantined.append(Quarantined(document.id, "", reason))
        elif content in by_content:
            found.aliases[document.id] = by_content[content]
        else:
            kept[document.id] = document
            by_content[content] = document.id
    found.documents = list(kept.values())
    return found
