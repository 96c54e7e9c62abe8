"""Files of rows into documents and questions: SQuAD, JSON lines, CSV and Parquet."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator

from data.records import Example, Quarantined
from data.sections import MOST_BYTES, Part, Read, Unreadable, clean, decoded, one_line, sectioned, stem

LABELS = ("modified", "language", "access", "tenant")
COLUMNS = ("id", "title", "section", "text", "page", "question", "answers", "document", "context", *LABELS)


def read_json(name: str, data: bytes) -> Read:
    """SQuAD: an article is a document (its title is the id), each paragraph a section 'Paragraph N'."""
    try:
        content = json.loads(decoded(data))
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise Unreadable("JSON without the SQuAD key 'data'; use JSONL, CSV or Parquet for rows")
    found = Read()
    for number, article in enumerate(content["data"], start=1):
        try:
            title = one_line(article["title"])
            parts = [Part(f"Paragraph {i}", item["context"]) for i, item in enumerate(article["paragraphs"], start=1)]
            examples = [
                _example(
                    item["question"], [answer["text"] for answer in item.get("answers") or []], title, part.heading
                )
                for part, paragraph in zip(parts, article["paragraphs"], strict=True)
                for item in paragraph.get("qas") or []
            ]
            found.documents += sectioned(title, title, parts, _labels(article))
        except Unreadable as error:
            found.quarantined.append(Quarantined(name, f"article {number}", str(error)))
        except (KeyError, TypeError, AttributeError) as error:
            found.quarantined.append(Quarantined(name, f"article {number}", f"not SQuAD: {error!r}"))
        else:
            found.examples += examples
    return found


def read_jsonl(name: str, data: bytes) -> Read:
    """JSON lines: documents by `text` (`id`, `title`, `section`, `page`, LABELS), examples by `question` (`answers`,
    `document`, `section`)."""

    def rows() -> Iterator[tuple[str, dict | str]]:
        for number, line in enumerate(decoded(data).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = f"not JSON: {error}"
            except RecursionError:
                row = "nested too deeply"
            yield f"line {number}", row if isinstance(row, dict | str) else "not a JSON object"

    return grouped(name, rows())


def read_csv(name: str, data: bytes) -> Read:
    """CSV with a header row: the columns of `read_jsonl`; `answers` is one answer, or a JSON list of them."""
    table = csv.DictReader(io.StringIO(decoded(data), newline=""))
    _require_columns(table.fieldnames or [])

    def rows() -> Iterator[tuple[str, dict | str]]:
        number = 1
        while True:
            number += 1
            try:
                row = next(table)
            except StopIteration:
                return
            except csv.Error as error:
                yield f"row {number}", f"not CSV: {error}"
                continue
            if (row.get("answers") or "").startswith("["):
                try:
                    row["answers"] = json.loads(row["answers"])
                except json.JSONDecodeError as error:
                    yield f"row {number}", f"answers is no JSON list: {error}"
                    continue
            if None in row:
                row = "more fields than the header"
            elif row.get("text") and any(row[key] is None for key in row if _label(key) in ("access", "tenant")):
                row = "ends before its access or tenant"  # which must not make it public
            yield f"row {number}", row

    return grouped(name, rows())


def read_parquet(name: str, data: bytes) -> Read:
    """Parquet: the columns of `read_jsonl`."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(data))
        groups = [file.metadata.row_group(i).total_byte_size for i in range(file.metadata.num_row_groups)]
        if sum(groups) > MOST_BYTES:
            raise Unreadable(f"unpacks to more than {MOST_BYTES >> 20} MiB; split the file")
        names = file.schema_arrow.names
        _require_columns(names)
        table = file.read(columns=[name for name in names if name in COLUMNS or _label(name)]).to_pylist()
    except pa.ArrowException as error:
        raise Unreadable(f"not Parquet: {error}") from error
    return grouped(name, ((f"row {number}", row) for number, row in enumerate(table, start=1)))


def _require_columns(names: list[str]) -> None:
    if not {"text", "question", "context"} & set(names):
        raise Unreadable(f"no column `text`, `question` or `context`; it has {', '.join(names) or 'none'}")
    if twice := {name for name in names if names.count(name) > 1 and (name in COLUMNS or _label(name))}:
        raise Unreadable(f"the column `{min(twice)}` stands there twice; leave one")


