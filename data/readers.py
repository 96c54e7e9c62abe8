"""One file's bytes into documents and questions: a reader per suffix, a row each in READERS."""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from data import markup, office
from data.records import Document, Example, Quarantined, Section

# A file, or what a compressed file unpacks to, past this is refused: it would not be a document.
MOST_BYTES = 64 << 20
# Characters that are seen by a model but not by a person: bidirectional marks, zero width, tags, controls.
_INVISIBLE = dict.fromkeys(
    code
    for code in (*range(0x20), *range(0x7F, 0xA0), 0xAD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F),
                 *range(0x2060, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xD800, 0xE000),
                 *range(0xE0000, 0xE0080))
    if code not in (0x09, 0x0A)
)  # fmt: skip


@dataclass
class Read:
    """What was found: `aliases` maps the id of a dropped exact duplicate to the document that was kept."""

    documents: list[Document] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    quarantined: list[Quarantined] = field(default_factory=list)
    aliases: dict[str, str] = field(default_factory=dict)

    @property
    def duplicates(self) -> int:
        return len(self.aliases)


class Unreadable(ValueError):
    """A file that cannot be used; the message is the reason in its quarantine row."""


def clean(text: str) -> str:
    """Text as it is stored: NFC, nothing invisible, single blanks inside a line, never two empty lines together."""
    text = unicodedata.normalize("NFC", text.replace("\r\n", "\n").replace("\r", "\n").replace("\xa0", " "))
    text = re.sub(r"(?<=\S)[ \t]+", " ", text.translate(_INVISIBLE))
    return re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+\n", "\n", text)).strip("\n").rstrip()


def _line(value: object) -> str:
    """A title, id, heading, question or answer: one clean line."""
    return " ".join(clean(str(value)).split()) if value is not None else ""


def _decoded(data: bytes) -> str:
    """Text of UTF-8, or of UTF-16 with a byte order mark. Raises UnicodeDecodeError; Unreadable on binary data."""
    text = data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    if "\0" in text:
        raise Unreadable("binary data, not text")
    return text


def _document(document_id: str, title: str, parts: Iterable[tuple[str, str]]) -> list[Document]:
    """A list with the document made of (heading, text) parts that have text, or an empty list when none has.

    Headings become unique within the document ('Example', 'Example (2)'), so that document and heading name a section.
    """
    document_id, title, used, sections = _line(document_id), _line(title), set(), []
    for heading, text in parts:
        if not (text := clean(text)):
            continue
        heading = base = _line(heading)
        number = 1
        while heading in used:
            number += 1
            heading = f"{base} ({number})".strip()
        used.add(heading)
        sections.append(Section(document_id, title, heading, text))
    return [Document(document_id, title, tuple(sections))] if sections else []


def _stem(name: str) -> str:
    """A title for a document that has none: its file name in words."""
    return re.sub(r"[-_]+", " ", Path(name).name.split(".")[0]).strip().capitalize() or name


def _outline(name: str, title: str, blocks: Iterable[tuple[int, str]]) -> list[Document]:
    """A document from the blocks of data/markup: the first level 1 is the title, other headings make sections."""
    path: list[tuple[int, str]] = []
    parts: list[tuple[str, list[str]]] = [("", [])]
    heading_title = ""
    for level, text in blocks:
        if level == 0:
            parts[-1][1].append(text)
        elif level == 1 and not heading_title:
            heading_title = text
        else:
            path = [(depth, heading) for depth, heading in path if depth < level] + [(level, text)]
            parts.append((" > ".join(heading for _, heading in path), []))
    title = heading_title or title or _stem(name)
    return _document(name, title, ((heading, "\n".join(lines)) for heading, lines in parts))


def read_markdown(name: str, data: bytes) -> Read:
    """Markdown: the first `#` is the title, other headings make sections; links and emphasis become plain text."""
    return Read(documents=_outline(name, *markup.markdown(_decoded(data))))


def read_text(name: str, data: bytes) -> Read:
    """Plain text: a line underlined with === is the title, with --- a section heading."""
    return Read(documents=_outline(name, *markup.text(_decoded(data))))


def read_html(name: str, data: bytes) -> Read:
    """HTML: h1 (else <title>) is the title, h2 to h6 make sections; menus, scripts and hidden elements are left out."""
    return Read(documents=_outline(name, *markup.html(_decoded(data))))


def read_rst(name: str, data: bytes) -> Read:
    """reStructuredText: the outermost heading is the title, the others make sections; nothing is included or run."""
    return Read(documents=_outline(name, *markup.rst(_decoded(data))))


def read_pdf(name: str, data: bytes) -> Read:
    """PDF: a section a page, under its bookmark."""
    try:
        title, pages = office.pdf(data)
    except office.Damaged as error:
        raise Unreadable(str(error)) from error
    return Read(documents=_document(name, title.strip() or _stem(name), pages))