def grouped(name: str, rows: Iterable[tuple[str, dict | str]]) -> Read:
    """Documents (rows with `text`) and examples (rows with `question`) from (place, row, or why it cannot be used).

    Rows with the same `id` are the sections of one document; for rows with a `context` see `_passages`.
    """
    found = Read()
    titles: dict[str, str] = {}
    parts: dict[str, list[Part]] = {}
    labels: dict[str, list[tuple[str, object]]] = {}
    places: dict[str, str] = {}
    for place, row in _passages(name, rows):
        if isinstance(row, str):
            found.quarantined.append(Quarantined(name, place, row))
            continue
        if row.get("question") is not None and not row.get("text"):
            try:
                found.examples.append(
                    _example(row["question"], row.get("answers"), row.get("document"), row.get("section"))
                )
            except TypeError as error:
                found.quarantined.append(Quarantined(name, place, str(error)))
            continue
        key = one_line(row.get("id")) or place.split()[-1]
        labels.setdefault(key, []).extend(_labels(row))  # of a row without text as well: it may hold the document's
        if not isinstance(row.get("text"), str) or not clean(row["text"]):
            found.quarantined.append(Quarantined(name, place, "no `text` in this row"))
        else:
            places.setdefault(key, place)
            titles.setdefault(key, one_line(row.get("title")) or (key if row.get("id") else stem(name)))
            parts.setdefault(key, []).append(Part(one_line(row.get("section")), row["text"], _page(row.get("page"))))
    for key, sections in parts.items():
        try:
            found.documents += sectioned(f"{name}#{key}", titles[key], sections, labels[key])
        except Unreadable as error:
            found.quarantined.append(Quarantined(name, places[key], f"document {key!r}: {error}"))
    return found


def _passages(name: str, given: Iterable[tuple[str, dict | str]]) -> Iterator[tuple[str, dict | str]]:
    """Rows with a `context` as rows with a `text`, once for each context, and rows with a `question` about it.

    Contexts under one `title` are the sections 'Paragraph N' of a document, as in SQuAD; without, each is a document.
    """
    sections: dict[tuple, tuple[str, str]] = {}
    counts: dict[str, int] = {}
    for place, row in given:
        if isinstance(row, str):
            yield place, row
            continue
        if isinstance(answers := row.get("answers"), dict):
            row = row | {"answers": answers.get("text")}
        context = row.get("context")
        if not isinstance(context, str) or row.get("text"):
            yield place, row
            continue
        labels = tuple((column, row[column]) for column in row if _label(column))
        title = one_line(row.get("title"))
        # Labels belong to the key: a context that comes again with others must not keep those of the first.
        if (key := (title, context, labels)) not in sections:
            counts[title] = counts.get(title, 0) + 1
            sections[key] = (title, f"Paragraph {counts[title]}") if title else (place.split()[-1], "")
            document, heading = sections[key]
            yield place, {**dict(labels), "id": document, "title": title or stem(name), "section": heading,
                          "text": context}  # fmt: skip
        if row.get("question") is not None:
            document, heading = sections[key]
            yield place, {**row, "document": f"{name}#{document}", "section": heading}


def _example(question: object, answers: object, document: object = None, section: object = None) -> Example:
    """An example with clean text, its answers without repeats. Raises TypeError when the question is no text."""
    if not isinstance(question, str) or not one_line(question):
        raise TypeError("the question is missing or no text")
    answers = [] if answers is None else [answers] if isinstance(answers, str) else list(answers)
    texts = tuple(dict.fromkeys(text for text in map(one_line, answers) if text))
    return Example(one_line(question), texts, one_line(document) or None, one_line(section) or None)


def _label(column: object) -> str:
    """The label that a column holds, '' for none; ' Access' is one, since a slip must not make a document public."""
    name = str(column).strip().lower()
    return name if name in LABELS else ""


def _labels(row: dict) -> list[tuple[str, object]]:
    """All labels of a row for `sections.labels`: None for one that it lacks or leaves empty."""
    given = [(name, value) for key, value in row.items() if (name := _label(key))]
    absent = [(name, None) for name in LABELS if name not in dict(given)]
    return absent + [(name, None if isinstance(value, str) and not value.strip() else value) for name, value in given]


def _page(value: object) -> int | None:
    """A page number from 1; None for anything else."""
    text = str(value).strip()
    return int(text) if text.isascii() and text.isdecimal() and 0 < len(text) < 10 and int(text) else None