def read_docx(name: str, data: bytes) -> Read:
    """Word: the title, or the first Heading 1, is the title, the other headings make sections."""
    try:
        title, blocks = office.docx(data, MOST_BYTES)
    except office.Damaged as error:
        raise Unreadable(str(error)) from error
    return Read(documents=_outline(name, title.strip(), blocks))


def read_json(name: str, data: bytes) -> Read:
    """SQuAD: an article is a document (its title is the id), each paragraph a section 'Paragraph N'."""
    try:
        content = json.loads(_decoded(data))
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error}") from error
    if not isinstance(content, dict) or not isinstance(content.get("data"), list):
        raise Unreadable("JSON without the SQuAD key 'data'; use JSONL, CSV or Parquet for rows")
    found = Read()
    for number, article in enumerate(content["data"], start=1):
        try:
            title = _line(article["title"])
            paragraphs = [(f"Paragraph {i}", item["context"]) for i, item in enumerate(article["paragraphs"], start=1)]
            examples = [
                _example(item["question"], [answer["text"] for answer in item.get("answers") or []], title, heading)
                for (heading, _), paragraph in zip(paragraphs, article["paragraphs"], strict=True)
                for item in paragraph.get("qas") or []
            ]
            found.documents += _document(title, title, paragraphs)
        except (KeyError, TypeError, AttributeError) as error:
            found.quarantined.append(Quarantined(name, f"article {number}", f"not SQuAD: {error!r}"))
        else:
            found.examples += examples
    return found


def _example(question: object, answers: object, document: object = None, section: object = None) -> Example:
    """An example with clean text, its answers without repeats. Raises TypeError when the question is no text."""
    if not isinstance(question, str) or not _line(question):
        raise TypeError("the question is missing or no text")
    answers = [] if answers is None else [answers] if isinstance(answers, str) else list(answers)
    texts = tuple(dict.fromkeys(text for text in map(_line, answers) if text))
    return Example(_line(question), texts, _line(document) or None, _line(section) or None)


def _rows(name: str, rows: Iterable[tuple[str, dict | str]]) -> Read:
    """Documents (rows with `text`) and examples (rows with `question`) from (place, row, or why it cannot be used)."""
    found = Read()
    titles: dict[str, str] = {}
    parts: dict[str, list[tuple[str, str]]] = {}
    for place, row in rows:
        if isinstance(row, str):
            found.quarantined.append(Quarantined(name, place, row))
        elif row.get("question") is not None and not row.get("text"):
            try:
                found.examples.append(
                    _example(row["question"], row.get("answers"), row.get("document"), row.get("section"))
                )
            except TypeError as error:
                found.quarantined.append(Quarantined(name, place, str(error)))
        elif not isinstance(row.get("text"), str) or not clean(row["text"]):
            found.quarantined.append(Quarantined(name, place, "no `text` in this row"))
        else:
            key = _line(row.get("id")) or place.split()[-1]
            titles.setdefault(key, _line(row.get("title")) or (key if row.get("id") else _stem(name)))
            parts.setdefault(key, []).append((_line(row.get("section")), row["text"]))
    for key, sections in parts.items():
        found.documents += _document(f"{name}#{key}", titles[key], sections)
    return found


def read_jsonl(name: str, data: bytes) -> Read:
    """JSON lines: documents by `text` (`id`, `title`, `section`), examples by `question` (`answers`, ...)."""

    def rows() -> Iterator[tuple[str, dict | str]]:
        for number, line in enumerate(_decoded(data).split("\n"), start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                row = f"not JSON: {error}"
            except RecursionError:
                row = "nested too deeply"
            yield f"line {number}", row if isinstance(row, dict | str) else "not a JSON object"

    return _rows(name, rows())


def read_csv(name: str, data: bytes) -> Read:
    """CSV with a header row: the columns of `read_jsonl`; `answers` is one answer, or a JSON list of them."""
    table = csv.DictReader(io.StringIO(_decoded(data), newline=""))
    if not table.fieldnames or not {"text", "question"} & set(table.fieldnames):
        raise Unreadable(f"no column `text` or `question`; it has {', '.join(table.fieldnames or ['none'])}")

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
            yield f"row {number}", "more fields than the header" if None in row else row

    return _rows(name, rows())


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
        if not {"text", "question"} & set(names):
            raise Unreadable(f"no column `text` or `question`; it has {', '.join(names)}")
        wanted = ("id", "title", "section", "text", "question", "answers", "document")
        table = file.read(columns=[column for column in wanted if column in names]).to_pylist()
    except pa.ArrowException as error:
        raise Unreadable(f"not Parquet: {error}") from error
    return _rows(name, ((f"row {number}", row) for number, row in enumerate(table, start=1)))


READERS: dict[str, Callable[[str, bytes], Read]] = {
    ".md": read_markdown,
    ".markdown": read_markdown,
    ".txt": read_text,
    ".html": read_html,
    ".htm": read_html,
    ".rst": read_rst,
    ".pdf": read_pdf,
    ".docx": read_docx,
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
